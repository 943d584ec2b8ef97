"""A run's results as tables; every number in them is one of `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cof.eval.report.document import Block, Cell, Heading, Items, Number, Table, Text
from cof.eval.rules import SOURCES

Numbers = Mapping[str, Any]

MEANING = {
    "plain": "the model as it is",
    "whole": "every image token raised (the paper's Table II, reweight alone)",
    "cof": "looks at what its own grounder finds",
    "attention": "looks where its attention goes, at the same strength",
    "two looks": "looks at both, and keeps the answer whose first token is more probable",
    "cof, if unsure": "cof where the plain answer's confidence is at most the limit, else plain",
    "oracle": "looks at the true region",
    "random": "looks at a box of the true region's size elsewhere, the control",
}

STATISTICS = (
    "Brackets: 95 % intervals. Questions about one image, rotations of a question and an MME pair "
    "are one cluster, in intervals (shares: Wilson for the effective number of questions; others "
    "and differences: bootstrap over clusters) and in p (exact sign-flip test over clusters, not "
    "corrected for the number of tests). fixed, broken: what only the method, or only the plain "
    "model, gets right."
)


def result_blocks(results: Numbers) -> list[Block]:
    """The whole report of a run."""
    about, tasks = results["about"], results["tasks"]
    first = next(iter(tasks.values()))
    counts = "; ".join(
        f"{f'{name}: ' * (len(tasks) > 1)}{numbers['questions']} questions about "
        f"{numbers['images']} images"
        for name, numbers in tasks.items()
    )
    limit = f" (limited to about {about['limit']})" if about["limit"] is not None else ""
    weights = f"weights {about['weights']}, " if about.get("weights") else ""
    blocks: list[Block] = [
        Heading(results.get("study") or first["benchmark"], 1),
        Text(
            f"{counts}{limit}. Model `{about['model']}` ({weights}{about['dtype']}), prompt style "
            f"`{about['prompt_style']}`, answers read by the rules `{first['rules']}` "
            f"({SOURCES[first['rules']]}), greedy decoding."
        ),
    ]
    if methods := results["methods"]:
        meanings = [
            (name, f"{MEANING[name]}; `{key}`" if name in MEANING else f"`{key}`")
            for name, key in methods.items()
        ]
        blocks.append(Items(meanings))
    for name, numbers in tasks.items():
        blocks += _task_blocks(name, numbers, results)
    for each in results.get("tables", ()):  # of a study's own
        table = Table(each["name"], each["head"], each["rows"])
        blocks += [Heading(each["title"]), Text(each["text"]), table]
    return [*blocks, Text(STATISTICS)]


def _task_blocks(name: str, numbers: Numbers, results: Numbers) -> list[Block]:
    title = f"{name}: " if len(results["tasks"]) > 1 else ""
    blocks: list[Block] = []

    def add(heading: str, *more: Block) -> None:
        blocks.extend((Heading(title + heading), *more))

    if headline := [metric for metric in numbers["headline"] if metric in numbers["figures"]]:
        add("headline figures", headline_table(name, numbers))
    if numbers["groups"]:
        table = _compare(f"{name}-groups", numbers["groups"], ".3f", "n", "unparsed")
        add("accuracy by group", table)
    if figures := numbers["figures"]:
        rest = {metric: row for metric, row in figures.items() if metric not in headline}
        if rest:
            add("other figures", _compare(f"{name}-figures", rest, ".1f"))
        add("how much the rule set matters", Items(SOURCES.items()), *_spread(name, numbers))
    if numbers["grounding"]:
        add("where it looks (stage 1)", *grounding_blocks(name, numbers))
    if refused := [f"{method} {n}" for method, n in numbers["errors"].items() if n]:
        asked = f"Questions that could not be asked, and count as wrong: {', '.join(refused)}."
        blocks.append(Text(asked))
    return blocks


def headline_table(name: str, numbers: Numbers) -> Table:
    """The headline figures of every method with intervals, and differences from the plain model."""
    figures = {m: numbers["figures"][m] for m in numbers["headline"] if m in numbers["figures"]}
    return _compare(f"{name}-headline", figures, ".1f")


def _compare(name: str, figures: Numbers, spec: str, *more: str) -> Table:
    """Figures of every method (`cof.eval.figures.compare`); `more` columns as they are."""
    rows: list[list[Cell]] = []
    for figure, by_method in figures.items():
        for method, row in by_method.items():
            gap = Number.of(row, f"+{spec}", "difference") if "difference" in row else ""
            tested = (
                [row["fixed"], row["broken"], Number(row["p"], "p")] if "p" in row else [""] * 3
            )
            others = [row[column] for column in more]
            rows.append([figure, method, Number.of(row, spec), gap, *tested, *others])
    head = ["figure", "method", "value", "against plain", "fixed", "broken", "p", *more]
    return Table(name, head, rows)


def _spread(name: str, numbers: Numbers) -> list[Table]:
    """The headline figures under every rule set; the last column is the widest gap."""
    rows = []
    for method in next(iter(numbers["metrics"].values())):
        for metric in numbers["headline"]:
            values = [by_rules[method].get(metric) for by_rules in numbers["metrics"].values()]
            known = [value for value in values if value is not None]
            if known:
                gap = max(known) - min(known)
                rows.append([method, metric, *(Number(value, ".1f") for value in (*known, gap))])
    head = ["method", "figure", *numbers["metrics"], "spread"]
    return [Table(f"{name}-rules", head, rows)] if rows else []


def grounding_blocks(name: str, numbers: Numbers) -> list[Block]:
    """Stage 1 by group: how often a box is found, and how good it is."""
    figures = ("found", "centre", "mean_iou", "iou_50")
    rows: list[list[Cell]] = []
    for step, groups in numbers["grounding"].items():
        for group, row in groups.items():
            found, *rest = [Number.of(row[each], ".3f") if each in row else "" for each in figures]
            single = row["centre"]["n"] if "centre" in row else ""
            step_name = step.removeprefix("grounding ")
            rows.append([step_name, group, row["found"]["n"], found, single, *rest])
    head = ["looking at", "questions", "n", "a box found", "n, one object", "centre inside"]
    text = (
        "Centre and IoU: of questions about one known object; a missing box counts as a miss with "
        "IoU 0."
    )
    return [Table(f"{name}-stage-1", [*head, "mean IoU", "IoU >= 0.5"], rows), Text(text)]
