"""Charts of a run, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


MARKERS = "os^Dv*P"


def result_charts(results: Numbers) -> list[Chart]:
    """Accuracy by kind of question, and against cost, of each task."""
    charts = []
    for name, numbers in results["tasks"].items():
        groups = numbers["groups"]
        if groups and len(results["methods"]) <= len(COLORS):
            charts.append(draw(f"{name}-kinds", "Accuracy by group", _draw_kinds(groups)))
        if groups and numbers["costs"]:
            main = next(iter(groups))
            title = f"Accuracy ({main}) against cost"
            charts.append(draw(f"{name}-cost", title, _draw_cost(groups[main], numbers["costs"])))
    return charts


def draw(
    name: str, title: str, plot: Callable[[Any], None], size: tuple[float, float] = (6.4, 4.0)
) -> Chart:
    """A chart; `plot` draws into matplotlib's axes."""
    import matplotlib
    from matplotlib.figure import Figure

    # the same numbers give the same file, and text stays text
    with matplotlib.rc_context({"svg.hashsalt": "cof", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return Chart(name, title, svg[svg.index("<svg") :].rstrip())


def save(path: Path, title: str, plot: Callable[[Any], None]) -> None:
    """Write a chart as an SVG file."""
    path.write_text(draw(path.stem, title, plot).svg + "\n", "utf-8")


def errorbars(
    axes: Any, at: Sequence[float], points: Sequence[Numbers], label: str, **style: Any
) -> None:
    """Values with their intervals, `{value, low, high}` each."""
    middle = [point["value"] for point in points]
    below = [point["value"] - point["low"] for point in points]
    above = [point["high"] - point["value"] for point in points]
    options = {"color": COLORS.get(label), "marker": "o", "capsize": 3, "markersize": 4, **style}
    axes.errorbar(at, middle, [below, above], label=label, **options)


def _draw_kinds(groups: Numbers) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        methods = list(next(iter(groups.values())))
        for number, method in enumerate(methods):
            at = [place + 0.8 * (number / len(methods) - 0.5) for place in range(len(groups))]
            errorbars(axes, at, [row[method] for row in groups.values()], method, linestyle="")
        axes.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right", fontsize=8)
        axes.set_ylabel("accuracy")
        axes.legend(fontsize=7, ncols=2)

    return plot


def _draw_cost(group: Numbers, costs: Numbers) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        sources: dict[str, str] = {}  # of a grid: a colour for each grounder, a mark for each focus
        focuses: dict[str, str] = {}
        for method, row in group.items():
            if method not in costs or costs[method]["ratio"] is None:
                continue
            style: dict[str, Any] = {"linestyle": ""}
            source, _, focus = method.partition(" x ")
            if focus:
                style["color"] = sources.setdefault(source, f"C{len(sources)}")
                style["marker"] = focuses.setdefault(focus, MARKERS[len(focuses) % len(MARKERS)])
            errorbars(axes, [costs[method]["ratio"]], [row], method, **style)
        axes.set(xlabel="time, x plain", ylabel="accuracy")
        many = len(group) > len(COLORS)
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if many else {}
        axes.legend(fontsize=5 if many else 7, **beside)

    return plot
