"""How an answer shows itself: as HTML in a notebook, as a plot, as another library's detections."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from cof.errors import CofError
from cof.geometry.boxes import clip
from cof.geometry.regions import coverage_image
from cof.viz.page import draw_panels
from cof.viz.readout import read

if TYPE_CHECKING:
    from cof.answer import Answer
    from cof.engines.base import Engine

_QUALITY = 80  # of the image's WebP data
_INCHES = 5.0  # width of a panel of a plot


def write_html(answer: Answer, plain: str | None = None) -> str:
    """The image with the boxes, and the answer with how it came about; all text is escaped.

    Args:
        answer: what to show.
        plain: the plain model's answer, if it is known; the model is not run for it.
    """
    if answer.error:
        return _table([("question", answer.question), ("error", answer.error)])
    looked = answer.region is not None
    lines = [("question", answer.question), ("CoF" if looked else "plain", answer.text)]
    if looked and plain is not None:
        lines.append(("plain", plain))
    lines.append(("grounder", answer.grounder))
    if answer.confidence is not None:
        lines.append(("confidence of the box", f"{answer.confidence:.0%}"))
    if answer.reason:
        lines.append(("note", answer.reason))
    panel = draw_panels(answer, None)[0]
    lines.append(("image", panel.caption or panel.title))
    file = io.BytesIO()
    panel.image.save(file, "WEBP", quality=_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    image = (
        f'<img src="data:image/webp;base64,{data}" alt="{escape(answer.question)}" '
        'style="max-width: min(100%, 30em)">'
    )
    return f"<div>{image}{_table(lines)}</div>"


def plot_answer(
    answer: Answer,
    engine: Engine | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[Any]:
    """Plot the image with the boxes and, if an engine is given, its attention.

    Args:
        answer: what to plot.
        engine: the one that answered, asked for its attention before and after (two forward
            passes); None, or one that cannot tell: only the boxes are plotted.
        layers, heads: which to average the attention over; None: all.

    Returns:
        The axes, one for each panel, side by side in one figure. Their coordinates are pixels of
        `answer.image`, so that what is plotted into them lies over the image.

    Raises:
        CofError: matplotlib is not installed, the query was refused, or there is no such layer or
            head.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise CofError("A plot needs matplotlib: pip install 'cof[viz]'.") from error
    _check_answered(answer)
    readout = None if engine is None else read(engine, answer, layers=layers, heads=heads)
    panels = draw_panels(answer, readout)
    width, height = answer.image.size
    panel_height = min(max(_INCHES * height / width, 1.0), 2 * _INCHES)
    figure, grid = pyplot.subplots(
        1,
        len(panels),
        figsize=(_INCHES * len(panels), panel_height + 1.5),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(f"{answer.question}  {answer.text}", parse_math=False)  # "$" is no formula
    axes = list(grid[0])
    for ax, panel in zip(axes, panels, strict=True):
        ax.imshow(panel.image, extent=(0, width, height, 0))
        ax.set_title(panel.title)
        ax.set_xlabel(panel.caption)
    return axes


def make_detections(answer: Answer) -> Any:
    """The boxes looked at as `supervision.Detections`, for that library's annotators and metrics.

    Returns:
        `xyxy` `(N, 4)` in pixels of `answer.image`, clipped to it; `confidence` `(N,)` of the box,
        if known; `mask` `(N, H, W)` where the region is a mask; `data["class_name"]`, which
        annotators write, is the answer. Empty where nothing was looked at.

    Raises:
        CofError: supervision is not installed, or the query was refused.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise CofError("Detections need supervision: pip install 'cof[supervision]'.") from error
    _check_answered(answer)
    region = answer.region
    if region is None:
        return supervision.Detections.empty()
    count = len(region.boxes)
    unit = np.array([clip(box) for box in region.boxes], dtype=np.float32)
    mask = None
    if region.mask is not None:
        mask = np.asarray(coverage_image(region, answer.image.size))[None] > 127
    sure = answer.confidence
    return supervision.Detections(
        xyxy=unit * np.array(answer.image.size * 2, dtype=np.float32),
        mask=mask,
        confidence=None if sure is None else np.full(count, sure, dtype=np.float32),
        data={"class_name": np.array([answer.text] * count)},
    )


def _check_answered(answer: Answer) -> None:
    if answer.error:
        raise CofError(f"There is nothing to show, for the query was refused: {answer.error}")


def _table(lines: Sequence[tuple[str, str]]) -> str:
    cell = 'style="text-align: left; white-space: pre-wrap"'
    rows = (
        f"<tr><th {cell}>{escape(name)}</th><td {cell}>{escape(text)}</td></tr>"
        for name, text in lines
    )
    return f"<table>{''.join(rows)}</table>"
