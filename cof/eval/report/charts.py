"""Charts of a run, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from cof.eval.report.blocks import Numbers
from cof.eval.report.document import Chart

COLORS = {
    "plain": "#555555",
    "cof": "#c0392b",
    "attention": "#8e44ad",
    "two looks": "#16a085",
    "cof, if unsure": "#d35400",
    "oracle": "#27ae60",
    "whole": "#2980b9",
    "random": "#b08a2e",
}
POINTS = {"marker": "o", "capsize": 3, "markersize": 4}


def result_charts(results: Numbers) -> list[Chart]:
    """The charts that a run's numbers allow; of more methods than there are colours, none."""
    charts = []
    for name, numbers in results["tasks"].items():
        groups = numbers["groups"]
        if groups and len(results["methods"]) <= len(COLORS):
            kinds = {group: row for group, row in groups.items() if not group.endswith(" objects")}
            charts.append(draw(f"{name}-kinds", "Accuracy by group", _plot_kinds, kinds))
    return charts


def draw(name: str, title: str, plot: Callable[..., None], *data: Any) -> Chart:
    """A chart; `plot` draws the data into a matplotlib figure, its first argument."""
    import matplotlib
    from matplotlib.figure import Figure

    # the same numbers give the same file, and text stays text
    with matplotlib.rc_context({"svg.hashsalt": "cof", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11.0, 5.0), layout="constrained")
        plot(figure, *data)
        figure.suptitle(title, fontsize=10)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return Chart(name, title, svg[svg.index("<svg") :].rstrip())


def _plot_kinds(figure: Any, kinds: Numbers) -> None:
    """A panel for each group of questions, a line for each method."""
    columns = min(len(kinds), 6)
    rows = -(-len(kinds) // columns)
    figure.set_figheight(max(5.0, 2.3 * rows))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(kinds) :]:
        axes.remove()
    for axes, (kind, row) in zip(panels, kinds.items(), strict=False):
        for place, (method, at) in enumerate(row.items()):
            off = [[at["value"] - at["low"]], [at["high"] - at["value"]]]
            axes.errorbar(at["value"], -place, xerr=off, color=COLORS.get(method), **POINTS)
        axes.set_yticks(range(0, -len(row), -1), list(row))
        axes.locator_params(axis="x", nbins=3)
        axes.set_title(kind, fontsize=9)
