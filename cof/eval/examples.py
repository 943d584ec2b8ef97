"""Questions with their images and true answers; an image is a file, or bytes inside a data file."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from cof.errors import CofError
from cof.geometry.boxes import XYXY
from cof.images import load_image


@dataclass(frozen=True)
class Embedded:
    """An image inside a data file (base64 in a table, bytes in parquet), read when it is needed."""

    name: str  # unique within the task; questions with the same name share the image
    load: Callable[[], bytes] = field(compare=False, repr=False)  # gives the image file's bytes

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
    """The answer in a reply (None: not just one), and whether it is the true one; None is not."""

    parsed: str | None
    right: bool


def open_image(source: Path | Embedded) -> Image.Image:
    """The image of a question, upright RGB.

    Raises:
        CofError: it is missing or damaged.
    """
    if isinstance(source, Path):
        return load_image(source)
    try:
        return load_image(source.load())
    except CofError as error:
        raise CofError(f"{source.name}: {error}") from error


def read_image_wh(source: Path | Embedded) -> tuple[int, int] | None:
    """`(width, height)` in pixels of the upright image, without decoding it; None: no image."""
    try:
        data = source if isinstance(source, Path) else io.BytesIO(source.load())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(data) as opened:
                width, height = opened.size
                orientation = opened.getexif().get(ExifTags.Base.Orientation)
                return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    except Exception:  # Pillow's readers raise many kinds on damaged files; `open_image` tells why
        return None


def image_digest(source: Path | Embedded) -> str:
    """A fingerprint of the image's file: equal where the bytes are, wherever they lie.

    Raises:
        CofError: it cannot be read.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.load()
    except OSError as error:
        raise CofError(f"{source} cannot be read: {error.strerror}.") from error
    return hashlib.sha256(data).hexdigest()


def select(examples: Sequence[Example], limit: int | None, shard: tuple[int, int]) -> list[Example]:
    """The questions of a limit and a shard, in their order; groups stay whole.

    The limit takes the first groups of every kind in turn; a shard takes every n-th of those.
    """
    groups: dict[str, list[Example]] = {}
    kinds: dict[str, dict[str, None]] = {}
    for example in examples:
        key = example.group or example.id
        groups.setdefault(key, []).append(example)
        kinds.setdefault(example.kind, {})[key] = None
    if limit is not None:
        count, kept = 0, set()
        for key in chain.from_iterable(zip_longest(*kinds.values())):
            if key is not None and count < limit:
                kept.add(key)
                count += len(groups[key])
        groups = {key: group for key, group in groups.items() if key in kept}
    part, parts = shard
    return [example for group in list(groups.values())[part - 1 :: parts] for example in group]
