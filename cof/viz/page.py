"""The picture of an answer: what was said, the boxes, and the attention before and after."""

from __future__ import annotations

import base64
import io
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cof.errors import CofError
from cof.viz.panels import HEAT, Tokens, heat, overlay
from cof.viz.readout import Drawable, Readout, read

if TYPE_CHECKING:
    from cof.engines.base import Engine

RIGHT, WRONG, INK, FAINT = "#007a54", "#c22828", "#1c1e26", "#686c78"

IMAGES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}

_WIDE = 1.8  # panels of a larger width : height go below one another, not side by side
_INCHES = 5.0  # width of a panel
_DPI = 110
_LINE = 0.27  # inches from line to line
_LETTER = 0.1  # inches, of a usual letter
_MOST_LINES = 6  # of one text
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Arial Unicode MS", "Microsoft YaHei")


@dataclass(frozen=True, eq=False)
class Panel:
    """An image under a title, over its legend.

    Attributes:
        title: what it shows.
        image: RGB.
        caption: what its signs mean.
        top: of attention, the share in its brightest colour; 0: it shows none.
    """

    title: str
    image: Image.Image
    caption: str
    top: float = 0.0


Line = tuple[str, str]
"""A text above the panels, and its colour."""


def draw(
    answer: Drawable,
    engine: Engine | None = None,
    *,
    plain: str | None = None,
    truth: str | None = None,
) -> Image.Image:
    """The picture of an answer.

    Args:
        answer: what to show.
        engine: the one that answered; None, or one that cannot tell its attention
            (`cof.engines.base.AttentionReader`): only the boxes are drawn.
        plain: the plain model's answer, if known.
        truth: the right answer, if known; the others are then green or red.

    Returns:
        RGB: question and answers, then `[boxes and tokens | attention before | after]`; a single
        panel of attention where nothing was highlighted.
    """
    from matplotlib.figure import Figure

    readout = read(engine, answer)
    figure = Figure()
    lay_out(figure, answer.image.size, draw_panels(answer, readout), _said(answer, plain, truth))
    if readout is not None:
        width, height = figure.get_size_inches()
        note = "\n".join(textwrap.wrap(footnote(answer, readout), int(width / _LETTER * 1.3)))
        figure.text(0, -0.1 / height, note, color=FAINT, size=9, va="top")
    return render(figure)


def draw_panels(answer: Drawable, readout: Readout | None) -> list[Panel]:
    """What was looked at and, as far as an engine has told, the attention before and after.

    Args:
        answer: what to show.
        readout: of this answer (`cof.viz.readout.read`); None: only the boxes are drawn.
    """
    panels = [_boxes_panel(answer, readout)]
    if readout is not None:
        panels += _attention_panels(answer, readout)
    return panels


def lay_out(
    figure: Any, image_wh: tuple[int, int], panels: Sequence[Panel], said: Sequence[Line]
) -> list[Any]:
    """Panels side by side, or wide ones below one another, and lines of text above them.

    Args:
        figure: matplotlib's, empty; its size is set.
        image_wh: the image's; coordinates in the axes are its pixels.
        panels: each gets axes.
        said: texts; long ones are broken, and cut short.

    Returns:
        The axes.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import PercentFormatter

    width, height = panels[0].image.size
    rows, columns = (len(panels), 1) if width > _WIDE * height else (1, len(panels))
    inches = (_INCHES * columns, rows * (min(_INCHES * height / width, 2 * _INCHES) + 0.9))
    figure.set_size_inches(inches)
    figure.set_layout_engine("constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, panel in zip(axes, panels, strict=True):
        ax.imshow(panel.image, extent=(0, image_wh[0], image_wh[1], 0))
        ax.set(xticks=(), yticks=(), xlabel="" if panel.top else panel.caption)
        ax.set_title(panel.title, size=11)
        ax.set_anchor("N")
        if panel.top:
            share = ScalarMappable(Normalize(0, panel.top), HEAT)
            bar = figure.colorbar(share, ax=ax, orientation="horizontal", shrink=0.6, aspect=30)
            bar.ax.xaxis.set_major_formatter(PercentFormatter(1.0))
            bar.set_label(panel.caption)
    lines = [(part, colour) for text, colour in said for part in _broken(text, inches[0])]
    for number, (text, colour) in enumerate(reversed(lines)):
        y = 1 + (number + 0.9) * _LINE / inches[1]
        figure.text(0, y, text, color=colour, size=13, parse_math=False, family=_fonts())
    return axes


def render(figure: Any) -> Image.Image:
    """A figure with all that stands around it, RGB."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as an empty box
        figure.savefig(data, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.3)
    return Image.open(data).convert("RGB")


def save_overlay(
    path: str | os.PathLike[str],
    engine: Engine | None,
    answer: Drawable,
    *,
    plain: str | None = None,
    truth: str | None = None,
) -> None:
    """Write the picture of an answer, as `draw` makes it, to a file.

    Raises:
        CofError: what `check_path` refuses, or the file cannot be written.
    """
    kind = check_path(path)
    save(path, [draw(answer, engine, plain=plain, truth=truth)], kind)


def save(
    path: str | os.PathLike[str], frames: Sequence[Image.Image], kind: str, **options: Any
) -> None:
    """Write an image, or an animation, at once.

    Raises:
        CofError: it cannot be written.
    """
    data = io.BytesIO()
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:]}
    frames[0].save(data, format=kind, **options)
    try:
        Path(path).write_bytes(data.getvalue())
    except OSError as error:
        raise CofError(
            f"{os.fspath(path)} cannot be written ({error.strerror}): choose another place."
        ) from error


def data_uri(image: Image.Image, **options: int) -> str:
    """An image as an address that holds it."""
    data = io.BytesIO()
    image.save(data, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


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


def name_region(answer: Drawable) -> str:
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


def heat_panel(answer: Drawable, title: str, attention: Tokens, top: float) -> Panel:
    """Attention over the answer's image."""
    more = " or more" if float(attention.values.max()) > top else ""
    image = heat(answer.image, attention, top, answer.region)
    return Panel(title, image, f"0 to {top:.2%}{more} per token", top)


def facts(answer: Drawable, plain: str | None = None) -> list[tuple[str, str]]:
    """The answers, and how they came about, each with its name."""
    looked = answer.region is not None
    said = [("CoF" if looked else "plain", answer.text or "(nothing)")]
    if looked and plain is not None:
        said.insert(0, ("plain", plain or "(nothing)"))
    if looked and answer.confidence is not None:
        said.append(("confidence of the box", f"{answer.confidence:.0%}"))
    if answer.reason:
        said.append(("note", answer.reason))
    return said


def same_answer(text: str, truth: str) -> bool:
    """Whether two short answers are the same but for case, blanks and a full stop.

    >>> same_answer(" Yes.", "yes"), same_answer("7", "1")
    (True, False)
    """
    first, second = (part.strip().rstrip(".").strip().casefold() for part in (text, truth))
    return first == second


def footnote(answer: Drawable, readout: Readout) -> str:
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


def _said(answer: Drawable, plain: str | None, truth: str | None) -> list[Line]:
    lines = [(answer.question, INK)]
    for label, text in facts(answer, plain):
        colour = INK
        if truth is not None and label in ("plain", "CoF"):
            colour = RIGHT if same_answer(text, truth) else WRONG
        lines.append((f"{label}: {text}", colour))
    return [*lines, (f"truth: {truth}", INK)] if truth is not None else lines


def _boxes_panel(answer: Drawable, readout: Readout | None) -> Panel:
    tokens = None if readout is None else readout.highlighted
    image = overlay(answer.image, answer.region, found=answer.raw_boxes, highlighted=tokens)
    words: list[str] = []
    region = answer.region
    if region is not None and not region.whole:
        looked_at = "solid: looked at"
        if region.mask is None and any(box not in region.boxes for box in answer.raw_boxes):
            words.append("dashed: found")
            looked_at += f", x {answer.settings.expand:g}"
        words.append(looked_at)
    if tokens is not None:
        words.append(f"bright: {int(tokens.values.sum())} of {tokens.values.size} image tokens")
        if min(tokens.frame.left, tokens.frame.top) < 0:
            words.append("black: not seen")
    title = "Nothing highlighted" if region is None else "What it was made to look at"
    return Panel(title, image, "; ".join(words))


def _attention_panels(answer: Drawable, readout: Readout) -> list[Panel]:
    top = brightest_share(readout)
    if readout.after is None:
        return [heat_panel(answer, "Attention of the plain model", readout.before, top)]
    return [
        heat_panel(
            answer,
            f"Attention {name}: {readout.inside(state):.1%} {name_region(answer)}",
            state,
            top,
        )
        for name, state in (("before", readout.before), ("after", readout.after))
    ]


def _broken(text: str, inches: float) -> list[str]:
    """A text in lines; its own line breaks are kept."""
    lines = [
        part
        for line in text.strip().splitlines() or [""]
        for part in textwrap.wrap(line, max(20, int(inches / _LETTER))) or [""]
    ]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1 :] = [f"{lines[_MOST_LINES - 1]} …"]
    return lines


@cache
def _fonts() -> list[str]:
    """The fonts of this machine, in which characters are looked for one after another."""
    from matplotlib.font_manager import get_font_names

    return [name for name in _FONTS if name in get_font_names()]
