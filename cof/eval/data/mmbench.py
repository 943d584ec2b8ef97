"""MMBench: multiple choice, right only in every rotation of the options (arXiv 2307.06281).

Read from its TSV files: index, question, hint, A to D, answer, category, l2-category and the
image as base64 (or the index of the row that has it), or from the hub's parquet files with the
same columns. Files with rotations (index + k * 10^6) and without are taken; without, the rotations
are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cof.errors import CofError
from cof.eval.data.base import Answers, split_by
from cof.eval.data.choice import ROTATION, ChoiceBenchmark, choice_prompt, rotate_options
from cof.eval.data.files import Row, collect
from cof.eval.examples import Example
from cof.eval.figures import Figure

LETTERS = "ABCD"


@dataclass(frozen=True)
class MMBench(ChoiceBenchmark):
    """`circular` is the benchmark's figure; `asked once` counts the first rotation alone.

    Questions of a split without answers (test) are asked, and only unparsed replies counted.
    """

    name = "mmbench"
    headline = ("circular", "asked once")
    need = ("index", "question", "A", "B", "image")

    def read(self, problems: list[str]) -> list[Example]:
        rows = self.collect(lambda row: [row], problems)
        by_index = {row.text("index"): row for row in rows}
        rotate = all(len(index) < len(str(ROTATION)) for index in by_index)
        return collect(lambda row: self._questions(row, by_index, rotate), problems, rows)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """In percent: `circular`, `asked once`, circular by l2-category and by category, and
        `unparsed`, the share of replies in which no option was found."""
        unparsed = {"unparsed": answers.unparsed(answers.examples)}
        known = [e for e in answers.examples if e.answer]
        if not known:
            return unparsed
        figures = {
            "circular": answers.share_of_groups(known),
            "asked once": answers.share([asked[0] for asked in split_by("group", known).values()]),
        }
        for field in ("area", "kind"):
            parts = split_by(field, known)
            figures |= {name: answers.share_of_groups(parts[name]) for name in sorted(parts)}
        return figures | unparsed

    def _questions(self, row: Row, by_index: Mapping[str, Row], rotate: bool) -> Iterator[Example]:
        index, question, answer = row.text("index"), row.text("question"), row.text("answer")
        texts = [row.text(letter) for letter in LETTERS]
        options = tuple(texts[: [*texts, ""].index("")])  # up to the first empty one
        holder = row if row.image else by_index.get(row.text("image"), row)
        if not re.fullmatch(r"[0-9]{1,12}", index):
            raise CofError(f"the index {index!r} is no number")
        if not question or len(options) < 2:
            raise CofError("no question with two options or more")
        if answer not in ("", *LETTERS[: len(options)]):
            raise CofError(f"the answer {answer!r} is no option")
        if holder.image is None:
            raise CofError("no image")
        group = str(int(index) % ROTATION)
        for turns in range(len(options) if rotate else 1):
            shown, letter = rotate_options(options, answer, turns)
            yield Example(
                id=str(int(index) + turns * ROTATION),
                image=self.image_of(holder, f"question {group}"),
                prompt=choice_prompt(self.prompt_style, question, shown, row.text("hint")),
                answer=letter,
                kind=row.text("category"),
                question=question,
                options=shown,
                group=group,
                area=row.text("l2-category", "L2-category"),
            )
