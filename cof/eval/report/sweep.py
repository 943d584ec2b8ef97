"""A sweep as Markdown and a plot; every number in them is one of `sweep.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cof.eval.report.plots import draw
from cof.eval.report.tables import table
from cof.eval.store import write_atomically

Numbers = Mapping[str, Any]

_COLORS = ("#2980b9", "#c0392b", "#27ae60", "#b08a2e", "#8e44ad", "#16a085")
_PLAIN = "#444444"
_DROPPED = "#bbbbbb"


def write_report(out: Path) -> None:
    """`sweep.md` and `sweep.png` from the `sweep.json` in a folder; no plot without matplotlib."""
    numbers = json.loads((out / "sweep.json").read_text("utf-8"))
    write_atomically(out / "sweep.md", markdown(numbers))
    draw(lambda: plot(numbers, out / "sweep.png"), "sweep.png")


def markdown(numbers: Numbers) -> str:
    """The choice, the rungs, and every setting as far as it came."""
    about, rungs = numbers["about"], numbers["rungs"]
    last, chosen = rungs[-1], numbers["settings"][numbers["chosen"]]
    n = last["questions"]
    gain = (last["right"][numbers["chosen"]] - last["plain"]) / n
    better = "" if gain > 0 else " **No setting answers more of them than the plain model.**"
    rows = [
        [
            str(number),
            str(rung["questions"]),
            str(len(rung["right"])),
            f"{rung['plain'] / rung['questions']:.3f}",
            f"{max(rung['right'].values()) / rung['questions']:.3f}",
            f"{min(rung['right'].values()) / rung['questions']:.3f}",
        ]
        for number, rung in enumerate(rungs, start=1)
    ]
    reached = _reached(numbers)
    order = sorted(
        reached, key=lambda key: (-reached[key][0], -reached[key][1], list(reached).index(key))
    )
    cells = [
        [*_swept(numbers["settings"][key]), str(reached[key][0]), f"{reached[key][1]:+.3f}"]
        for key in order
    ]
    parts = [
        f"# Settings chosen on {n} questions of {about['benchmark']}",
        f"Model `{about['model']}` ({about['dtype']}), part `{about['part']}`, answers read by the "
        f"rules `{about['rules']}`{_of(about['kinds'])}.",
        f"Chosen: {', '.join(f'{name} {cell}' for name, cell in _named(chosen))}; accuracy "
        f"{last['right'][numbers['chosen']] / n:.3f}, plain {last['plain'] / n:.3f}.{better} "
        "On questions that chose it, a setting looks better than it is: measure it on others.",
        "## Rungs",
        table(["rung", "questions", "settings", "plain", "best", "worst"], rows),
        "## Every setting",
        "Its gain in accuracy over the plain model on all questions that it was asked.",
        table(["lambda", "alpha", "scope", "layers", "heads", "questions", "gain"], cells),
    ]
    return "\n\n".join(parts) + "\n"


def plot(numbers: Numbers, path: Path) -> None:
    """Gain over lambda, a line for each alpha and scope and a panel for each choice of layers and
    heads; and every setting's gain from rung to rung.

    Needs matplotlib (the extra `viz`).
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(_panel(row) for row in numbers["settings"].values()))
    figure = Figure(figsize=(4.2 * (len(panels) + 1), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
    for panel, of_panel in zip(panels, axes, strict=False):
        _lambda_axes(of_panel, numbers, panel)
    _rung_axes(axes[-1], numbers)
    axes[0].set_ylabel("accuracy gained over the plain model")
    figure.savefig(path, dpi=120)


def _lambda_axes(axes: Any, numbers: Numbers, panel: tuple[str, str]) -> None:
    settings, reached = numbers["settings"], _reached(numbers)
    first = numbers["rungs"][0]["questions"]
    here = [key for key in settings if _panel(settings[key]) == panel]
    lines = list(dict.fromkeys((settings[k]["expand"], settings[k]["scope"]) for k in here))
    alphas = list(dict.fromkeys(alpha for alpha, _ in lines))
    for alpha, scope in lines:
        of_line = [
            k for k in here if (settings[k]["expand"], settings[k]["scope"]) == (alpha, scope)
        ]
        axes.plot(
            [settings[key]["strength"] for key in of_line],
            [reached[key][1] for key in of_line],
            color=_COLORS[alphas.index(alpha) % len(_COLORS)],
            linestyle="-" if scope == "all" else "--",
            linewidth=1,
            label=f"alpha {alpha:g}, {scope}",
        )
    for key in here:
        questions, gain = reached[key]
        color = _COLORS[alphas.index(settings[key]["expand"]) % len(_COLORS)]
        axes.scatter(
            [settings[key]["strength"]], [gain], s=12 * questions / first, color=color, alpha=0.7
        )
    if numbers["chosen"] in here:
        axes.axvline(
            settings[numbers["chosen"]]["strength"], color=_PLAIN, linewidth=1, linestyle=":"
        )
    axes.axhline(0, color=_PLAIN, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    layers, heads = panel
    title = f"layers {layers}" + (f", heads {heads}" if heads != "all" else "")
    axes.set(xlabel="lambda (dots: by questions asked)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _rung_axes(axes: Any, numbers: Numbers) -> None:
    rungs = numbers["rungs"]
    for key in numbers["settings"]:
        through = [rung for rung in rungs if key in rung["right"]]
        gains = [(rung["right"][key] - rung["plain"]) / rung["questions"] for rung in through]
        stayed = len(through) == len(rungs)
        chosen = key == numbers["chosen"]
        axes.plot(
            [rung["questions"] for rung in through],
            gains,
            color=_COLORS[1] if chosen else _COLORS[0] if stayed else _DROPPED,
            linewidth=2 if chosen else 0.8,
            marker="o",
            markersize=5 if chosen else 3,
            zorder=3 if chosen else 2 if stayed else 1,
        )
    axes.axhline(0, color=_PLAIN, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([rung["questions"] for rung in rungs])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set(xlabel="validation questions", title="rungs (red: chosen, grey: dropped)")
    axes.grid(alpha=0.3)


def _reached(numbers: Numbers) -> dict[str, tuple[int, float]]:
    """Each setting's questions, and its gain over the plain model on them."""
    found: dict[str, tuple[int, float]] = {}
    for rung in numbers["rungs"]:
        for key, right in rung["right"].items():
            found[key] = rung["questions"], (right - rung["plain"]) / rung["questions"]
    return {key: found[key] for key in numbers["settings"]}


def _named(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(zip(("lambda", "alpha", "scope", "layers", "heads"), _swept(row), strict=True))


def _swept(row: Mapping[str, Any]) -> list[str]:
    numbers = [f"{row[name]:g}" for name in ("strength", "expand")]
    return [*numbers, row["scope"], *_panel(row)]


def _panel(row: Mapping[str, Any]) -> tuple[str, str]:
    return spans(row["layers"]), spans(row["heads"])


def spans(indices: Sequence[int] | None) -> str:
    """As on the command line.

    >>> spans((0, 1, 2, 5)), spans(None)
    ('0-2,5', 'all')
    """
    if indices is None:
        return "all"
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _of(kinds: Sequence[str]) -> str:
    return f"; questions about {', '.join(kinds)}" if kinds else ""
