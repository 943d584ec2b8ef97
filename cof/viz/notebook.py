"""How an answer shows itself: as HTML in a notebook, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from cof.errors import CofError
from cof.viz.page import INK, draw_panels, facts, lay_out, webp_url
from cof.viz.readout import Drawable, read

if TYPE_CHECKING:
    from cof.engines.base import Engine


def write_html(answer: Drawable, plain: str | None = None) -> str:
    """The image with the boxes, and the answer with how it came about; all text is escaped.

    Args:
        answer: what to show.
        plain: the plain model's answer, if it is known; the model is not run for it.
    """
    if answer.error:
        return _table([("question", answer.question), ("error", answer.error)])
    lines = [("question", answer.question), *facts(answer, plain), ("grounder", answer.grounder)]
    panel = draw_panels(answer, None)[0]
    lines.append(("image", panel.caption or panel.title))
    image = (
        f'<img src="{webp_url(panel.image)}" alt="{escape(answer.question)}" '
        'style="max-width: min(100%, 30em)">'
    )
    return f"<div>{image}{_table(lines)}</div>"


def plot_answer(answer: Drawable, engine: Engine | None = None) -> list[Any]:
    """Plot the image with the boxes and, if an engine is given, its attention.

    Args:
        answer: what to plot.
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


def _table(lines: Sequence[tuple[str, str]]) -> str:
    cell = 'style="text-align: left; white-space: pre-wrap"'
    rows = (
        f"<tr><th {cell}>{escape(name)}</th><td {cell}>{escape(text)}</td></tr>"
        for name, text in lines
    )
    return f"<table>{''.join(rows)}</table>"
