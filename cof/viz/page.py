"""The picture of an answer, also in notebooks: what was said, the boxes, and the attention before
and after."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cof.errors import CofError
from cof.images import data_url
from cof.viz.panels import HEAT, Drawable, Readout, heat, overlay, read

if TYPE_CHECKING:
    from cof.engines.base import Engine

RIGHT, WRONG, INK, FAINT = "#007a54", "#c22828", "#1c1e26", "#686c78"

_WIDE = 1.8  # panels of a larger width : height go below one another, not side by side
_INCHES = 5.0  # width of a panel
_DPI = 110
_LINE = 0.27  # inches from line to line
_LETTER = 0.1  # inches, of a usual letter
_MOST_LINES = 6  # of one text
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Arial Unicode MS", "Microsoft YaHei")
"""Characters are looked for in one after another, of those that a machine has."""


@dataclass(frozen=True, eq=False)
class Panel:
    """An RGB image under a title, over a caption that says what its signs mean."""

    title: str
    image: Image.Image
    caption: str
    top: float = 0.0  # of attention, the share in its brightest colour; 0: it shows none


def draw(
    answer: Drawable,
    engine: Engine | None = None,
    *,
    plain: str | None = None,
    truth: str | None = None,
) -> Image.Image:
    """The picture of an answer.

    Args:
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
    said = [(answer.question, INK)]
    for label, text in facts(answer, plain):
        judged = truth is not None and label in ("plain", "CoF")
        verdict = RIGHT if same_answer(text, truth or "") else WRONG
        said.append((f"{label}: {text}", verdict if judged else INK))
    if truth is not None:
        said.append((f"truth: {truth}", INK))
    figure = Figure()
    lay_out(figure, answer.image.size, draw_panels(answer, readout), said)
    if readout is not None:
        width, height = figure.get_size_inches()
        note = "\n".join(textwrap.wrap(footnote(answer, readout), int(width / _LETTER * 1.3)))
        figure.text(0, -0.1 / height, note, color=FAINT, size=9, va="top")
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as an empty box
        figure.savefig(data, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.3)
    return Image.open(data).convert("RGB")


def write_html(answer: Drawable, plain: str | None = None) -> str:
    """The image with the boxes, and the answer with how it came about; all text is escaped. The
    model is not run for the plain answer."""
    lines, image = [("question", answer.question), ("error", answer.error)], ""
    if not answer.error:
        panel = draw_panels(answer, None)[0]
        about = [("grounder", answer.grounder), ("image", panel.caption or panel.title)]
        lines[1:] = [*facts(answer, plain), *about]
        image = (
            f'<img src="{webp_url(panel.image)}" alt="{escape(answer.question)}" '
            'style="max-width: min(100%, 30em)">'
        )
    cell = 'style="text-align: left; white-space: pre-wrap"'
    rows = (
        f"<tr><th {cell}>{escape(name)}</th><td {cell}>{escape(text)}</td></tr>"
        for name, text in lines
    )
    return f"<div>{image}<table>{''.join(rows)}</table></div>"


def plot_answer(answer: Drawable, engine: Engine | None = None) -> list[Any]:
    """Plot the image with the boxes and, if an engine is given, its attention.

    Args:
        engine: the one that answered, asked for its attention before and after (two forward
            passes); None, or one that cannot tell: only the boxes are plotted.

    Returns:
        The axes, one for each panel, side by side in one figure. Their coordinates are pixels of
        `answer.image`, so that what is plotted into them lies over the image.

    Raises:
        CofError: the query was refused.
    """
    from matplotlib import pyplot

    if answer.error:
        raise CofError(f"There is nothing to show, for the query was refused: {answer.error}")
    figure = pyplot.figure()
    said = [(f"{answer.question}  {answer.text}", INK)]
    return lay_out(figure, answer.image.size, draw_panels(answer, read(engine, answer)), said)


def draw_panels(answer: Drawable, readout: Readout | None) -> list[Panel]:
    """What was looked at and, as far as an engine has told (`cof.viz.panels.read`), the attention
    before and after."""
    boxes = _boxes_panel(answer, readout)
    if readout is None:
        return [boxes]
    states = {"of the plain model": readout.before}
    if readout.after is not None:
        before, after = (
            f"{readout.inside(state):.1%} in the region"
            for state in (readout.before, readout.after)
        )
        states = {f"before: {before}": readout.before, f"after: {after}": readout.after}
    top, panels = _brightest_share(readout), [boxes]
    for title, state in states.items():
        more = " or more" if float(state.values.max()) > top else ""
        image = heat(answer.image, state, top, answer.region)
        legend = f"0 to {top:.2%}{more} per token"
        panels.append(Panel(f"Attention {title}", image, legend, top))
    return panels


def lay_out(
    figure: Any, image_wh: tuple[int, int], panels: Sequence[Panel], said: Sequence[tuple[str, str]]
) -> list[Any]:
    """Panels side by side, or wide ones below one another, and above them the texts in their
    colours; long ones are broken, and cut short.

    Args:
        figure: matplotlib's, empty; its size is set.
        image_wh: of the image: coordinates in the axes are its pixels.

    Returns:
        The axes, one for each panel.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.font_manager import get_font_names
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
    fonts = [name for name in _FONTS if name in get_font_names()]
    for number, (text, colour) in enumerate(reversed(lines)):
        y = 1 + (number + 0.9) * _LINE / inches[1]
        figure.text(0, y, text, color=colour, size=13, parse_math=False, family=fonts)
    return axes


def save_overlay(
    path: str | os.PathLike[str], engine: Engine | None, answer: Drawable, **known: str | None
) -> None:
    """Write the picture of an answer to a file, as `draw` makes it of the same (`plain`, `truth`).

    Raises:
        CofError: what `check_path` refuses.
        OSError: the file cannot be written.
    """
    kind, data = check_path(path), io.BytesIO()
    draw(answer, engine, **known).save(data, kind)
    Path(path).write_bytes(data.getvalue())


def webp_url(image: Image.Image) -> str:
    """An image as an address that holds it, small and written fast."""
    data = io.BytesIO()
    image.save(data, "WEBP", quality=85, method=2)
    return data_url(data.getvalue(), "webp")


def check_path(path: str | os.PathLike[str]) -> str:
    """The format of Pillow's that an image with this file name is written in.

        >>> check_path("overlay.png")
        'PNG'

    Raises:
        CofError: the name has another ending, or it is a folder, or in none.
    """
    file = Path(path)
    kind = Image.registered_extensions().get(file.suffix.lower())
    if file.is_dir() or kind not in ("PNG", "JPEG", "WEBP"):
        raise CofError(f"{file} is no name for a picture: end it in .png, .jpg or .webp.")
    if not file.parent.is_dir():
        raise CofError(f"There is no folder {file.parent} to write {file.name} in.")
    return kind


def _brightest_share(readout: Readout) -> float:
    """The share drawn brightest, the same before and after.

    Not the largest: models pay single tokens, the same for every question, a great share
    ("sinks"), which would leave the others black.
    """
    tops = [np.quantile(readout.before.values, 0.98)]
    if readout.after is not None and readout.highlighted is not None:
        tops.append(np.quantile(readout.after.values, 0.98))
        if (inside := readout.highlighted.values).any():
            tops.append(np.quantile(readout.after.values[inside], 0.9))
    return float(max(tops))


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
    text = f"Attention that {readout.looks} pays to each image token, over all layers and heads."
    if readout.after is not None:
        most = "up to " if answer.settings.focus.name == "soft" else ""
        added = f"log({answer.settings.option('strength'):g})"
        text += f" After: {most}{added} added to the scores of the bright tokens."
    return text


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
