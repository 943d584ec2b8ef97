"""What a run asks of every question, and the records of what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cof.errors import CofError
from cof.eval.examples import Example, Task
from cof.eval.methods import PLAIN, Method, box_grounders, grounding_key
from cof.eval.replies import is_grounding
from cof.eval.store import Record, Store
from cof.geometry.boxes import XYXY
from cof.grounders import Grounder
from cof.settings import Settings
from cof.types import Grounding


@dataclass(frozen=True)
class Steps:
    """What is asked of every question.

    Attributes:
        methods: by key; the plain model first, since others may depend on its confidence.
        groundings: grounders by `grounding_key`.
    """

    methods: Mapping[str, Method]
    groundings: Mapping[str, Grounder]

    @classmethod
    def of(cls, methods: Iterable[Method], grounded: Iterable[Settings]) -> Steps:
        """Two methods with the same key are one; with a threshold among them the plain model is
        asked too."""
        by_key = {method.key: method for method in methods}
        if any(method.settings.max_plain_confidence < 1 for method in by_key.values()):
            by_key[PLAIN.key] = PLAIN
        groundings = {
            grounding_key(each): each for settings in grounded for each in box_grounders(settings)
        }
        order = sorted(by_key, key=lambda key: key != PLAIN.key)
        return cls({key: by_key[key] for key in order}, groundings)

    @property
    def keys(self) -> list[str]:
        """The keys of their records."""
        return [*self.methods, *self.groundings]


def open_store(path: Path, task: Task) -> Store:
    """The answers to a task so far.

    Raises:
        CofError: they belong to other questions, or are damaged.
    """
    store = Store(path)
    if not store.ids <= {example.id for example in task.examples}:
        raise CofError(f"{path} holds answers to other questions: delete it, or write elsewhere.")
    return store


def known_answer(method: Method, records: Mapping[str, Record]) -> Record | None:
    """The answer that other methods have given already: a threshold on the plain answer's
    confidence chooses between the plain answer and that of always looking.

    Args:
        method: to be answered for.
        records: of one question by method, the plain answer among them if there is a threshold.
    """
    limit = method.settings.max_plain_confidence
    if limit == 1 or method.is_plain or method.given:
        return None
    plain = records[PLAIN.key]
    sure = plain.error is not None or (plain.confidence or 0.0) > limit
    source = records.get(PLAIN.key if sure else method.without_threshold.key)
    return None if source is None else replace(source, method=method.key)


def answer_record(
    task: Task,
    example: Example,
    key: str,
    text: str,
    boxes: Sequence[XYXY],
    confidence: float | None,
) -> Record:
    """The record of an answer, read by the task's rules."""
    score = task.score(example, text)
    return Record(
        example.id, key, text, score.parsed, score.right, tuple(boxes), _round(confidence)
    )


def grounding_record(example: Example, key: str, found: Grounding) -> Record:
    """The record of what stage 1 found."""
    boxes = found.region.boxes if found.region else ()
    return Record(example.id, key, found.text, boxes=boxes, confidence=_round(found.confidence))


def refusal(example: Example, key: str, error: CofError) -> Record:
    """The record of a question that was refused; an answer counts as wrong then."""
    return Record(example.id, key, "", right=None if is_grounding(key) else False, error=str(error))


def read_grounding(record: Record) -> Grounding | CofError:
    """What a record of stage 1 holds."""
    if record.error is not None:
        return CofError(record.error)
    return Grounding(record.region, record.text, record.confidence)


def _round(confidence: float | None) -> float | None:
    """Without the digits that depend on the company in a batch."""
    return None if confidence is None else round(confidence, 5)
