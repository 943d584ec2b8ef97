"""Charts of the studies: every method is a line with its name beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cof.eval.report.charts import COLORS, POINTS, draw
from cof.eval.report.document import Chart

Numbers = Mapping[str, Any]


def draw_objects(results: Numbers) -> Chart:
    """Accuracy on small details against the number of objects, out of a study's `results.json`."""
    groups = results["tasks"]["scenes"]["groups"]
    begin, end = "fine, ", " objects"
    levels = {
        group.removeprefix(begin).removesuffix(end): row
        for group, row in groups.items()
        if group.startswith(begin)
    }
    title = "Accuracy against the number of objects (fine)"
    return draw("objects", title, _plot_levels, levels)


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


def _plot_levels(figure: Any, levels: Numbers) -> None:
    """Every method, joined by a line over the numbers of objects."""
    axes, methods = figure.subplots(), list(next(iter(levels.values())))
    for number, method in enumerate(methods):
        at = [place + 0.2 * (number / len(methods) - 0.5) for place in range(len(levels))]
        errorbars(axes, at, [row[method] for row in levels.values()], method)
    axes.set_xticks(range(len(levels)), list(levels))
    axes.set(xlabel="objects in the scene", ylabel="accuracy")
    name_lines(axes)
