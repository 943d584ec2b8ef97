"""The questions of a run and all replies: enough to score it again without model and data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.data.base import Benchmark
from cof.eval.examples import Embedded, Example
from cof.eval.json_files import from_json, read_json_lines
from cof.eval.store import Costs, Record, Store, read_costs


@dataclass(frozen=True)
class Replies:
    """Questions and the replies to them.

    Attributes:
        examples: the questions.
        records: by step (a method's key, or a grounding's), then by question.
        costs: what each step took, in the same way, and of `encoding`.
    """

    examples: Sequence[Example]
    records: Mapping[str, Mapping[str, Record]]
    costs: Costs

    @classmethod
    def read(cls, examples: Sequence[Example], stores: Iterable[Path]) -> Replies:
        """From stores; where two hold the same reply, the last one's.

        Raises:
            CofError: there is no such store, or it is damaged.
        """
        records: dict[str, dict[str, Record]] = {}
        costs: Costs = {}
        for path in stores:
            if not path.is_file():
                raise CofError(f"There is no {path}: run the evaluation again.")
            for record in Store(path).values():
                records.setdefault(record.method, {})[record.id] = record
            for step, spent in read_costs(path).items():
                costs.setdefault(step, {}).update(spent)
        return cls(examples, records, costs)

    def score(self, task: Benchmark) -> Replies:
        """With every answer read and compared by the task's rules."""
        by_id = {example.id: example for example in self.examples}

        def score(record: Record) -> Record:
            if record.error is not None:
                return record
            return replace(record, **task.score(by_id[record.id], record.text)._asdict())

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


def make_portable(examples: Sequence[Example]) -> list[Example]:
    """With images named from the folder that holds all of them, wherever that lies."""
    folders = [os.path.abspath(e.image.parent) for e in examples if isinstance(e.image, Path)]
    common = os.path.commonpath(folders) if folders else ""

    def name(image: Path | Embedded) -> Path:
        return Path(os.path.relpath(image, common) if isinstance(image, Path) else image.name)

    return [replace(example, image=name(example.image)) for example in examples]


def write_questions(examples: Sequence[Example]) -> str:
    """Questions as JSON lines; a field that is left out has its default."""

    def told(example: Example) -> dict[str, Any]:
        values = {k: v for k, v in vars(example).items() if v != getattr(Example, k, None)}
        return {**values, "image": Path(str(example.image)).as_posix()}

    return "".join(json.dumps(told(example)) + "\n" for example in make_portable(examples))


def read_questions(path: Path) -> list[Example]:
    """Read what `write_questions` wrote.

    Raises:
        CofError: there is no such file, or a line is no question.
    """
    if not path.is_file():
        raise CofError(f"There is no {path}: run the evaluation again to write it.")
    return read_json_lines(path, partial(from_json, Example), "run the evaluation again")
