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


def result_charts(results: Numbers) -> list[Chart]:
    """The charts that a run's numbers allow; of more methods than there are colours, none."""
    charts = []
    for name, numbers in results["tasks"].items():
        groups, costs = numbers["groups"], numbers["costs"]
        if not groups or len(results["methods"]) > len(COLORS):
            continue
        main = next(iter(groups))
        counts = {group: re.fullmatch(r"(?:(.+), )?(\d+) objects", group) for group in groups}
        kinds = {group: groups[group] for group, count in counts.items() if not count}
        levels = {
            count[2]: groups[group]
            for group, count in counts.items()
            if count and count[1] == (None if main == "all" else main)
        }
        charts.append(draw(f"{name}-kinds", "Accuracy by group", _plot_groups, kinds))
        if len(levels) > 1:
            title = f"Accuracy against the number of objects ({main})"
            charts.append(draw(f"{name}-objects", title, _plot_groups, levels, joined=True))
        if costs:
            title = f"Accuracy ({main}) against cost"
            charts.append(draw(f"{name}-cost", title, _plot_costs, groups[main], costs))
    return charts


def draw(name: str, title: str, plot: Callable[..., None], *data: Any, **how: Any) -> Chart:
    """A chart; `plot` draws the data into matplotlib's axes, its first argument."""
    import matplotlib
    from matplotlib.figure import Figure

    # the same numbers give the same file, and text stays text
    with matplotlib.rc_context({"svg.hashsalt": "cof", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        plot(axes, *data, **how)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return Chart(name, title, svg[svg.index("<svg") :].rstrip())


def errorbars(
    axes: Any, at: Sequence[float], points: Sequence[Numbers], label: str, **style: Any
) -> None:
    """Values with their intervals, `{value, low, high}` each."""
    middle = [point["value"] for point in points]
    below = [point["value"] - point["low"] for point in points]
    above = [point["high"] - point["value"] for point in points]
    options = {"color": COLORS.get(label), "marker": "o", "capsize": 3, "markersize": 4, **style}
    axes.errorbar(at, middle, [below, above], label=label, **options)


def _plot_groups(axes: Any, groups: Numbers, joined: bool = False) -> None:
    """Every method beside one another, or joined by lines over numbers of objects."""
    methods = list(next(iter(groups.values())))
    for number, method in enumerate(methods):
        shift = (0.2 if joined else 0.8) * (number / len(methods) - 0.5)
        at = [place + shift for place in range(len(groups))]
        points = [row[method] for row in groups.values()]
        errorbars(axes, at, points, method, linestyle="-" if joined else "")
    slanted = {} if joined else {"rotation": 30, "ha": "right", "fontsize": 8}
    axes.set_xticks(range(len(groups)), list(groups), **slanted)
    axes.set(xlabel="objects in the scene" if joined else "", ylabel="accuracy")
    axes.legend(fontsize=7, ncols=2)


def _plot_costs(axes: Any, group: Numbers, costs: Numbers) -> None:
    for method, row in group.items():
        if method in costs and costs[method]["ratio"] is not None:
            errorbars(axes, [costs[method]["ratio"]], [row], method, linestyle="")
    axes.set(xlabel="time, x plain", ylabel="accuracy")
    axes.legend(fontsize=7)
