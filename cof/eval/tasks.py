"""What is asked: a task gives examples and scores replies. One class per benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from cof.errors import CofError
from cof.eval.scoring import Score, exact_match
from cof.geometry.boxes import XYXY
from cof.tiny.scenes import COLORS, LETTERS, SHAPES


@dataclass(frozen=True)
class Embedded:
    """A picture inside a data file (base64 in a table, bytes in parquet), read when it is needed.

    Attributes:
        name: unique within the task; questions with the same name share the picture.
        load: gives the bytes of the image file.
    """

    name: str
    load: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        id: unique within the task.
        image: path of its picture, or the picture in a data file; questions with equal ones share
            it.
        prompt: the whole prompt.
        answer: the true answer.
        region: the true region, xyxy in 0..1 of the image; None: the whole image, or unknown.
        kind: category by which results are broken down.
        num_objects: number of objects in the picture; None: unknown.
        single: whether the region is that of exactly one object.
        question: what stage 1 is asked about where that is not the prompt; empty: the prompt.
        options: of a multiple-choice question, in the order A, B, C, ...
        answers: all accepted answers, where there are several.
        group: questions that count together share it: an image's pair in MME, the rotations of a
            question in MMBench; empty: the question counts alone.
        area: a wider category above `kind`.
        likelihood: the answer is the option that the model finds most probable as its reply.
    """

    id: str
    image: Path | Embedded
    prompt: str
    answer: str
    region: XYXY | None = None
    kind: str = ""
    num_objects: int | None = None
    single: bool = False
    question: str = ""
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ""
    area: str = ""
    likelihood: bool = False


class Task(Protocol):
    """A benchmark: how many examples, which, and whether a reply is right."""

    @property
    def name(self) -> str: ...

    def num_examples(self) -> int: ...

    def get_example(self, index: int) -> Example: ...

    def score(self, example: Example, text: str) -> Score: ...


YES_NO = ("yes", "no")
_CHOICES: dict[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "letter": tuple(LETTERS),
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": ("small", "large"),
    "choice": tuple("ABCD"),
    "count": tuple(str(n) for n in range(21)),
}


@dataclass(frozen=True)
class SceneTask:
    """The files that `cof.tiny.benchmark.write_benchmark` makes.

    Attributes:
        folder: holds `questions.jsonl` and `images/`.
        limit: only the first so many questions; None: all.
        name: for messages.

    Raises:
        CofError: there is no such file, a line of it cannot be read, or an id comes twice.
    """

    folder: Path
    limit: int | None = None
    name: str = "tiny"

    def num_examples(self) -> int:
        return len(self.examples)

    def get_example(self, index: int) -> Example:
        return self.examples[index]

    def score(self, example: Example, text: str) -> Score:
        """Exact match among the answers that the kind of question can have."""
        # whether a count or an object is as stated is a yes/no question whatever its kind
        choices = YES_NO if example.answer in YES_NO else _CHOICES[example.kind]
        return exact_match(text, example.answer, choices)

    @cached_property
    def examples(self) -> list[Example]:
        """All questions within the limit."""
        path = self.folder / "questions.jsonl"
        if not path.is_file():
            if self.folder.is_file():
                raise CofError(f"{self.folder} is a file: give the folder that `cof scenes` made.")
            raise CofError(f"There is no {path}: make it with `cof scenes {self.folder}`.")
        examples: list[Example] = []
        for number, line in enumerate(path.read_text("utf-8").splitlines()[: self.limit], start=1):
            try:
                examples.append(self._example(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise CofError(
                    f"{path}, line {number} is no question ({error}): make the file again."
                ) from error
        if len({example.id for example in examples}) < len(examples):
            raise CofError(f"{path} holds an id twice: make the file again.")
        if not examples:
            raise CofError(f"{path} is empty: make it again, or raise the limit.")
        return examples

    def _example(self, record: dict[str, Any]) -> Example:
        region = record["region"]
        if record["kind"] not in _CHOICES and record["answer"] not in YES_NO:
            raise ValueError(f"it is of no known kind: {record['kind']!r}")
        return Example(
            id=record["id"],
            image=self.folder / record["image"],
            prompt=record["question"],
            answer=record["answer"],
            region=None if region is None else tuple(region),
            kind=record["kind"],
            num_objects=record["num_objects"],
            single=len(record["targets"]) == 1,
        )
