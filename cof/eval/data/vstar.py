"""V*Bench: attributes and positions of small objects in large images (arXiv 2312.14135).

Read from its folders `direct_attributes/` and `relative_position/`, an image and a JSON file for
each question: question, options (the first is right), bbox (`[x, y, width, height]` in pixels, one
for each object asked about).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from cof.errors import CofError
from cof.eval.data.base import read_region
from cof.eval.data.choice import ROTATION, ChoiceBenchmark, choice_prompt, rotate_options
from cof.eval.data.files import Row
from cof.eval.examples import Example
from cof.eval.json_files import read_json_object
from cof.eval.rules import VSTAR
from cof.prompting.dialects import OPTION_LETTER

KINDS = ("direct_attributes", "relative_position")


@dataclass(frozen=True)
class VStar(ChoiceBenchmark):
    """Every question is asked in each rotation of its options, the first of which is the right one.

    The prompt style `official` asks as the benchmark's own script does: the question alone, once,
    and the option whose text is most probable is the answer. The two ways' figures do not compare.
    """

    name = "vstar"
    headline = ("average", *KINDS)
    readers = VSTAR
    patterns = ("*/*.json",)
    one_split = False

    def read(self, problems: list[str]) -> list[Example]:
        return self.collect(partial(self._questions, count()), problems)

    def rows(self, file: Path) -> Iterator[Row]:
        if file.parent.name in KINDS:
            record = read_json_object(file, "download it again")
            yield Row.of_json(file, "", record, ("question", "options", "bbox"))

    def ask(self, question: str, options: Sequence[str], hint: str = "") -> str:
        if self.prompt_style == "official":
            return question
        if self.prompt_style == "lmms-eval":  # its data end in the sentence that it adds
            return choice_prompt("llava", question, options) + OPTION_LETTER
        return super().ask(question, options, hint)

    def _questions(self, numbers: Iterator[int], row: Row) -> Iterator[Example]:
        kind, question, options = row.file.parent.name, row.text("question"), row.texts("options")
        if not 2 <= len(options) <= 26:
            raise CofError("options are no list of 2 to 26")
        image = self.image_of(row, row.file.stem, kind, ".")
        region = read_region(row, image)
        number = next(numbers)
        likelihood = self.prompt_style == "official"
        for turns in range(1 if likelihood else len(options)):
            shown, answer = rotate_options(options, "A", turns)
            yield Example(
                id=str(number + turns * ROTATION),
                image=image,
                prompt=self.ask(question, shown),
                answer=answer,
                region=region,
                kind=kind,
                single=len(row.fields["bbox"]) == 1,
                question=question,
                options=shown,
                group=f"{kind}/{row.file.stem}",
                likelihood=likelihood,
            )
