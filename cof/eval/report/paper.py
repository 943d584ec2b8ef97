"""Tables I and II for people: ours, the paper's, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cof.eval.report.blocks import STATISTICS, figure_table
from cof.eval.report.document import Block, Cell, Heading, Items, Number, Table, Text
from cof.eval.rules import SOURCES

Numbers = Mapping[str, Any]

FIGURES: Mapping[str, tuple[str, str]] = {
    "MME-P": ("mme", "perception"),
    "MME-C": ("mme", "cognition"),
    "MMBench dev": ("mmbench-dev", "circular"),
    "MMBench test": ("mmbench-test", "circular"),
    "POPE random": ("pope", "random f1"),
    "POPE popular": ("pope", "popular f1"),
    "POPE adversarial": ("pope", "adversarial f1"),
}
"""Columns of table I but the sum: in which part of the data, and what it is called there."""

SHOWN = (*FIGURES, "sum")
"""Columns of table I."""

ABLATED = SHOWN[:4]
"""Columns of table II, which has no POPE."""

_OVER = (("MME", 2), ("MMBench", 2), ("POPE", 3), ("", 1))
_HEAD = ("perception", "cognition", "dev", "test", "random", "popular", "adversarial", "sum")
"""`SHOWN` under the titles of `_OVER`."""

_STEPS = {"plain": ("", ""), "whole": ("yes", ""), "cof": ("yes", "yes")}
"""Rows of table II: attention reweighted? at the model's own boxes?"""


def collect_paper(
    tasks: Mapping[str, Mapping[str, Any]],
    methods: Sequence[str],
    published: Mapping[str, Mapping[str, float]],
    missing: Sequence[str],
) -> dict[str, Any]:
    """The tables' figures out of the results of the parts.

    Args:
        tasks: the results of each part that is there.
        methods: names of the rows.
        published: the paper's figures.
        missing: parts that are not there.

    Returns:
        `ours` and `published`, `{row: {figure: value}}`, and `missing`.
    """
    ours: dict[str, dict[str, float]] = {row: {} for row in methods}
    for figure, (name, metric) in FIGURES.items():
        for row in methods if name in tasks else ():
            metrics = tasks[name]["metrics"][tasks[name]["rules"]][row]
            if metric in metrics:
                ours[row][figure] = metrics[metric]
    return {
        "ours": {row: _with_sum(figures) for row, figures in ours.items()},
        "published": {row: _with_sum(figures) for row, figures in published.items()},
        "missing": list(missing),
    }


def _with_sum(figures: Mapping[str, float]) -> dict[str, float]:
    """With their sum, as the paper has it, if all seven are there."""
    whole = {"sum": round(sum(figures.values()), 4)} if len(figures) == len(FIGURES) else {}
    return {**figures, **whole}


def paper_blocks(results: Numbers) -> list[Block]:
    """The report; every number in it is one of `results.json`."""
    about = results["about"]
    numbers = collect_paper(
        results["tasks"],
        list(results["methods"]),
        results["paper"]["published"],
        results["paper"]["missing"],
    )
    limit = (
        "" if about["limit"] is None else f" Only about {about['limit']} questions of each part."
    )
    missing = f" Not there: {', '.join(numbers['missing'])}." if numbers["missing"] else ""
    own = "" if numbers["published"] else " The paper has no figures for this model."
    model, rules = about["model"], next(iter(results["tasks"].values()))["rules"]
    return [
        Heading("Tables I and II of the paper", 1),
        Text(
            f"Model `{model}` ({about['dtype']}), answers read by the rules `{rules}` "
            f"({SOURCES[rules]}).{limit}{missing}{own}"
        ),
        Items(list(results["methods"].items())),
        Heading("Table I: MME, MMBench (circular), POPE (F1)"),
        Table(
            "table-1",
            ["row", *_HEAD],
            [
                [f"{row}, {whose}", *cells]
                for row in numbers["ours"]
                if row != "whole"
                for whose, cells in _rows(numbers, row, SHOWN)
            ],
            _OVER,
            f"MME, MMBench (circular) and POPE (F1) of {model}.",
        ),
        Heading("Table II: the two stages apart"),
        Table(
            "table-2",
            ["reweighted", "grounded", "whose", *_HEAD[:4]],
            [
                [*steps, whose, *cells]
                for row, steps in _STEPS.items()
                for whose, cells in _rows(numbers, row, ABLATED)
            ],
            (("", 2), *_OVER[:2]),
            f"The two stages apart: attention reweighted over all image tokens, and in the "
            f"model's own boxes ({model}).",
        ),
        *(
            block
            for name, task in results["tasks"].items()
            for block in (
                Heading(f"{name}: intervals"),
                figure_table(
                    f"{name}-headline",
                    task,
                    [metric for metric in task["headline"] if metric in task["figures"]],
                ),
            )
        ),
        Text(STATISTICS),
    ]


def _rows(numbers: Numbers, row: str, names: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Ours; and the paper's and the difference where the paper has the row."""
    ours, theirs = numbers["ours"][row], numbers["published"].get(row)
    if theirs is None:
        return [("ours", _cells(ours, names))]
    gaps = {name: ours[name] - theirs[name] for name in names if name in ours and name in theirs}
    return [
        ("ours", _cells(ours, names)),
        ("paper", _cells(theirs, names)),
        ("difference", _cells(gaps, names, "+.1f")),
    ]


def _cells(figures: Mapping[str, float], names: Sequence[str], spec: str = ".1f") -> list[Cell]:
    return [Number(figures[name], spec) if name in figures else "-" for name in names]
