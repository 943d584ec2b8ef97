"""From replies to numbers: everything a report shows of one task, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cof.eval.data.base import Benchmark
from cof.eval.examples import Example
from cof.eval.figures import Figure, changed_units, compare, find_clusters, ratio, share
from cof.eval.methods import Method, box_grounders, grounding_key
from cof.eval.replies import Replies
from cof.eval.rules import RULES
from cof.eval.store import ENCODING, Costs, Record
from cof.geometry.boxes import FULL, centre, contains_point, iou, union

Answers = Mapping[str, Mapping[str, Record]]
"""Name of a method -> id of a question -> its answer."""


def collect_results(
    task: Benchmark, methods: Mapping[str, Method], replies: Replies, *, seed: int
) -> dict[str, Any]:
    """All numbers of one task.

    Args:
        task: knows the rules and the figures; its data is not read.
        methods: by the names under which they are reported.
        replies: to the questions of the task's shard.
        seed: of the bootstrap.

    Raises:
        CofError: a method has not answered every question.
    """
    keys = {name: method.key for name, method in methods.items()}
    replies = replies.score(task)
    examples, answers = replies.examples, replies.answers(keys)
    known = [example for example in examples if example.answer]
    return {
        "benchmark": task.name,
        "rules": task.rules,
        "prompt_style": task.prompt_style,
        "headline": list(task.headline),
        "questions": len(examples),
        "images": len({str(example.image) for example in examples}),
        "shard": list(task.shard),
        "figures": figure_table(task, answers, examples, seed=seed),
        "metrics": {rules: task_metrics(task, answers, examples, rules) for rules in RULES},
        "groups": group_table(task, answers, known, seed=seed),
        "changed": changed_questions(answers, known),
        "unparsed": {
            name: sum(records[e.id].parsed is None for e in examples)
            for name, records in answers.items()
        },
        "errors": {
            name: sum(records[e.id].error is not None for e in examples)
            for name, records in answers.items()
        },
        "grounding": {
            step: grounding_table(records, examples, task, seed=seed)
            for step, records in replies.groundings.items()
            if all(example.id in records for example in examples)
        },
        "two_by_two": two_by_two(answers, methods, replies, examples, task),
        "costs": cost_table(methods, answers, replies.costs, examples),
    }


def task_metrics(
    task: Benchmark, answers: Answers, examples: Sequence[Example], rules: Any
) -> dict[str, dict[str, float]]:
    """The benchmark's metrics of every method under a rule set: `{method: {metric: value}}`."""
    return {
        name: {
            metric: round(figure.value, 4)
            for metric, figure in task.figures(examples, _texts(records), rules).items()
        }
        for name, records in answers.items()
    }


def figure_table(
    task: Benchmark, answers: Answers, examples: Sequence[Example], *, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The same under the task's rules, with intervals and against plain:
    `{metric: {method: numbers}}` (`compare`)."""
    by_method = {
        name: task.figures(examples, _texts(records), task.rules)
        for name, records in answers.items()
    }
    metrics = dict.fromkeys(metric for figures in by_method.values() for metric in figures)
    return {
        metric: compare({name: figures[metric] for name, figures in by_method.items()}, seed=seed)
        for metric in metrics
    }


def group_table(
    task: Benchmark, answers: Answers, examples: Sequence[Example], *, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of right answers by group, `{group: {method: numbers}}`, with those unparsed."""
    clusters = find_clusters(examples)
    table = {}
    for group, chosen in task.groups(examples).items():
        numbers = compare(
            {
                name: share({e.id: bool(records[e.id].right) for e in chosen}, clusters, 1.0)
                for name, records in answers.items()
            },
            seed=seed,
        )
        for name, records in answers.items():
            numbers[name]["unparsed"] = sum(records[e.id].parsed is None for e in chosen)
        table[group] = numbers
    return table


def changed_questions(
    answers: Answers, examples: Sequence[Example], *, baseline: str = "plain"
) -> dict[str, dict[str, list[str]]]:
    """The questions that only the method, or only the baseline, answers rightly:
    `{method: {"fixed": [id, ...], "broken": [id, ...]}}`."""
    if baseline not in answers:
        return {}

    def figure(records: Mapping[str, Record]) -> Figure:
        return Figure((), units={e.id: bool(records[e.id].right) for e in examples})

    old = figure(answers[baseline])
    return {
        name: dict(zip(("fixed", "broken"), changed_units(figure(records), old), strict=True))
        for name, records in answers.items()
        if name != baseline
    }


@dataclass(frozen=True)
class BoxQuality:
    """How good the box of one question is.

    Attributes:
        found: whether there is a box.
        hit: whether its centre is in the true region; False without a box.
        iou: with the true region; 0 without a box.
    """

    found: bool
    hit: bool
    iou: float


def judge_box(example: Example, grounding: Record) -> BoxQuality:
    """Compare the box of stage 1 (of several: the box around them) with the true region."""
    if not grounding.boxes:
        return BoxQuality(False, False, 0.0)
    box, true = union(grounding.boxes), example.region or FULL
    return BoxQuality(True, contains_point(true, centre(box)), iou(box, true))


def grounding_table(
    groundings: Mapping[str, Record], examples: Sequence[Example], task: Benchmark, *, seed: int
) -> dict[str, dict[str, Any]]:
    """Stage 1 by group: `found`, the share of questions with a box; of those about one known
    object `centre` in it, `mean_iou`, and `iou_50`, the share with an IoU of at least 0.5."""
    clusters = find_clusters(examples)
    table: dict[str, dict[str, Any]] = {}
    for group, chosen in task.groups(examples).items():
        boxes = {e.id: judge_box(e, groundings[e.id]) for e in chosen}
        single = [e.id for e in chosen if e.single and e.region]
        figures = {"found": share({id: box.found for id, box in boxes.items()}, clusters, 1.0)}
        if single:
            figures |= {
                "centre": share({id: boxes[id].hit for id in single}, clusters, 1.0),
                "mean_iou": ratio(((id, boxes[id].iou, 1) for id in single), clusters, 1.0),
                "iou_50": share({id: boxes[id].iou >= 0.5 for id in single}, clusters, 1.0),
            }
        table[group] = {
            name: compare({"": figure}, seed=seed)[""] for name, figure in figures.items()
        }
    return table


def two_by_two(
    answers: Answers,
    methods: Mapping[str, Method],
    replies: Replies,
    examples: Sequence[Example],
    task: Benchmark,
) -> dict[str, dict[str, Any]]:
    """Whether the plain answer and the box of `cof` are right, together, and what each method makes
    of it: `{"plain right, box right": {n, right: {method: how many}}, ...}`, of the first group.

    A box is right when its centre is in the one object asked about; other questions are left out.
    """
    cof = methods.get("cof")
    if cof is None or "plain" not in answers or len(cof.settings.grounders) != 1:
        return {}
    boxes = replies.records.get(grounding_key(cof.settings.grounders[0]), {})
    chosen = next(iter(task.groups(examples).values()), [])
    cells: dict[str, dict[str, Any]] = {
        f"plain {answer}, box {box}": {"n": 0, "right": dict.fromkeys(answers, 0)}
        for answer in ("right", "wrong")
        for box in ("right", "wrong")
    }
    for example in chosen:
        if not example.single or example.id not in boxes:
            continue
        answer = "right" if answers["plain"][example.id].right else "wrong"
        hit = judge_box(example, boxes[example.id]).hit
        cell = cells[f"plain {answer}, box {'right' if hit else 'wrong'}"]
        cell["n"] += 1
        for name, records in answers.items():
            cell["right"][name] += bool(records[example.id].right)
    return cells if any(cell["n"] for cell in cells.values()) else {}


def cost_table(
    methods: Mapping[str, Method], answers: Answers, costs: Costs, examples: Sequence[Example]
) -> dict[str, dict[str, Any]]:
    """What each method takes, with the images encoded and stage 1: `seconds` in all, the `ratio` to
    the plain answers' in the same run, and the decoder's `passes` for a batch on average. A method
    with a threshold pays for the plain answers, and for looking where it looks."""
    means = {}
    for name, method in methods.items():
        ids = [e.id for e in examples if answers[name][e.id].error is None]
        means[name] = _mean_cost(method, answers, costs, ids)
    plain = means.get("plain")
    return {
        name: {
            "seconds": round(mean[0] * len(examples), 2),
            "ratio": round(mean[0] / plain[0], 3) if plain and plain[0] else None,
            "passes": None if mean[1] is None else round(mean[1], 1),
        }
        for name, mean in means.items()
        if mean is not None
    }


def _mean_cost(
    method: Method, answers: Answers, costs: Costs, ids: Sequence[str]
) -> tuple[float, float | None] | None:
    """Seconds and passes, the mean over questions; None where the cost of a step is not known."""
    looking, steps = ids, [(ENCODING, ids)]
    if method.settings.max_plain_confidence < 1 and not method.is_plain and not method.given:
        sure = {id: record.confidence for id, record in answers.get("plain", {}).items()}
        limit = method.settings.max_plain_confidence
        looking = [id for id in ids if (sure.get(id) or 0.0) <= limit]
        steps.append(("plain", ids))
    if not method.is_plain and not method.given:
        steps += [(grounding_key(each), looking) for each in box_grounders(method.settings)]
    key = method.key if method.key in costs else method.without_threshold.key
    steps.append((key, looking))
    known = [[costs.get(step, {}).get(id) for id in asked] for step, asked in steps]
    spent = [[cost for cost in each if cost is not None] for each in known]
    if not ids or spent != known:
        return None
    seconds = sum(cost.seconds for each in spent for cost in each)
    passes = [cost.passes for each in spent[1:] for cost in each if cost.passes is not None]
    return seconds / len(ids), sum(passes) / len(ids) if passes else None


def _texts(records: Mapping[str, Record]) -> dict[str, str | None]:
    """The replies; None where there is none."""
    return {id: None if record.error else record.text for id, record in records.items()}
