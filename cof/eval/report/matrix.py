"""The matrix of grounders and focuses for people: tables, and accuracy against cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cof.eval.crossing import PLAIN
from cof.eval.report.cells import Numbers, accuracy_cell, difference_cells
from cof.eval.report.document import Block, Cell, Heading, Number, Table, Text, markdown
from cof.eval.report.plots import draw
from cof.eval.store import write_atomically
from cof.tiny.scenes import SIDE

_COLORS = ("#c0392b", "#8e44ad", "#2980b9", "#27ae60", "#b08a2e", "#16a085", "#7f8c8d")
_MARKERS = ("o", "s", "^", "D", "v", "*", "x", "P", "<", ">")


def write_matrix(results: Numbers, out: Path) -> None:
    """`results.json`, `table.md` and `cost.png` in a folder; no plot without matplotlib."""
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "table.md", markdown(blocks(results)))
    draw(lambda: plot(results, out / "cost.png"), "cost.png")


def blocks(results: Numbers) -> list[Block]:
    """The whole report; every number in it is one of `results`."""
    about, plan, doses = results["about"], results["plan"], results["doses"]
    chosen = ", ".join(f"{focus}: {_dose(dose)}" for focus, dose in doses["chosen"].items())
    return [
        Heading("Where to look, crossed with how to look there", 1),
        Text(
            f"{results['questions']} questions about one small detail of {results['images']} test "
            f"scenes (details at {SIDE / plan['side']:.2g} of their trained size), model "
            f"`{about['model']}` (weights {about['weights']}, {about['dtype']}), the same for all. "
            f"Doses chosen on {doses['n']} validation questions, then frozen: {chosen}; scope "
            f"`{about['settings']['scope']}`."
        ),
        Heading("Accuracy, and how much above the plain model"),
        accuracies(results),
        Heading("Every cell"),
        _cells(results),
        Text(
            "**oracle**: the true box; **random**: a box of its size elsewhere, the control. "
            "Brackets: 95 % intervals (accuracy: Wilson; difference: bootstrap over scenes; cost: "
            "bootstrap over batches). fixed, broken: questions that only the cell, or only the "
            "plain model, answers rightly; p: McNemar's exact test, not corrected for the number "
            "of cells. Cost: seconds over those of the plain answer in the same run, stage 1 and "
            "the encoding of the picture with it (an edited picture is encoded again). Passes: "
            "through the decoder, for a whole batch."
        ),
        Heading("Where the grounders look"),
        _grounding(results),
        Heading("Doses tried on validation scenes"),
        _doses(results),
        Text(
            f"Batches of {about['batch_size']} on {about['device']}; "
            + ", ".join(f"{name} {value}" for name, value in about["versions"].items())
            + "."
        ),
    ]


def accuracies(results: Numbers) -> Table:
    """One row for each grounder, one column for each focus."""
    plan, cells = results["plan"], results["cells"]
    rows: list[list[Cell]] = [
        [source, *(_against(cells, f"{source} x {focus}") for focus in plan["focuses"])]
        for source in plan["sources"]
    ]
    plain = Number(cells[PLAIN]["accuracy"])
    return Table(
        "matrix",
        ["looking at", *plan["focuses"]],
        [["(plain)", *[plain] * len(plan["focuses"])], *rows],
    )


def _against(cells: Mapping[str, Any], name: str) -> str:
    if name not in cells:
        return ""
    row = cells[name]
    return f"{row['accuracy']:.3f} ({row['difference']:+.3f})"


def _cells(results: Numbers) -> Table:
    rows: list[list[Cell]] = []
    for name, row in results["cells"].items():
        against: list[Cell] = ["", "", "", ""] if name == PLAIN else list(difference_cells(row))
        passes = "" if row["passes"] is None else Number(row["passes"], ".1f")
        spent = Number(row["cost"], ".2f", row["cost_low"], row["cost_high"])
        where = [row.get("grounder", PLAIN), row.get("focus", "")]
        rows.append([*where, accuracy_cell(row), *against, spent, passes])
    head = ["looking at", "focus", "accuracy", "against plain", "fixed", "broken", "p"]
    return Table("cells", [*head, "x plain", "passes"], rows)


def _grounding(results: Numbers) -> Table:
    rows: list[list[Cell]] = [
        [
            source,
            row["n_single"],
            Number(row["well_formed"]),
            Number(row["centre_hit"], ".3f", row["centre_hit_low"], row["centre_hit_high"]),
            Number(row["mean_iou"]),
        ]
        for source, row in results["grounding"].items()
    ]
    head = ["grounder", "n, one object", "a box found", "centre inside", "mean IoU"]
    return Table("grounding", head, rows)


def _doses(results: Numbers) -> Table:
    doses = results["doses"]
    n = doses["n"]
    rows: list[list[Cell]] = [["plain", "", Number(doses["plain"] / n)]]
    rows += [[row["focus"], _dose(row), Number(row["right"] / n)] for row in doses["tried"]]
    return Table("doses", ["focus", "dose", "accuracy"], rows)


def _dose(row: Mapping[str, Any]) -> str:
    if "strength" in row:
        return f"lambda {row['strength']:g}"
    return f"alpha {row['expand']:g}"


def plot(results: Numbers, path: Path) -> None:
    """Accuracy against cost, one point for each cell.

    Needs matplotlib (the extra `viz`).
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    plan, cells = results["plan"], results["cells"]
    colors = dict(zip(plan["focuses"], _COLORS, strict=False))
    markers = dict(zip(plan["sources"], _MARKERS, strict=False))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    plain = cells[PLAIN]
    axes.axhspan(plain["accuracy_low"], plain["accuracy_high"], color="#444444", alpha=0.08, lw=0)
    axes.axhline(plain["accuracy"], color="#444444", lw=1)
    axes.plot([1.0], [plain["accuracy"]], "ko")
    for row in cells.values():
        if "focus" not in row:
            continue
        axes.errorbar(
            [row["cost"]],
            [row["accuracy"]],
            xerr=_bars(row, "cost"),
            yerr=_bars(row, "accuracy"),
            fmt=markers[row["grounder"]],
            color=colors[row["focus"]],
            ms=6,
            lw=0.7,
            alpha=0.85,
        )
    axes.set(
        xlabel="seconds over those of a plain answer",
        ylabel="accuracy",
        title=f"{results['questions']} questions about small details",
        xscale="log",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3, which="both")
    by_focus = [Line2D([], [], color=color, lw=3, label=name) for name, color in colors.items()]
    by_source = [
        Line2D([], [], color="#555555", marker=marker, ls="", label=name)
        for name, marker in markers.items()
    ]
    beside: dict[str, Any] = {
        "loc": "upper left",
        "fontsize": 8,
        "frameon": False,
        "alignment": "left",
    }
    plain_model = Line2D([], [], color="k", marker="o", label="plain")
    axes.add_artist(axes.legend(handles=[plain_model], bbox_to_anchor=(1.0, 1.0), **beside))
    axes.add_artist(
        axes.legend(handles=by_focus, title="how to look", bbox_to_anchor=(1.0, 0.9), **beside)
    )
    axes.legend(handles=by_source, title="where", bbox_to_anchor=(1.0, 0.55), **beside)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(row: Mapping[str, Any], name: str) -> list[list[float]]:
    value = row[name]
    return [[max(0.0, value - row[f"{name}_low"])], [max(0.0, row[f"{name}_high"] - value)]]
