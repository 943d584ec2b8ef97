"""A study of the embedded benchmark for people: tables, and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cof.eval.report.cells import Numbers, accuracy_cell, centre_cell, difference_cells
from cof.eval.report.document import Block, Cell, Heading, Items, Number, Table, Text, markdown
from cof.eval.report.plots import draw
from cof.eval.store import write_atomically
from cof.tiny.scenes import SIDE

_MAIN = ("plain", "whole", "cof", "cof (adaptive)", "oracle", "random")

_CURVES = {
    "cof": "CoF, own boxes",
    "oracle": "oracle boxes",
    "whole": "all image tokens",
    "random": "random boxes",
}
_COLORS = {
    "plain": "#444444",
    "cof": "#c0392b",
    "oracle": "#27ae60",
    "whole": "#2980b9",
    "random": "#b08a2e",
}


def write_report(results: Numbers, out: Path) -> None:
    """`results.json`, `table.md` and `effect.png` in a folder; no plot without matplotlib."""
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "table.md", markdown(blocks(results)))
    draw(lambda: plot(results, out / "effect.png"), "effect.png")


def blocks(results: Numbers) -> list[Block]:
    """The whole report; every number in it is one of `results`."""
    about, choice, test = results["about"], results["choice"], results["test"]
    chosen = choice["cof"]
    groups = test["groups"]
    fine = [name for name in groups if name.startswith("fine")]
    every = [name for name in groups if name.startswith("all")]
    kinds = [name for name in groups if name not in fine + every]
    own = [f"{name} (own lambda)" for name in choice["own_lambda"]]
    return [
        Heading(title(results), 1),
        Text(
            f"{test['questions']} test questions about {test['images']} scenes, model "
            f"`{about['model']}` (weights {about['weights']}, {about['dtype']}), greedy decoding. "
            "Settings chosen on validation scenes, then frozen: "
            f"lambda {chosen['strength']:g}, alpha {chosen['expand']:g}, scope `{chosen['scope']}`."
        ),
        Items(
            [
                ("plain", "the model as it is"),
                ("whole", "every image token reweighted"),
                ("cof", "the model's own boxes"),
                (
                    "cof (adaptive)",
                    f"under a rule, fitted on validation too: {choice['adaptive']['sentence']}; "
                    "the plain answer elsewhere",
                ),
                ("oracle", "the true region"),
                ("random", "a box of the same size elsewhere (control)"),
            ]
        ),
        Text(
            "Brackets: 95 % intervals, Wilson's for accuracies and a bootstrap over images for "
            "differences. fixed/broken: questions that only the method, or only the plain model, "
            "answers rightly; p: McNemar's exact test, not corrected for the number of tests."
        ),
        Heading("Fine details (digit, letter, color)"),
        _accuracies("fine", groups, fine),
        _differences("fine-gain", groups, fine),
        Heading("All questions"),
        _accuracies("all", groups, every),
        _differences("all-gain", groups, every),
        Heading("By kind of question"),
        Text(
            "Existence and count tell the oracle something that nobody could know: whether there "
            "is a box at all. They are no part of the fine details above."
        ),
        _accuracies("kinds", groups, kinds),
        _differences("kinds-gain", groups, kinds, ("cof", "oracle")),
        Heading("Each source of boxes with its own best lambda"),
        Text(
            "Lambda chosen on validation for that source alone, alpha and scope as above: "
            + ", ".join(f"{name} {value:g}" for name, value in choice["own_lambda"].items())
            + "."
        ),
        _differences("own-lambda", groups, [fine[0], "all"] if fine else ["all"], own),
        Heading("Where the model looks (stage 1, running freely)"),
        Text(
            "Centre, IoU: of questions about one object; a missing box counts as a miss with IoU 0."
        ),
        _grounding(test["grounding"]),
        Heading("Right or wrong answers, right or wrong boxes (fine details)"),
        Text(
            "A box is right when its centre is in the object asked about. Numbers: how many of the "
            "cell's questions each method answers rightly."
        ),
        _two_by_two(test["two_by_two"]),
        Heading("Settings tried on the validation split"),
        _validation(choice["validation"]),
        Heading("Cost"),
        *_cost(results),
    ]


def title(results: Numbers) -> str:
    """Of the report."""
    return (
        f"The embedded benchmark, details at {SIDE / results['plan']['side']:.2g} of their "
        "trained size"
    )


def _accuracies(name: str, groups: Numbers, names: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for group in names:
        chosen = [groups[group][method] for method in _MAIN]
        unparsed = "/".join(str(row["unparsed"]) for row in chosen)
        rows.append([group, chosen[0]["n"], *map(accuracy_cell, chosen), unparsed])
    return Table(name, ["accuracy", "n", *_MAIN, "unparsed"], rows)


def _differences(
    name: str, groups: Numbers, names: Sequence[str], methods: Sequence[str] = _MAIN[1:]
) -> Table:
    rows: list[list[Cell]] = [
        [group, method, *difference_cells(groups[group][method])]
        for group in names
        for method in methods
    ]
    return Table(name, ["against plain", "method", "difference", "fixed", "broken", "p"], rows)


def _grounding(groups: Numbers) -> Table:
    rows: list[list[Cell]] = [
        [
            name,
            row["n"],
            Number(row["well_formed"]),
            row["n_single"],
            centre_cell(row),
            Number(row["mean_iou"]),
            Number(row["iou_50"]),
        ]
        for name, row in groups.items()
    ]
    head = ["questions", "n", "well-formed", "n, one object", "centre inside", "mean IoU"]
    return Table("stage-1", [*head, "IoU >= 0.5"], rows)


def _two_by_two(tables: Numbers) -> Table:
    rows: list[list[Cell]] = [
        [group, name, cell["n"], *(cell["right"][method] for method in _MAIN)]
        for group, cells in tables.items()
        for name, cell in cells.items()
    ]
    return Table("two-by-two", ["questions", "cell", "n", *_MAIN], rows)


def _validation(cells: Sequence[Numbers]) -> Table:
    rows: list[list[Cell]] = []
    for cell in cells:
        free = cell["where"] == "plain"
        settings = ["", "", ""] if free else _shown(cell)
        fine = Number(cell["right_fine"] / cell["n_fine"]) if cell["n_fine"] else ""
        rows.append([cell["where"], *settings, Number(cell["right"] / cell["n"]), fine])
    return Table("validation", ["method", "lambda", "alpha", "scope", "all", "fine details"], rows)


def _shown(cell: Numbers) -> list[str]:
    alpha = "" if cell["where"] == "whole" else f"{cell['expand']:g}"
    return [f"{cell['strength']:g}", alpha, cell["scope"]]


def _cost(results: Numbers) -> list[Block]:
    n = results["test"]["questions"]
    rows: list[list[Cell]] = [
        [name, Number(1000 * s / n, ".1f")] for name, s in results["seconds"]["test"].items()
    ]
    versions = ", ".join(f"{name} {value}" for name, value in results["about"]["versions"].items())
    return [
        Table("seconds", ["test split", "ms a question"], rows),
        Text(
            "Pictures are encoded once for all methods; the decoder's state after a picture is "
            "reused as far as the bias allows. "
            f"Batches of {results['about']['batch_size']} on {results['about']['device']}; "
            f"{versions}."
        ),
    ]


def plot(results: Numbers, path: Path) -> None:
    """Accuracy on fine details against num_objects, and gain against lambda on validation.

    Needs matplotlib (the extra `viz`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _accuracy_axes(left, results)
    _lambda_axes(right, results["choice"])
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _accuracy_axes(axes: Any, results: Numbers) -> None:
    groups = results["test"]["groups"]
    levels = [n for n in results["plan"]["num_objects"] if f"fine, {n} objects" in groups]
    for number, (method, color) in enumerate(_COLORS.items()):
        rows = [groups[f"fine, {n} objects"][method] for n in levels]
        middle = [row["accuracy"] for row in rows]
        below = [row["accuracy"] - row["accuracy_low"] for row in rows]
        above = [row["accuracy_high"] - row["accuracy"] for row in rows]
        at = [n + 0.15 * (number - 2) for n in levels]  # side by side, so that bars are seen
        label = _CURVES.get(method, method)
        axes.errorbar(at, middle, [below, above], color=color, marker="o", capsize=3, label=label)
    axes.set(xlabel="objects in the scene", ylabel="accuracy", title="Fine details, test scenes")
    axes.set_xticks(levels)
    axes.grid(alpha=0.3)
    axes.legend()


def _lambda_axes(axes: Any, choice: Numbers) -> None:
    cells, chosen = choice["validation"], choice["cof"]
    plain = next(cell for cell in cells if cell["where"] == "plain")
    for where, label in _CURVES.items():
        points: dict[float, float] = {}
        for cell in cells:
            same = all(cell[name] == chosen[name] for name in ("expand", "scope"))
            if cell["where"] == where and same:
                points[cell["strength"]] = (cell["right"] - plain["right"]) / cell["n"]
        axes.plot(
            list(points), list(points.values()), marker="o", color=_COLORS[where], label=label
        )
    axes.axhline(0, color=_COLORS["plain"], linewidth=1)
    axes.axvline(chosen["strength"], color="#999999", linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    title = f"All questions, validation (alpha {chosen['expand']:g}, scope {chosen['scope']})"
    axes.set(xlabel="lambda", ylabel="accuracy gained over plain", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
