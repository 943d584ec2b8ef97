"""Answers on disk, one JSON line each: appended as they come, sorted when all are there."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from cof.errors import CofError
from cof.geometry.regions import Region

ENCODING = "encoding"
"""In the costs: the vision encoder and the decoder's prefix, once for all methods."""

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a step took for one question: its share of its batch.

    Attributes:
        seconds: of wall clock.
        passes: through the decoder, of the whole batch; None: the engine does not show them.
    """

    seconds: float
    passes: int | None


Costs = dict[str, dict[str, Cost]]
"""By step (a method's key, a grounding's key, `encoding`) and question."""


@dataclass(frozen=True)
class Record:
    """What one method said to one question, enough to score it again without the model.

    Attributes:
        id: the question's.
        method: `cof.eval.methods.Method.key`, or `grounding_key` for what stage 1 found.
        text: the reply, verbatim.
        parsed: the answer read from it; None: unparsed.
        right: whether that is the true answer.
        boxes: where the model was made to look, after post-processing; of a grounding the boxes
            found; xyxy in 0..1 of the image.
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
    boxes: tuple[tuple[float, ...], ...] = ()
    confidence: float | None = None
    error: str | None = None


class Store:
    """The records of one run in one file.

    Each batch of lines is written by one system call, so that a run that is killed leaves at
    most a torn last line, which the next one drops.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, or begin it; what a killed run left is kept.

        Raises:
            CofError: a line, other than a torn last one, cannot be read.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records: dict[tuple[str, str], Record] = {}
        self._records |= {(r.method, r.id): r for r in read_log(path, _record)}

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether `(method, question id)` is there."""
        return key in self._records

    def __getitem__(self, key: tuple[str, str]) -> Record:
        return self._records[key]

    @property
    def ids(self) -> set[str]:
        """Questions of which it holds anything."""
        return {id for _, id in self._records}

    def method(self, key: str) -> dict[str, Record]:
        """One method's records by question."""
        return {id: record for (name, id), record in self._records.items() if name == key}

    def records(self) -> list[Record]:
        """All of them."""
        return list(self._records.values())

    def append(self, records: Iterable[Record]) -> None:
        """Add those that are new."""
        fresh = [r for r in records if (r.method, r.id) not in self._records]
        data = "".join(_line(record) for record in fresh).encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)
        self._records |= {(r.method, r.id): r for r in fresh}

    def sort(self, ids: Sequence[str]) -> None:
        """Rewrite the file by method's name and order of the questions, all or nothing."""
        place = {id: number for number, id in enumerate(ids)}
        ordered = sorted(self._records.values(), key=lambda r: (r.method, place[r.id]))
        write_atomically(self.path, "".join(_line(record) for record in ordered))


def read_log(path: Path, read: Callable[[Any], T]) -> list[T]:
    """What stands in a file of JSON lines that runs append to; a torn last one, as a run leaves it
    that is killed, is cut off. Empty without a file.

    Raises:
        CofError: another line cannot be read.
    """
    whole = path.read_bytes() if path.exists() else b""
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        with path.open("r+b") as file:
            file.truncate(len(kept))
    found = []
    for number, line in enumerate(kept.splitlines(), start=1):
        try:
            found.append(read(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise CofError(
                f"{path}, line {number} is no record: delete the file to begin anew."
            ) from error
    return found


def costs_path(answers: Path) -> Path:
    """The file beside a store that says what its batches took."""
    return answers.with_suffix(".costs.jsonl")


def log_cost(
    answers: Path, step: str, ids: Sequence[str], seconds: float, passes: int | None
) -> None:
    """Add what a batch took to the file beside a store."""
    line = json.dumps([step, list(ids), round(seconds, 4), passes])
    with costs_path(answers).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_costs(answers: Path) -> Costs:
    """What the replies of a store took; of a batch that was repeated the last time counts. Empty
    where none were kept."""
    costs: Costs = {}
    for step, ids, seconds, passes in read_log(costs_path(answers), tuple):
        costs.setdefault(step, {}).update(dict.fromkeys(ids, Cost(seconds / len(ids), passes)))
    return costs


def region_of(record: Record) -> Region | None:
    """What stage 1 found, from its record."""
    boxes = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in record.boxes)
    return Region(boxes=boxes) if boxes else None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content, or leave it as it is, whoever else is writing it (other shards)."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _line(record: Record) -> str:
    shown = {k: v for k, v in asdict(record).items() if v is not None and v != ()}
    return json.dumps(shown) + "\n"


def _record(fields: dict[str, Any]) -> Record:
    boxes = tuple(tuple(box) for box in fields.pop("boxes", ()))
    return Record(**fields, boxes=boxes)
