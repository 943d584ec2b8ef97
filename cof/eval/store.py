"""Answers on disk, one JSON line each: appended as they come, sorted when all are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cof.eval.examples import Example
from cof.eval.json_files import drop_torn_line, from_json, read_json_lines, write_atomically
from cof.geometry.boxes import XYXY

ENCODING = "encoding"
"""In the costs: the vision encoder and the decoder's prefix, once for all methods."""

_ADVICE = "delete the file to begin anew"


Costs = dict[str, dict[str, float]]
"""By step (a method's key, a grounding's key, `encoding`) and question: seconds of wall clock, its
share of its batch."""


@dataclass(frozen=True)
class Record:
    """A method's reply to a question: enough to score it again without the model.

    Attributes:
        id: the question's.
        method: `cof.eval.methods.Method.key`, or `grounding_key` for the outcome of stage 1.
        text: the reply, verbatim.
        parsed: the answer read from it; None: unparsed.
        right: whether that is the true answer.
        boxes: the boxes that the model was made to look at, after post-processing; of a grounding
            the boxes that it found; xyxy in 0..1 of the image.
        confidence: geometric mean probability of the reply's tokens, 0..1; of a grounding that of
            the box; None if unknown. It depends on the batch in its fourth decimal (see
            `cof.eval.runner.Runner`).
        error: why there is no reply; such a question counts as wrong and unparsed.
    """

    id: str
    method: str
    text: str
    parsed: str | None = None
    right: bool | None = None
    boxes: tuple[XYXY, ...] = ()
    confidence: float | None = None
    error: str | None = None


class Store(dict[tuple[str, str], Record]):
    """The records of one run by `(method, question id)`, in one file.

    Each batch of lines is written by one system call, so that a run that is killed leaves at
    most a torn last line, which the next one drops.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, or begin it; the whole lines of a killed run are kept.

        Raises:
            CofError: a line, other than a torn last one, cannot be read.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        records = read_json_lines(path, partial(from_json, Record), _ADVICE)
        super().__init__({(record.method, record.id): record for record in records})

    def lacks(self, keys: Iterable[str], examples: Sequence[Example]) -> list[str]:
        """The methods without a record for some of the questions."""
        return [key for key in keys if any((key, e.id) not in self for e in examples)]

    def append(self, records: Iterable[Record]) -> None:
        """Add those that are new."""
        new = {(r.method, r.id): r for r in records if (r.method, r.id) not in self}
        data = "".join(map(_line, new.values())).encode()
        # a buffer that holds all of it is written at once
        with self.path.open("ab", buffering=len(data) + 2) as file:
            file.write(data)
        self.update(new)

    def sort(self, ids: Sequence[str]) -> None:
        """Rewrite the file by method's name and order of the questions, all or nothing."""
        place = {id: number for number, id in enumerate(ids)}
        ordered = sorted(self.values(), key=lambda r: (r.method, place[r.id]))
        write_atomically(self.path, "".join(map(_line, ordered)))


def costs_path(answers: Path) -> Path:
    """The file beside a store with the costs of its batches."""
    return answers.with_suffix(".costs.jsonl")


def log_cost(answers: Path, step: str, ids: Sequence[str], seconds: float) -> None:
    """Add the cost of a batch to the file beside a store."""
    line = json.dumps([step, list(ids), round(seconds, 4)])
    with costs_path(answers).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_costs(answers: Path) -> Costs:
    """The costs of a store's replies; of a batch that was repeated the last time counts.

    Raises:
        CofError: a line, other than a torn last one, cannot be read.
    """
    drop_torn_line(costs_path(answers))
    costs: Costs = {}
    for step, ids, seconds in read_json_lines(costs_path(answers), _batch_cost, _ADVICE):
        costs.setdefault(step, {}).update(dict.fromkeys(ids, seconds / len(ids)))
    return costs


def _batch_cost(values: Any) -> tuple[str, list[str], float]:
    step, ids, seconds, *_ = values  # release 0.2.0 counted passes, too
    if not (isinstance(ids, list) and ids and all(isinstance(id, str) for id in (step, *ids))):
        raise ValueError("no batch of questions")
    return step, ids, float(seconds)


def _line(record: Record) -> str:
    shown = {k: v for k, v in asdict(record).items() if v is not None and v != ()}
    return json.dumps(shown) + "\n"
