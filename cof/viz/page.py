"""The whole picture: a caption, the boxes, and the attention before and after, side by side."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cof.errors import CofError
from cof.viz.layout import (
    FAINT,
    GAP,
    INK,
    MARGIN,
    NARROWEST,
    PAPER,
    QUESTION,
    SMALL,
    TITLE,
    draw_labelled,
    draw_text,
    line_up,
    stack,
)
from cof.viz.panels import DARK, FOUND, USED, Tokens, colours, heat, overlay, panel_size
from cof.viz.readout import Readout, read

if TYPE_CHECKING:
    from cof.engines.base import Engine
    from cof.pipeline import Answer

RIGHT = (0, 122, 84)
WRONG = (194, 40, 40)
TOKEN = (236, 236, 236)

IMAGES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
WIDE = 1.8  # panels of a larger width : height go below one another, not side by side


@dataclass(frozen=True, eq=False)
class Panel:
    """An image under a title, over its legend.

    Attributes:
        title: what it shows.
        image: RGB.
        legend: its signs or its scale of colours, drawn.
        caption: the same in words.
        heat: whether it shows attention.
    """

    title: str
    image: Image.Image
    legend: Image.Image
    caption: str
    heat: bool


def draw(
    answer: Answer,
    engine: Engine | None = None,
    *,
    plain: str | None = None,
    truth: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Image.Image:
    """The picture of an answer.

    Args:
        answer: what to show.
        engine: the one that answered; None, or one that cannot tell its attention
            (`cof.engines.base.AttentionReader`): only the boxes are drawn.
        plain: the plain model's answer, if known.
        truth: the right answer, if known; the others are then green or red.
        layers, heads: which to average the attention over; None: all.

    Returns:
        RGB: question and answers, then `[boxes and tokens | attention before | after]`; a single
        panel of attention where nothing was highlighted.

    Raises:
        CofError: a layer or head the model does not have, or out of memory.
    """
    readout = None if engine is None else read(engine, answer, layers=layers, heads=heads)
    panels = draw_panels(answer, readout)
    below = panel_size(answer.image.size)[0] > WIDE * panel_size(answer.image.size)[1]
    rows = [[panel] for panel in panels] if below else [panels]
    body = stack([_side_by_side(row) for row in rows], GAP)
    parts = [_caption(answer, plain, truth, max(body.width, 2 * NARROWEST)), body]
    if readout is not None:
        parts.append(draw_text(footnote(answer, readout), SMALL, FAINT, parts[0].width))
    content = stack(parts, GAP)
    page = Image.new("RGB", (content.width + 2 * MARGIN, content.height + 2 * MARGIN), PAPER)
    page.paste(content, (MARGIN, MARGIN))
    return page


def draw_panels(answer: Answer, readout: Readout | None) -> list[Panel]:
    """What was looked at and, as far as an engine has told, the attention before and after.

    Args:
        answer: what to show.
        readout: of this answer (`cof.viz.readout.read`); None: only the boxes are drawn.
    """
    panels = [_boxes_panel(answer, readout)]
    if readout is not None:
        panels += _attention_panels(answer, readout)
    return panels


def save_overlay(
    path: str | os.PathLike[str],
    engine: Engine | None,
    answer: Answer,
    *,
    plain: str | None = None,
    truth: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> None:
    """Write the picture of an answer, as `draw` makes it, to a file.

    Raises:
        CofError: what `draw` and `check_path` refuse, or the file cannot be written.
    """
    kind = check_path(path)
    picture = draw(answer, engine, plain=plain, truth=truth, layers=layers, heads=heads)
    data = io.BytesIO()
    picture.save(data, format=kind)
    write_file(path, data.getvalue())


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file at once.

    Raises:
        CofError: it cannot be written.
    """
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise CofError(
            f"{os.fspath(path)} cannot be written ({error.strerror}): choose another place."
        ) from error


def check_path(path: str | os.PathLike[str], kinds: Mapping[str, str] = IMAGES) -> str:
    """The format of Pillow's that an image with this file name is written in.

        >>> check_path("overlay.png")
        'PNG'

    Args:
        path: the file.
        kinds: the formats to choose from, with their endings.

    Raises:
        CofError: the name has another ending, or it is a folder, or in none.
    """
    file = Path(path)
    endings = list(kinds.values())
    if file.is_dir():
        example = file / f"overlay{endings[0]}"
        raise CofError(f"{file} is a folder: name a file in it, such as {example}.")
    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind is None or kind not in kinds:
        choices = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise CofError(f"{file} is no name for a picture: end it in {choices}.")
    if not file.parent.is_dir():
        raise CofError(f"There is no folder {file.parent} to write {file.name} in.")
    return kind


def _boxes_panel(answer: Answer, readout: Readout | None) -> Panel:
    tokens = None if readout is None else readout.highlighted
    image = overlay(answer.image, answer.region, found=answer.raw_boxes, highlighted=tokens)
    keys: list[tuple[Image.Image, str]] = []
    words: list[str] = []
    region = answer.region
    if region is not None and not region.whole:
        looked_at = "looked at"
        if region.mask is None and any(box not in region.boxes for box in answer.raw_boxes):
            keys.append((_dashed_key(), "found"))
            words.append("dashed: found")
            looked_at += f", x {answer.settings.expand:g}"
        keys.append((_line_key(), looked_at))
        words.append(f"solid: {looked_at}")
    if tokens is not None:
        count, total = int(tokens.values.sum()), tokens.values.size
        keys.append((_token_key(TOKEN), f"{count} of {total} tokens"))
        words.append(f"bright: {count} of {total} image tokens")
        if min(tokens.frame.left, tokens.frame.top) < 0:
            keys.append((_token_key(DARK), "not seen"))
            words.append("black: not seen")
    title = "Nothing highlighted" if region is None else "What it was made to look at"
    legend = _keys(keys, max(image.width, NARROWEST))
    return Panel(title, image, legend, "; ".join(words), heat=False)


def _attention_panels(answer: Answer, readout: Readout) -> list[Panel]:
    states = {"before": readout.before} | ({"after": readout.after} if readout.after else {})
    top = brightest_share(readout)
    panels = []
    for name, state in states.items():
        title = "Attention of the plain model"
        if readout.after is not None:
            title = f"Attention {name}: {readout.inside(state):.1%} {name_region(answer)}"
        image = heat(answer.image, state, top, answer.region)
        legend = draw_scale(max(image.width, NARROWEST), top, state)
        caption = f"0 to {_top_share(top, state)}"
        panels.append(Panel(title, image, legend, caption, heat=True))
    return panels


def name_region(answer: Answer) -> str:
    """Such as "in the box"."""
    region = answer.region
    if region is None or region.whole:
        return "on the image"
    if region.mask is not None:
        return "in the region"
    return "in the box" if len(region.boxes) == 1 else "in the boxes"


def brightest_share(readout: Readout) -> float:
    """The share drawn brightest, the same before and after.

    Not the largest: models pay single tokens, the same for every question, a great share
    ("sinks"), which would leave the others black.
    """
    before = readout.before.values.astype(np.float64)
    top = float(np.quantile(before, 0.98))
    if readout.after is not None and readout.highlighted is not None:
        after = readout.after.values.astype(np.float64)
        inside = after[readout.highlighted.values.astype(bool)]
        top = max(top, float(np.quantile(after, 0.98)))
        if inside.size:
            top = max(top, float(np.quantile(inside, 0.9)))
    return top


def _caption(answer: Answer, plain: str | None, truth: str | None, width: int) -> Image.Image:
    said = [("answer" if answer.region is None else "CoF", answer.text)]
    if plain is not None and answer.region is not None:
        said.insert(0, ("plain", plain))
    if truth is not None:
        said.append(("truth", truth))
    if answer.confidence is not None and answer.region is not None:
        said.append(("confidence of the box", f"{answer.confidence:.0%}"))
    if answer.reason:
        said.append(("note", answer.reason))
    lines = [draw_text(answer.question, QUESTION, INK, width)]
    row: list[Image.Image] = []
    for label, text in said:
        ink = INK
        if truth is not None and label in ("plain", "CoF", "answer"):
            ink = RIGHT if same_answer(text, truth) else WRONG
        item = draw_labelled(label, text or "(nothing)", ink, width)
        if row and sum(part.width + GAP for part in row) + GAP + item.width > width:
            lines.append(line_up(row, 2 * GAP))
            row = []
        row.append(item)
    return stack([*lines, line_up(row, 2 * GAP)], 12, width)


def same_answer(text: str, truth: str) -> bool:
    """Whether two short answers are the same but for case, blanks and a full stop.

    >>> same_answer(" Yes.", "yes"), same_answer("7", "1")
    (True, False)
    """
    first, second = (part.strip().rstrip(".").strip().casefold() for part in (text, truth))
    return first == second


def footnote(answer: Answer, readout: Readout) -> str:
    """Whose attention is shown, and what was added to it."""
    layers, heads = readout.averaged
    text = (
        f"Attention that {readout.looks} pays to each image token, on average over {layers} "
        f"{'layer' if layers == 1 else 'layers'} and {heads} {'head' if heads == 1 else 'heads'}."
    )
    if readout.after is not None:
        how = f"log({answer.settings.option('strength'):g}) added to the scores"
        graded = answer.settings.focus.name == "soft"
        how = f"up to {how}, by degrees" if graded else f"{how} of the bright tokens"
        text += f" After: {how}."
    return text


def draw_scale(width: int, top: float, attention: Tokens) -> Image.Image:
    """The colours of the heat with the shares at their ends."""
    low = draw_text("0", SMALL, INK, width)
    high = draw_text(_top_share(top, attention), SMALL, INK, width)
    length = min(width - low.width - high.width - 24, 260)
    levels = np.tile(np.linspace(0, 1, max(2, length)), (16, 1))
    bar = Image.fromarray(colours(levels).round().astype(np.uint8))
    return line_up([low, bar, high], 12)


def _top_share(top: float, attention: Tokens) -> str:
    more = " or more" if float(attention.values.max()) > top else ""
    return f"{top:.2%}{more} per token"


def _keys(keys: Sequence[tuple[Image.Image, str]], width: int) -> Image.Image:
    parts = [line_up([sign, draw_text(text, SMALL, INK, width)], 8) for sign, text in keys]
    rows: list[list[Image.Image]] = [[]]
    for part in parts:
        if rows[-1] and sum(p.width + GAP for p in rows[-1]) + part.width > width:
            rows.append([])
        rows[-1].append(part)
    # an empty line keeps the panels beside this one level
    return stack([line_up(row, GAP) for row in rows if row] or [draw_text(" ", SMALL, INK, 1)], 4)


def _line_key() -> Image.Image:
    key = Image.new("RGB", (30, 8), DARK)
    key.paste(USED, (1, 2, 29, 6))
    return key


def _dashed_key() -> Image.Image:
    key = Image.new("RGB", (42, 6), PAPER)
    for x in (0, 16, 32):
        key.paste(DARK, (x, 0, x + 10, 6))
        key.paste(FOUND, (x + 1, 2, x + 9, 4))
    return key


def _token_key(colour: tuple[int, int, int]) -> Image.Image:
    key = Image.new("RGB", (22, 22), DARK)
    key.paste(colour, (2, 2, 20, 20))
    return key


def _side_by_side(panels: Sequence[Panel]) -> Image.Image:
    columns = []
    for panel in panels:
        width = max(panel.image.width, NARROWEST)
        title = draw_text(panel.title, TITLE, INK, width)
        columns.append(stack([title, panel.image, panel.legend], 10, width))
    return line_up(columns, GAP, top=True)
