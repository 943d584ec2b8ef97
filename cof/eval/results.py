"""From records to numbers: everything a report shows, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cof.eval.stats import Interval, mcnemar, paired_difference, wilson
from cof.eval.store import Record, found_region
from cof.eval.tasks import Example
from cof.geometry.boxes import FULL, centre, contains_point, iou, union

Groups = Mapping[str, Callable[[Example], bool]]
"""Name of a group -> which examples are in it."""

Answers = Mapping[str, Mapping[str, Record]]
"""Name of a method -> id of a question -> what it said."""

Table = dict[str, dict[str, dict[str, Any]]]
"""Group -> method -> numbers."""


@dataclass(frozen=True)
class Grounded:
    """How good the box of one question is.

    Attributes:
        found: whether the reply held a box.
        hit: whether the box's centre is in the true region; False without a box.
        iou: with the true region; 0 without a box.
    """

    found: bool
    hit: bool
    iou: float


def grounded(example: Example, reply: Record) -> Grounded:
    """Compare the box of stage 1 (of several: the box around them) with the true region."""
    region = found_region(reply)
    if region is None:
        return Grounded(False, False, 0.0)
    box, true = union(region.boxes), example.region or FULL
    return Grounded(True, contains_point(true, centre(box)), iou(box, true))


def accuracy(records: Sequence[Record]) -> dict[str, Any]:
    """Share of right answers with its interval, and how many could not be read."""
    right = sum(bool(record.right) for record in records)
    return {
        "n": len(records),
        "right": right,
        **_interval("accuracy", wilson(right, len(records))),
        "unparsed": sum(record.parsed is None for record in records),
    }


def compared(
    examples: Sequence[Example], new: Sequence[Record], old: Sequence[Record], *, seed: int
) -> dict[str, Any]:
    """A method against another on the same questions: difference, fixed, broken, McNemar's p."""
    is_right, was_right = ([bool(r.right) for r in records] for records in (new, old))
    fixed = sum(n and not o for n, o in zip(is_right, was_right, strict=True))
    broken = sum(o and not n for n, o in zip(is_right, was_right, strict=True))
    gain = paired_difference(is_right, was_right, [str(e.image) for e in examples], seed=seed)
    return {
        **_interval("difference", gain),
        "fixed": fixed,
        "broken": broken,
        "p": mcnemar(fixed, broken),
    }


def by_group(
    answers: Answers,
    examples: Sequence[Example],
    groups: Groups,
    *,
    baseline: str = "plain",
    seed: int = 0,
) -> Table:
    """Accuracy of every method in every group that has questions, and against the baseline.

    Args:
        answers: what each method said; `baseline` is among them.
        groups: name -> which examples are in it.
        seed: of the bootstrap.

    Returns:
        `{group: {method: {n, right, accuracy, ..., difference, ..., fixed, broken, p}}}`.
    """
    table: Table = {}
    for group, belongs in groups.items():
        chosen = [example for example in examples if belongs(example)]
        if not chosen:
            continue
        old = [answers[baseline][example.id] for example in chosen]
        table[group] = {}
        for name, said in answers.items():
            new = [said[example.id] for example in chosen]
            row = accuracy(new)
            if name != baseline:
                row |= compared(chosen, new, old, seed=seed)
            table[group][name] = row
    return table


def changed(
    answers: Answers, examples: Sequence[Example], *, baseline: str = "plain"
) -> dict[str, dict[str, list[str]]]:
    """The questions that only the method, or only the baseline, answers rightly:
    `{method: {"fixed": [id, ...], "broken": [id, ...]}}`."""
    old = answers[baseline]
    return {
        name: {
            "fixed": [e.id for e in examples if said[e.id].right and not old[e.id].right],
            "broken": [e.id for e in examples if not said[e.id].right and old[e.id].right],
        }
        for name, said in answers.items()
        if name != baseline
    }


def grounding_table(
    replies: Mapping[str, Record], examples: Sequence[Example], groups: Groups
) -> dict[str, dict[str, Any]]:
    """Stage 1 as it runs freely: `well_formed` of all questions; the rest of those about one
    object: `centre_hit` in it, `mean_iou`, and `iou_50`, the share with an IoU of at least 0.5."""
    table: dict[str, dict[str, Any]] = {}
    for group, belongs in groups.items():
        rows = [(e, grounded(e, replies[e.id])) for e in examples if belongs(e)]
        single = [found for example, found in rows if example.single]
        if not single:
            continue
        n = len(single)
        table[group] = {
            "n": len(rows),
            "well_formed": sum(found.found for _, found in rows) / len(rows),
            "n_single": n,
            **_interval("centre_hit", wilson(sum(found.hit for found in single), n)),
            "mean_iou": sum(found.iou for found in single) / n,
            "iou_50": sum(found.iou >= 0.5 for found in single) / n,
        }
    return table


def two_by_two(
    answers: Answers,
    replies: Mapping[str, Record],
    examples: Sequence[Example],
    *,
    baseline: str = "plain",
) -> dict[str, dict[str, Any]]:
    """Whether the plain answer and the box are right, together, and what each method makes of it.

    A box is right when its centre is in the one object asked about; other questions are left out.

    Returns:
        `{"plain right, box right": {n, right: {method: how many}}, ...}`, all four cells.
    """
    cells: dict[str, dict[str, Any]] = {
        f"plain {answer}, box {box}": {"n": 0, "right": dict.fromkeys(answers, 0)}
        for answer in ("right", "wrong")
        for box in ("right", "wrong")
    }
    for example in examples:
        if not example.single:
            continue
        answer = "right" if answers[baseline][example.id].right else "wrong"
        hit = grounded(example, replies[example.id]).hit
        cell = cells[f"plain {answer}, box {'right' if hit else 'wrong'}"]
        cell["n"] += 1
        for name, said in answers.items():
            cell["right"][name] += bool(said[example.id].right)
    return cells


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {
        name: round(interval.value, 6),
        f"{name}_low": round(interval.low, 6),
        f"{name}_high": round(interval.high, 6),
    }
