"""The base of every benchmark that is read from files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from cof.errors import CofError
from cof.eval.data.files import Row, collect, data_files, read_rows, shards
from cof.eval.examples import (
    Embedded,
    Example,
    Score,
    image_digest,
    open_image,
    read_image_wh,
    select,
)
from cof.eval.figures import Clusters, Figure, find_clusters, group_right, ratio, share
from cof.eval.json_files import T
from cof.eval.rules import RULES, Rules
from cof.geometry.boxes import XYXY
from cof.geometry.regions import region_from_boxes

PromptStyle = Literal["llava", "llava-ocr", "official", "lmms-eval", "vlmevalkit", "tiny"]
"""Whose prompts: LLaVA-1.5's (`llava-ocr`: with recognised text, where the data has it), the
benchmark's own, a harness's, or those that the embedded model was trained on."""

Part = Literal["all", "validation", "test"]

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGE_ENDINGS = (*_ENDINGS, *map(str.upper, _ENDINGS))

Replies = Mapping[str, str | None]
"""Question -> reply; None: there is none."""

_MOST_SHOWN = 3  # problems in a refusal; --check shows all


@dataclass(frozen=True)
class Answers:
    """The answer a rule set reads to each question (None: unparsed), and figures in percent."""

    examples: Sequence[Example]
    replies: Replies
    read: Mapping[str, str | None]
    rules: Rules

    @cached_property
    def clusters(self) -> Clusters:
        """Questions and groups that belong together."""
        return find_clusters(self.examples)

    def share(self, examples: Sequence[Example]) -> Figure:
        """Of right answers, every question counted by itself."""
        return share({e.id: self.read[e.id] == e.answer for e in examples}, self.clusters)

    def share_of_groups(self, examples: Sequence[Example]) -> Figure:
        """Of groups all of whose questions are right."""
        right = {e.id: self.read[e.id] == e.answer for e in examples}
        return share(group_right(examples, right), self.clusters)

    def unparsed(self, examples: Sequence[Example]) -> Figure:
        """The share of replies without an answer in them."""
        return ratio(((e.id, self.read[e.id] is None, 1) for e in examples), self.clusters)


@dataclass(frozen=True)
class Benchmark(ABC):
    """Questions out of a data set as it is distributed, and whether a reply is right.

    Attributes:
        path: the folder or file.
        rules: how answers are read out of replies.
        prompt_style: whose prompts.
        images: folder of the images, if they are not beside the questions.
        limit: about so many questions, the first ones of each kind, without tearing groups apart.
        shard: `(i, n)`: only the i-th of n parts, i from 1; groups stay whole.
        part: `validation` or `test` instead of `all`: questions about one image stay together.
        share: of the images that `validation` gets, 0..1; the others are `test`'s.
        name: for files and messages.
        headline: the metrics that papers quote.
        stage_one: whether only the boxes of stage 1 are measured.
        patterns: of its files in a folder, the preferred kind first.
        need: columns without which a row of them is of no use.
        one_split: whether files that are no parts of one split are refused.

    Raises:
        CofError: no such data, rules or prompt style; reading the examples: the data has problems.
    """

    path: Path
    rules: Rules = "official"
    prompt_style: PromptStyle = "llava"
    images: Path | None = None
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    part: Part = "all"
    share: float = 0.25

    name: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    stage_one: ClassVar[bool] = False
    has_ocr: ClassVar[bool] = False
    patterns: ClassVar[tuple[str, ...]] = ("*.tsv", "*.parquet", "*/*.parquet")
    need: ClassVar[tuple[str, ...]]
    one_split: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for what, value, known in (
            ("are no rules", self.rules, RULES),
            ("is no prompt style", self.prompt_style, get_args(PromptStyle)),
        ):
            if value not in known:
                raise CofError(f"There {what} {value!r}; there are {', '.join(known)}.")
        if self.prompt_style == "llava-ocr" and not self.has_ocr:
            raise CofError(f"{self.name} has no recognised text: its prompt style is llava.")
        if not 0 < self.share <= 1:
            raise CofError(f"The validation part's share is in 0..1, not {self.share}.")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise CofError(f"A shard is i/n with i from 1 to n, such as 2/4, not {part}/{parts}.")
        for path in filter(None, (self.path, self.images)):
            if not (path.exists() or shards(path)):
                raise CofError(f"There is no {path}: name the data set's folder or file.")

    @abstractmethod
    def read(self, problems: list[str]) -> list[Example]:
        """All questions; `problems` gets a sentence for everything that is wrong with the data."""

    @abstractmethod
    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        """The answer in a reply under a rule set; None: unparsed."""

    @abstractmethod
    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """Figures by name, as papers write them (most 0..100); `headline` is among them."""

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """Figures by name; a question without a reply (None) is wrong and unparsed."""
        read = {
            e.id: None if (text := replies[e.id]) is None else self.parse(e, text, rules)
            for e in examples
        }
        return self.figures_of(Answers(examples, replies, read, rules))

    def judged_boxes(self, text: str, boxes: tuple[XYXY, ...]) -> tuple[XYXY, ...]:
        """The boxes of stage 1's reply (xyxy in 0..1) that count: the box around them is judged."""
        return boxes

    def groups(self, examples: Sequence[Example]) -> dict[str, list[Example]]:
        """The groups that results are broken down to: all, each kind, each number of objects."""
        groups = {"all": list(examples)} if examples else {}
        kinds = split_by("kind", examples)
        if len(kinds) > 1:
            groups |= kinds
        numbers = sorted(split_by("num_objects", examples).items())
        return groups | {f"{n} objects": asked for n, asked in numbers}

    def score(self, example: Example, text: str) -> Score:
        parsed = self.parse(example, text, self.rules)
        return Score(parsed, parsed is not None and parsed == example.answer)

    @cached_property
    def examples(self) -> list[Example]:
        """The questions of this part and shard within the limit.

        Raises:
            CofError: anything is wrong with the data.
        """
        examples, problems = self._read
        if problems:
            raise CofError(
                f"{self.path} has {len(problems)} problem{'s' * (len(problems) > 1)}: "
                f"{'; '.join(problems[:_MOST_SHOWN])}. List all with `cof eval {self.name} "
                f"{self.path} --check`."
            )
        chosen = select(part_of(examples, self.part, self.share), self.limit, self.shard)
        if not chosen:
            part = "" if self.part == "all" else f" in the {self.part} part (share {self.share:g})"
            raise CofError(f"{self.path} leaves no questions{part} for this limit and shard.")
        return chosen

    @property
    def files(self) -> list[Path]:
        """Those with the questions.

        Raises:
            CofError: there are none, or those of several splits.
        """
        return data_files(self.path, self.patterns, one_split=self.one_split)

    def collect(self, make: Callable[[Row], Iterable[T]], problems: list[str]) -> list[T]:
        """What is made of the rows of all files (`cof.eval.data.files.collect`)."""
        return collect(make, problems, *map(self.rows, self.files))

    def rows(self, file: Path) -> Iterator[Row]:
        """The records of one file."""
        return read_rows(file, self.need)

    def image_of(self, row: Row, name: str, *folders: str) -> Path | Embedded:
        """The image that a row holds, under a name that questions about it share; else a file.

        Args:
            row: of a data file.
            name: the image's. A file without an ending is tried with the usual ones, one with it in
                the other case too, and at last without the folders in its name.
            folders: where the file may lie, seen from the folder of the images and from the row's.
        """
        if row.image is not None:
            return replace(row.image, name=name or row.where)
        stem, endings, own = name, IMAGE_ENDINGS, Path(name).suffix
        if own.lower() in IMAGE_ENDINGS:
            stem, endings = name.removesuffix(own), (own, own.swapcase())
        tried = [
            Path(os.path.normpath(base / folder / f"{each}{ending}"))
            for each in dict.fromkeys((stem, Path(stem).name))
            for base in filter(None, (self.images, row.file.parent))
            for folder in folders
            for ending in endings
        ]
        return next(filter(os.path.isfile, tried), tried[0])

    def check(self) -> list[str]:
        """Everything that is wrong with the data, every image decoded; empty: nothing."""
        examples, problems = self._read
        damaged = []
        for image in dict.fromkeys(example.image for example in examples):
            if isinstance(image, Path) and not os.path.isfile(image):
                continue  # already among the problems
            try:
                open_image(image)
            except CofError as error:
                damaged.append(str(error).rstrip("."))
        return [*problems, *damaged]

    @cached_property
    def _read(self) -> tuple[list[Example], tuple[str, ...]]:
        problems: list[str] = []
        examples = self._annotate(self.read(problems), problems)
        times = Counter(example.id for example in examples)
        problems += [f"id {id} comes more than once" for id, n in times.items() if n > 1]
        images = dict.fromkeys(e.image for e in examples if isinstance(e.image, Path))
        problems += [f"there is no image {path}" for path in images if not os.path.isfile(path)]
        if not examples and not problems:
            problems.append("it holds no questions")
        return examples, tuple(dict.fromkeys(problems))

    def _annotate(self, examples: list[Example], problems: list[str]) -> list[Example]:
        """With the true regions of `annotations.jsonl` beside the data, if there is one: lines
        with id (of the question, or of its group), region, num_objects and single."""
        folder = self.path if self.path.is_dir() else self.path.parent
        need = ("id", "region", "num_objects", "single")
        rows = (read_rows(path, need) for path in folder.glob("annotations.jsonl"))
        known = dict(
            collect(lambda row: [(row.text("id"), read_annotation(row.fields))], problems, *rows)
        )
        return [
            replace(example, **(known.get(example.id) or known.get(example.group) or {}))
            for example in examples
        ]


def read_annotation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Region, num_objects and single of a question, from the fields of those names.

    Raises:
        CofError: they hold something else.
    """
    region, num_objects, single = fields["region"], fields["num_objects"], fields["single"]
    if not isinstance(single, bool) or not (num_objects is None or isinstance(num_objects, int)):
        raise CofError("single is true or false, and num_objects a number of objects or null.")
    box = None if region is None else region_from_boxes([region]).boxes[0]
    return {"region": box, "num_objects": num_objects, "single": single}


def part_of(examples: Sequence[Example], part: Part, share: float) -> list[Example]:
    """The questions of a part, in their order.

    The fingerprint of a question's image file decides its part, so that questions about one image
    are in the same part, in whatever file they stand; and more data changes nothing for those that
    were there before. `validation` gets a share (0..1) of the images.

    Raises:
        CofError: an image cannot be read.
    """
    if part == "all" or (part == "validation" and share == 1):
        return list(examples)
    below = {
        image: int(image_digest(image)[:16], 16) < share * 16**16
        for image in dict.fromkeys(example.image for example in examples)
    }
    return [example for example in examples if below[example.image] == (part == "validation")]


def split_by(field: str, examples: Iterable[Example]) -> dict[Any, list[Example]]:
    """The questions that have a field, by its values in the order in which they come."""
    found: dict[Any, list[Example]] = {}
    for example in examples:
        found.setdefault(getattr(example, field), []).append(example)
    return {value: asked for value, asked in found.items() if value}


def read_region(row: Row, image: Path | Embedded, *, corners: bool = False) -> XYXY:
    """The box around all boxes of a row's `bbox`, in 0..1 of the image.

    Args:
        row: `bbox` is one box or several in pixels, each `[x, y, width, height]`, or with
            `corners` `[x1, y1, x2, y2]`; `width` and `height` are the image's, if it has them.
        image: tells its size if the row does not.

    Raises:
        CofError: a box is none, or the size is unknown.
    """
    size = (row.fields.get("width"), row.fields.get("height"))
    wh: Any = size if all(size) else read_image_wh(image)
    if wh is None:
        raise CofError(f"the size of {image} is neither given nor found in it")
    try:
        low, high = np.asarray(row.fields["bbox"], np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
        if not corners:
            high = low + high
        ends = np.concatenate([low.min(axis=0) / wh, high.max(axis=0) / wh])
        good = np.isfinite(ends).all() and (low < high).all() and min(wh) > 0
    except (OverflowError, TypeError, ValueError):
        good = False
    if not good:
        raise CofError("bbox is no box in pixels, or width and height are no numbers above 0")
    x1, y1, x2, y2 = map(float, ends)
    return x1, y1, x2, y2
