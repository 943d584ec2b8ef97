"""Charts of a run, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cof.eval.report.document import Chart

Numbers = Mapping[str, Any]

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
        if not groups or len(results["methods"]) > len(COLORS):
            continue
        main = next(iter(groups))
        begin = "" if main == "all" else f"{main}, "
        kinds = {group: row for group, row in groups.items() if not group.endswith(" objects")}
        levels = {
            group.removeprefix(begin).removesuffix(" objects"): row
            for group, row in groups.items()
            if re.fullmatch(rf"{re.escape(begin)}\d+ objects", group)
        }
        charts.append(draw(f"{name}-kinds", "Accuracy by group", _plot_kinds, kinds))
        if len(levels) > 1:
            title = f"Accuracy against the number of objects ({main})"
            charts.append(draw(f"{name}-objects", title, _plot_levels, levels))
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
            name_lines(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return Chart(name, title, svg[svg.index("<svg") :].rstrip())


def errorbars(axes: Any, at: Sequence[float], points: Sequence[Numbers], method: str) -> None:
    """A method's values with their intervals, `{value, low, high}` each, above their places."""
    values = [point["value"] for point in points]
    off = [[p["value"] - p["low"] for p in points], [p["high"] - p["value"] for p in points]]
    axes.errorbar(at, values, off, label=method, color=COLORS.get(method), **POINTS)


def name_lines(axes: Any, gap: float = 0.05) -> None:
    """Name what is drawn, right of the axes and joined to its last point; `gap` is the least height
    between two names, as a share of the axes'."""
    lines, labels = axes.get_legend_handles_labels()
    ends = [(*line[0].get_xydata()[-1], line[0].get_color()) for line in lines]
    low, high = axes.get_ylim()
    height = 1.0  # of the name above
    order = sorted(zip(ends, labels, strict=True), key=lambda each: each[0][1])
    for below, ((x, y, color), label) in reversed([*enumerate(order)]):
        height = max(min((y - low) / (high - low), height - gap), gap * below)
        arrow = {"arrowstyle": "-", "color": color, "alpha": 0.4, "relpos": (0.0, 0.5)}
        style = {"va": "center", "color": color, "fontsize": 9, "arrowprops": arrow}
        axes.annotate(label, (x, y), (1.02, height), textcoords="axes fraction", **style)


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


def _plot_levels(figure: Any, levels: Numbers) -> None:
    """Every method, joined by a line over the numbers of objects."""
    axes, methods = figure.subplots(), list(next(iter(levels.values())))
    for number, method in enumerate(methods):
        at = [place + 0.2 * (number / len(methods) - 0.5) for place in range(len(levels))]
        errorbars(axes, at, [row[method] for row in levels.values()], method)
    axes.set_xticks(range(len(levels)), list(levels))
    axes.set(xlabel="objects in the scene", ylabel="accuracy")
