"""V*Bench: attributes and relative positions of small objects in large images, with their boxes
(arXiv 2312.14135).

Read from its folders `direct_attributes/` and `relative_position/`, an image and a JSON file for
each question: question, options (the first is right), bbox (`[x, y, width, height]` in pixels, one
for each object asked about).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

from cof.errors import CofError
from cof.eval.data.base import read_region
from cof.eval.data.choice import ROTATION, ChoiceBenchmark, choice_prompt, rotate_options
from cof.eval.data.files import Row, collect
from cof.eval.examples import Example
from cof.eval.json_files import read_json_object

KINDS = ("direct_attributes", "relative_position")


@dataclass(frozen=True)
class VStar(ChoiceBenchmark):
    """Every question is asked in each rotation of its options, so that the place of the right one,
    always the first in the data, says nothing.

    The prompt style `official` asks as the benchmark's own script does: the question alone, once,
    and the option whose text the model finds most probable is the answer. Figures of the two ways
    are not comparable.
    """

    name: ClassVar[str] = "vstar"
    headline: ClassVar[tuple[str, ...]] = ("average", *KINDS)

    def read(self, problems: list[str]) -> list[Example]:
        files = [file for kind in KINDS for file in sorted((self.path / kind).glob("*.json"))]
        if not files:
            raise CofError(f"{self.path} has no JSON files in {' or '.join(KINDS)}.")
        return collect(self._questions, problems, *map(_read, files, count()))

    def _questions(self, row: Row) -> Iterator[Example]:
        kind, question, options = row.file.parent.name, row.text("question"), row.fields["options"]
        if not isinstance(options, list) or not 2 <= len(options) <= 26:
            raise CofError("options are no list of 2 to 26")
        image = self.image_of(row, f"{kind}/{row.file.stem}", ".")
        region = read_region(row, image)
        likelihood = self.prompt_style == "official"
        for turns in range(1 if likelihood else len(options)):
            shown, answer = rotate_options([*map(str, options)], "A", turns)
            prompt = choice_prompt(self.prompt_style, question, shown)
            yield Example(
                id=str(row.fields["number"] + turns * ROTATION),
                image=image,
                prompt=question if likelihood else prompt,
                answer=answer,
                region=region,
                kind=kind,
                single=len(row.fields["bbox"]) == 1,
                question=question,
                options=shown,
                group=f"{kind}/{row.file.stem}",
                likelihood=likelihood,
            )


def _read(file: Path, number: int) -> Iterator[Row]:
    record = {**read_json_object(file, "download it again"), "number": number}
    yield Row.of_json(file, "", record, ("question", "options", "bbox"))
