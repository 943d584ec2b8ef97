"""What questions showed before and after looking, as arrays: what an adaptive rule is fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cof.adaptive import Rule
from cof.eval.store import Record
from cof.eval.tasks import Example
from cof.geometry.boxes import XYXY, area, union

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NEVER = Rule(plain_at_most=0.0)
"""Keeps every plain answer whose confidence is known."""


@dataclass(frozen=True)
class Signs:
    """What n questions showed, and what came of looking with each of m lambdas.

    Unknown confidences are such as stop nothing: 0 of the plain answer, 1 of the box. A question
    without a box has the plain answer whatever lambda.

    Attributes:
        strengths: the lambdas, the mildest first.
        images: `(n,)` number of each question's image.
        plain: `(n,)` confidence of the plain answer.
        box: `(n,)` confidence of the box.
        area: `(n,)` share of the image that it covers, before expansion.
        ratio: `(n, m)` confidence after looking over that of the plain answer.
        was_right: `(n,)` whether the plain answer is right.
        is_right: `(n, m)` whether the answer after looking is.
    """

    strengths: tuple[float, ...]
    images: NDArray[np.int64]
    plain: Floats
    box: Floats
    area: Floats
    ratio: Floats
    was_right: Bools
    is_right: Bools

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        plain: Mapping[str, Record],
        replies: Mapping[str, Record],
        looked: Mapping[float, Mapping[str, Record]],
    ) -> Signs:
        """From records by question: plain answers, replies of stage 1, answers by lambda."""
        ids = [example.id for example in examples]
        strengths = tuple(sorted(looked))
        names = {str(example.image): None for example in examples}
        number = {name: n for n, name in enumerate(names)}
        found = [replies[id].boxes for id in ids]
        before = _sure([plain[id] for id in ids], 0.0)
        after = np.stack([_sure([looked[s][id] for id in ids], np.inf) for s in strengths], 1)
        return cls(
            strengths,
            np.array([number[str(example.image)] for example in examples]),
            before,
            _sure([replies[id] for id in ids], 1.0),
            np.array([area(union([_box(b) for b in boxes])) if boxes else 1.0 for boxes in found]),
            after / np.maximum(before, 1e-9)[:, None],
            np.array([bool(plain[id].right) for id in ids]),
            np.array([[bool(looked[s][id].right) for s in strengths] for id in ids]),
        )

    def part(self, rows: Bools) -> Signs:
        """Some of the questions."""
        return Signs(
            self.strengths,
            *(
                getattr(self, name)[rows]
                for name in ("images", "plain", "box", "area", "ratio", "was_right", "is_right")
            ),
        )

    def changes(self) -> tuple[Bools, Bools]:
        """`(n, m)` each: where each lambda fixes a question, and where it breaks one."""
        was, right = self.was_right[:, None], self.is_right
        return ~was & right, was & ~right


@dataclass(frozen=True)
class Decision:
    """What a rule makes of one question.

    Attributes:
        final: the record whose answer is given.
        grounded: whether stage 1 is run.
        looked: whether stage 2 is.
    """

    final: Record
    grounded: bool = False
    looked: bool = False


def decision(
    rule: Rule, plain: Record, found: Record, looked: Mapping[float, Record], *, usual: float
) -> Decision:
    """What the pipeline does under a rule, from answers that are already there.

    Args:
        rule: as in `Settings.adaptive`.
        plain: the plain answer.
        found: stage 1's reply.
        looked: answers after looking, by lambda.
        usual: lambda where the rule names none.
    """
    if not rule.looks(plain.confidence):
        return Decision(plain)
    sure = found.confidence
    if not found.boxes or not rule.trusts(sure, area(union(map(_box, found.boxes)))):
        return Decision(plain, grounded=True)
    reply = looked[rule.strength(sure, usual)]
    taken = rule.takes(plain.confidence, reply.confidence)
    return Decision(reply if taken else plain, grounded=True, looked=True)


def adapted(
    rule: Rule,
    plain: Mapping[str, Record],
    found: Mapping[str, Record],
    looked: Mapping[float, Mapping[str, Record]],
) -> dict[str, Record]:
    """The answers given under a rule, by question, from those of all lambdas that it names (a rule
    that names none takes the mildest)."""
    return {
        id: decision(
            rule, draft, found[id], {s: said[id] for s, said in looked.items()}, usual=min(looked)
        ).final
        for id, draft in plain.items()
    }


def changes(signs: Signs, rule: Rule) -> tuple[Bools, Bools]:
    """`(n,)` each: which questions the rule fixes, and which it breaks.

    Raises:
        ValueError: the rule has a lambda that was not tried.
    """
    rows = np.arange(len(signs.plain))
    if rule == NEVER:  # it names no lambda
        nothing = np.zeros(len(rows), dtype=bool)
        return nothing, nothing
    steps = [least for least, _ in rule.strengths]
    column = np.array([signs.strengths.index(strength) for _, strength in rule.strengths])
    mine = column[np.searchsorted(steps, signs.box, side="right") - 1]
    through = (
        (signs.plain <= rule.plain_at_most)
        & (signs.box >= rule.box_at_least)
        & (signs.area <= rule.area_at_most)
        & (signs.ratio[rows, mine] >= rule.ratio_at_least)
    )
    right = signs.is_right[rows, mine]
    return through & ~signs.was_right & right, through & signs.was_right & ~right


def _sure(records: Sequence[Record], unknown: float) -> Floats:
    """Confidences, `unknown` where there is none."""
    return np.array([unknown if r.confidence is None else r.confidence for r in records])


def _box(values: Sequence[float]) -> XYXY:
    x1, y1, x2, y2 = values
    return (x1, y1, x2, y2)
