"""Questions and replies on disk as JSON lines, to score a run again without model and data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.examples import Embedded, Example, Score, select
from cof.eval.json_files import from_json, read_json_lines, write_atomically
from cof.geometry.boxes import XYXY

QUESTIONS = "questions.jsonl"
"""The questions of all shards, in the folder of a task."""


@dataclass(frozen=True)
class Record:
    """A method's reply to a question: enough to score it again without the model.

    Attributes:
        id: the question's.
        method: `cof.eval.methods.Method.key`, or `grounding_key` for the outcome of stage 1.
        text: the reply, verbatim.
        parsed: the answer read from it; None: unparsed.
        right: whether that is the true answer.
        boxes: where the model looked, post-processed; of a grounding as found; xyxy in 0..1.
        confidence: geometric mean probability of the reply's tokens, 0..1; of a grounding that of
            the box; None if unknown. Its fourth decimal depends on the batch (`runner.Runner`).
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
        content = path.read_bytes() if path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(path, whole)
        advice = "delete the file to begin anew"
        records = read_json_lines(path, partial(from_json, Record), advice)
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


def _line(record: Record) -> str:
    shown = {k: v for k, v in asdict(record).items() if v is not None and v != ()}
    return json.dumps(shown) + "\n"


@dataclass(frozen=True)
class Replies:
    """Questions and the replies to them, by step (a method's or grounding's key), then question."""

    examples: Sequence[Example]
    records: Mapping[str, Mapping[str, Record]]

    @classmethod
    def read(cls, folder: Path, shard: tuple[int, int]) -> Replies:
        """Of a shard of a task, out of the task's folder.

        Raises:
            CofError: there are none, or a file is damaged.
        """
        questions, answers = folder / QUESTIONS, answers_path(folder, shard)
        for path in (questions, answers):
            if not path.is_file():
                raise CofError(f"There is no {path}: run the evaluation again.")
        every = read_json_lines(questions, partial(from_json, Example), "run the evaluation again")
        if not (examples := select(every, None, shard)):
            raise CofError(f"{questions} is empty: run the evaluation again.")
        records: dict[str, dict[str, Record]] = {}
        for record in Store(answers).values():
            records.setdefault(record.method, {})[record.id] = record
        return cls(examples, records)

    def score(self, read: Callable[[Example, str], Score]) -> Replies:
        """With every answer read and compared anew, as by a task's `score`."""
        by_id = {example.id: example for example in self.examples}

        def score(record: Record) -> Record:
            if record.error is not None:
                return record
            return replace(record, **read(by_id[record.id], record.text)._asdict())

        records = {
            step: each
            if is_grounding(step)
            else {id: score(record) for id, record in each.items() if id in by_id}
            for step, each in self.records.items()
        }
        return replace(self, records=records)

    def answers(self, methods: Mapping[str, str]) -> dict[str, Mapping[str, Record]]:
        """The answers of methods, given as names and keys, by name.

        Raises:
            CofError: a method has not answered every question.
        """
        for key in methods.values():
            records = self.records.get(key, {})
            missing = [example.id for example in self.examples if example.id not in records]
            if missing:
                raise CofError(
                    f"{len(missing)} questions lack an answer of `{key}`, the first is "
                    f"{missing[0]}: run the evaluation to its end."
                )
        return {name: self.records[key] for name, key in methods.items()}


def is_grounding(step: str) -> bool:
    """Whether a step's records are outcomes of stage 1, not answers."""
    return step.startswith("grounding ")


def answers_path(folder: Path, shard: tuple[int, int]) -> Path:
    """The file of a shard's replies in the folder of a task."""
    part, parts = shard
    return folder / ("answers.jsonl" if parts == 1 else f"answers-{part}-of-{parts}.jsonl")


def find_shards(folder: Path) -> list[Path]:
    """The replies of all shards that a task's folder holds."""
    pattern = re.compile(r"answers-\d+-of-\d+\.jsonl")
    return sorted(path for path in folder.glob("answers-*.jsonl") if pattern.fullmatch(path.name))


def write_questions(examples: Sequence[Example], folder: Path) -> None:
    """Keep questions as JSON lines, without defaults; images by their path in a common folder."""
    folders = [os.path.abspath(e.image.parent) for e in examples if isinstance(e.image, Path)]
    common = os.path.commonpath(folders) if folders else ""

    def name(image: Path | Embedded) -> str:
        path = os.path.relpath(image, common) if isinstance(image, Path) else image.name
        return Path(path).as_posix()

    def told(example: Example) -> dict[str, Any]:
        values = {k: v for k, v in vars(example).items() if v != getattr(Example, k, None)}
        return {**values, "image": name(example.image)}

    text = "".join(json.dumps(told(example)) + "\n" for example in examples)
    write_atomically(folder / QUESTIONS, text)
