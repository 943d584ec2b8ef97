"""Tables I and II for people: ours, the paper's, and the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cof.eval.report.blocks import STATISTICS, headline_table
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

_HEAD = ("MME perception", "MME cognition", *list(FIGURES)[2:], "sum")
"""Titles of all columns of table I; table II has the first four, no POPE."""

_STEPS = {"plain": ("", ""), "whole": ("yes", ""), "cof": ("yes", "yes")}
"""Rows of table II: attention reweighted? at the model's own boxes?"""


def collect_paper(results: Numbers) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of both tables out of `results.json`: `ours` and the `published` ones,
    `{row: {figure: value}}`, with the sum where all seven are there."""
    ours: dict[str, dict[str, float]] = {row: {} for row in results["methods"]}
    for figure, (name, metric) in FIGURES.items():
        task = results["tasks"].get(name)
        for row in ours if task else ():
            metrics = task["metrics"][task["rules"]][row]
            if metric in metrics:
                ours[row][figure] = metrics[metric]
    both = {"ours": ours, "published": results["paper"]["published"]}
    return {
        whose: {
            row: figures | ({"sum": round(sum(figures.values()), 4)} if len(figures) == 7 else {})
            for row, figures in rows.items()
        }
        for whose, rows in both.items()
    }


def paper_blocks(results: Numbers) -> list[Block]:
    """The report; every number in it is one of `results.json`."""
    about, paper, numbers = results["about"], results["paper"], collect_paper(results)
    rules = next(iter(results["tasks"].values()))["rules"]
    text = (
        f"Model `{about['model']}` ({about['dtype']}), answers read by the rules `{rules}` "
        f"({SOURCES[rules]})."
    )
    if about["limit"] is not None:
        text += f" Only about {about['limit']} questions of each part."
    if paper["missing"]:
        text += f" Not there: {', '.join(paper['missing'])}."
    if not paper["published"]:
        text += " The paper has no figures for this model."
    first = [
        [f"{row}, {whose}", *cells]
        for row in numbers["ours"]
        if row != "whole"
        for whose, cells in _rows(numbers, row, [*FIGURES, "sum"])
    ]
    second = [
        [*steps, whose, *cells]
        for row, steps in _STEPS.items()
        for whose, cells in _rows(numbers, row, list(FIGURES)[:4])
    ]
    blocks: list[Block] = [
        Heading("Tables I and II of the paper", 1),
        Text(text),
        Items(results["methods"].items()),
        Heading("Table I: MME, MMBench (circular), POPE (F1)"),
        Table("table-1", ["row", *_HEAD], first),
        Heading("Table II: the two stages apart"),
        Table("table-2", ["reweighted", "grounded", "whose", *_HEAD[:4]], second),
    ]
    for name, task in results["tasks"].items():
        blocks += [Heading(f"{name}: intervals"), headline_table(name, task)]
    return [*blocks, Text(STATISTICS)]


def _rows(numbers: Numbers, row: str, names: Sequence[str]) -> Iterator[tuple[str, list[Cell]]]:
    """Ours; and the paper's and the difference where the paper has the row."""

    def cells(figures: Numbers, spec: str = ".1f") -> list[Cell]:
        return [Number(figures[name], spec) if name in figures else "-" for name in names]

    ours, theirs = numbers["ours"][row], numbers["published"].get(row)
    yield "ours", cells(ours)
    if theirs is not None:
        yield "paper", cells(theirs)
        gaps = {
            name: ours[name] - theirs[name] for name in names if name in ours and name in theirs
        }
        yield "difference", cells(gaps, "+.1f")
