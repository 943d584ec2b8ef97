"""From replies to numbers: everything a report shows of one task, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cof.eval.data.base import Benchmark
from cof.eval.examples import Example
from cof.eval.figures import changed_units, compare, find_clusters, ratio, share
from cof.eval.methods import Method
from cof.eval.rules import RULES
from cof.eval.store import Record, Replies, is_grounding
from cof.geometry.boxes import FULL, centre, contains_point, iou, union

Answers = Mapping[str, Mapping[str, Record]]
"""Name of a method -> id of a question -> its answer."""


def collect_results(
    task: Benchmark, methods: Mapping[str, Method], replies: Replies, *, seed: int
) -> dict[str, Any]:
    """All numbers of one task, whose data is not read, by the names of the methods.

    Raises:
        CofError: a method has not answered every question.
    """
    replies = replies.score(task.score)
    examples = replies.examples
    answers = replies.answers({name: method.key for name, method in methods.items()})
    known = [example for example in examples if example.answer]
    texts = {
        name: {id: None if record.error else record.text for id, record in records.items()}
        for name, records in answers.items()
    }
    figures = {
        rules: {name: task.figures(examples, texts[name], rules) for name in answers}
        for rules in RULES
    }
    asked = {name: [records[e.id] for e in examples] for name, records in answers.items()}
    quoted = figures[task.rules]
    names = dict.fromkeys(metric for by_metric in quoted.values() for metric in by_metric)
    return {
        "benchmark": task.name,
        "rules": task.rules,
        "prompt_style": task.prompt_style,
        "headline": [m for h in task.headline for m in names if m.rpartition(": ")[2] == h],
        "questions": len(examples),
        "images": len({str(example.image) for example in examples}),
        "shard": list(task.shard),
        "figures": {
            metric: compare({name: each[metric] for name, each in quoted.items()}, seed=seed)
            for metric in names
        },
        "metrics": {
            rules: {
                name: {metric: round(figure.value, 4) for metric, figure in each.items()}
                for name, each in by_method.items()
            }
            for rules, by_method in figures.items()
        },
        "groups": _groups(task, answers, known, seed),
        "changed": _changed(answers, known),
        "unparsed": {name: sum(r.parsed is None for r in each) for name, each in asked.items()},
        "errors": {name: sum(r.error is not None for r in each) for name, each in asked.items()},
        "grounding": {
            step: _grounding(task, records, examples, seed)
            for step, records in replies.records.items()
            if is_grounding(step) and all(example.id in records for example in examples)
        },
    }


def _groups(
    task: Benchmark, answers: Answers, examples: Sequence[Example], seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of right answers by group, `{group: {method: numbers}}`, with those unparsed."""
    clusters = find_clusters(examples)
    table = {}
    for group, chosen in task.groups(examples).items():
        shares = {
            name: share({e.id: bool(records[e.id].right) for e in chosen}, clusters, 1.0)
            for name, records in answers.items()
        }
        table[group] = compare(shares, seed=seed)
        for name, records in answers.items():
            table[group][name]["unparsed"] = sum(records[e.id].parsed is None for e in chosen)
    return table


def _changed(answers: Answers, examples: Sequence[Example]) -> dict[str, dict[str, list[str]]]:
    """The ids of questions that only a method (`fixed`), or only `plain` (`broken`), gets right."""
    right = {
        name: {e.id: bool(records[e.id].right) for e in examples}
        for name, records in answers.items()
    }
    plain = right.pop("plain", {})
    return {
        name: dict(zip(("fixed", "broken"), changed_units(each, plain), strict=True))
        for name, each in right.items()
        if "plain" in answers
    }


def judge_box(example: Example, grounding: Record) -> tuple[bool, float]:
    """Whether the centre of the box of stage 1 (of several: the box around them) is in the true
    region, and its IoU with that; without a box False and 0."""
    if not grounding.boxes:
        return False, 0.0
    box, true = union(grounding.boxes), example.region or FULL
    return contains_point(true, centre(box)), iou(box, true)


def _grounding(
    task: Benchmark, groundings: Mapping[str, Record], examples: Sequence[Example], seed: int
) -> dict[str, dict[str, Any]]:
    """Stage 1 by group: `found`, the share of questions with a box; of those about one known
    object `centre` in it, `mean_iou`, and `iou_50`, the share with an IoU of at least 0.5."""
    clusters = find_clusters(examples)
    judged = {
        id: replace(record, boxes=task.judged_boxes(record.text, record.boxes))
        for id, record in groundings.items()
    }
    table: dict[str, dict[str, Any]] = {}
    for group, chosen in task.groups(examples).items():
        found = {e.id: bool(groundings[e.id].boxes) for e in chosen}
        single = {e.id: judge_box(e, judged[e.id]) for e in chosen if e.single and e.region}
        figures = {"found": share(found, clusters, 1.0)}
        if single:
            figures |= {
                "centre": share({id: hit for id, (hit, _) in single.items()}, clusters, 1.0),
                "mean_iou": ratio(((id, iou, 1) for id, (_, iou) in single.items()), clusters, 1.0),
                "iou_50": share({id: iou >= 0.5 for id, (_, iou) in single.items()}, clusters, 1.0),
            }
        table[group] = {
            name: compare({"": figure}, seed=seed)[""] for name, figure in figures.items()
        }
    return table
