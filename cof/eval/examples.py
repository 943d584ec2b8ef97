"""What is asked: a question with its image and true answer, and how a reply to it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cof.geometry.boxes import XYXY


@dataclass(frozen=True)
class Embedded:
    """An image inside a data file (base64 in a table, bytes in parquet), read when it is needed.

    Attributes:
        name: unique within the task; questions with the same name share the image.
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
        image: path of its image, or the image in a data file; questions with equal ones share it.
        prompt: the whole prompt.
        answer: the true answer.
        region: the true region, xyxy in 0..1 of the image; None: the whole image, or unknown.
        kind: category by which results are broken down.
        num_objects: number of objects in the image; None: unknown.
        single: whether the region is that of exactly one object.
        question: what stage 1 is asked about where that is not the prompt; empty: the prompt.
        options: of a multiple-choice question, in the order A, B, C, ...; an empty one is none.
        answers: all accepted answers, where there are several.
        group: questions that count together share it: an image's pair in MME, the rotations of a
            question in MMBench; empty: the question counts alone.
        area: a wider category above `kind`.
        likelihood: the answer is the option that the model finds most probable as its reply.
        split: of a file that holds several, such as dev and test.
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
    split: str = ""


class Score(NamedTuple):
    """How a reply did: the answer read from it (None: none of the possible ones, or more than one),
    and whether that is the true one. An unparsed reply is wrong."""

    parsed: str | None
    right: bool
