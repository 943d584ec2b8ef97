"""The base of every benchmark that is read from files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from cof.errors import CofError
from cof.eval.data.files import read_rows, shards
from cof.eval.data.parts import Part, part_of
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Clusters, Figure, ratio
from cof.eval.images import open_image
from cof.eval.rules import RULES, Rules
from cof.eval.scoring import Score
from cof.geometry.regions import region_from_boxes

PromptStyle = Literal["llava", "llava-ocr", "official", "lmms-eval", "vlmevalkit", "tiny"]
"""Whose prompts: LLaVA-1.5's (`llava-ocr`: with recognised text, where the data has it), the
benchmark's own, a harness's, or those that the embedded model was trained on."""

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Replies = Mapping[str, str | None]
"""Question -> reply; None: there is none."""

_MOST_SHOWN = 3  # problems in a refusal; --check shows all


@dataclass(frozen=True)
class Benchmark(ABC):
    """A `cof.eval.examples.Task` over a data set as it is distributed.

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

    def __post_init__(self) -> None:
        if self.rules not in RULES:
            raise CofError(f"There are no rules {self.rules!r}; there are {', '.join(RULES)}.")
        if self.prompt_style not in get_args(PromptStyle):
            known = ", ".join(get_args(PromptStyle))
            raise CofError(f"There is no prompt style {self.prompt_style!r}; there are {known}.")
        if self.prompt_style == "llava-ocr" and not self.has_ocr:
            raise CofError(f"{self.name} has no recognised text: its prompt style is llava.")
        if self.part not in get_args(Part):
            raise CofError(f"A part is {', '.join(get_args(Part))}, not {self.part!r}.")
        if not 0 < self.share <= 1:
            raise CofError(
                f"share is the validation part's, above 0 and at most 1, not {self.share}."
            )
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise CofError(f"A shard is i/n with i from 1 to n, such as 2/4, not {part}/{parts}.")
        for path in (self.path, self.images):
            if path is not None and not self.is_there(path):
                raise CofError(f"There is no {path}: name the data set's folder or file.")

    @classmethod
    def is_there(cls, path: Path) -> bool:
        """Whether a path names something: a file or folder, or a split of several files."""
        return path.exists() or bool(shards(path))

    @abstractmethod
    def read(self, problems: list[str]) -> list[Example]:
        """All questions; `problems` gets a sentence for everything that is wrong with the data."""

    @abstractmethod
    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        """The answer in a reply under a rule set; None: unparsed."""

    @abstractmethod
    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """Figures by name, as papers write them (most 0..100); `headline` is among them.

        Args:
            examples: the questions.
            replies: to each of them; None: there is no reply, which is wrong and unparsed.
            rules: how answers are read out of replies.
        """

    def read_answers(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, str | None]:
        """The answer in each reply; None: unparsed."""
        return {
            example.id: None if text is None else self.parse(example, text, rules)
            for example in examples
            for text in (replies[example.id],)
        }

    def groups(self, examples: Sequence[Example]) -> dict[str, list[Example]]:
        """The questions by the groups that results are broken down to: all of them, those of each
        kind, and of each number of objects."""
        groups = {"all": list(examples)} if examples else {}
        kinds = list(dict.fromkeys(e.kind for e in examples if e.kind))
        if len(kinds) > 1:
            groups |= {kind: [e for e in examples if e.kind == kind] for kind in kinds}
        for n in sorted({e.num_objects for e in examples if e.num_objects}):
            groups[f"{n} objects"] = [e for e in examples if e.num_objects == n]
        return groups

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
            shown = "; ".join(problems[:_MOST_SHOWN])
            rest = f"; and {len(problems) - _MOST_SHOWN} more" * (len(problems) > _MOST_SHOWN)
            raise CofError(
                f"{self.path} has {len(problems)} problem{'s' * (len(problems) > 1)}: {shown}"
                f"{rest}. List all with `cof eval {self.name} {self.path} --check`."
            )
        chosen = select(part_of(examples, self.part, self.share), self.limit, self.shard)
        if not chosen:
            raise CofError(f"{self.path} leaves no questions for this part, limit and shard.")
        return chosen

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
        path = folder / "annotations.jsonl"
        if not path.is_file():
            return examples
        need = ("id", "region", "num_objects", "single")
        known: dict[str, dict[str, Any]] = {}
        for row in read_rows(path, need, problems):
            try:
                known[row.text("id")] = read_annotation(row.fields)
            except CofError as error:
                problems.append(f"{row.where}: {str(error).rstrip('.')}")
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


def select(examples: Sequence[Example], limit: int | None, shard: tuple[int, int]) -> list[Example]:
    """The questions of a limit and a shard, in their order; groups stay whole.

    The limit takes the first groups of every kind in turn, so that a short run has all kinds; a
    shard takes every n-th group of those.
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


def image_path(folders: Sequence[Path], name: str) -> Path:
    """The file of that name in the first folder that has it; else where it was looked for first.

    A name without an ending is tried with the usual ones.
    """
    names = [name] if Path(name).suffix.lower() in IMAGE_ENDINGS else []
    names = names or [f"{name}{ending}" for ending in IMAGE_ENDINGS]
    for folder in folders:
        for candidate in names:
            if os.path.exists(folder / candidate):
                return folder / candidate
    return folders[0] / names[0]


def unparsed(answers: Mapping[str, str | None], clusters: Clusters) -> Figure:
    """The share of replies without an answer in them, in percent."""
    return ratio(((id, answer is None, 1) for id, answer in answers.items()), clusters)


def shared(known: dict[str, Embedded], name: str, image: Embedded) -> Embedded:
    """The image under a name: the first one that came with it, so that it is encoded once."""
    return known.setdefault(name, Embedded(name, image.load))
