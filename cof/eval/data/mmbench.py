"""MMBench: multiple choice, right only in every rotation of the options (arXiv 2307.06281).

Read from its TSV files: index, question, hint, A to D, answer, category, l2-category and the
image as base64 (or the index of the row that has it), or from the hub's parquet files with the
same columns. Files with rotations (index + k * 10^6) and without are taken; without, the rotations
are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cof.eval.data.base import Replies, shared
from cof.eval.data.choice import ROTATION, ChoiceBenchmark, choice_prompt, rotate_options
from cof.eval.data.files import Row, read_rows, split_files
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Figure
from cof.eval.rules import Rules

LETTERS = "ABCD"


@dataclass(frozen=True)
class MMBench(ChoiceBenchmark):
    """`circular` is the benchmark's figure; `asked once` counts the first rotation alone.

    Questions of a split without answers (test) are asked, and only unparsed replies counted.
    """

    name: ClassVar[str] = "mmbench"
    headline: ClassVar[tuple[str, ...]] = ("circular", "asked once")

    @property
    def files(self) -> list[Path]:
        """The split's.

        Raises:
            CofError: the folder has none, or several splits.
        """
        choices = [["*.tsv"], ["*.parquet"], ["*/*.parquet"]]
        return split_files(self.path, choices, "MMBench file")

    def read(self, problems: list[str]) -> list[Example]:
        need = ("index", "question", "A", "B", "image")
        table = [row for file in self.files for row in read_rows(file, need, problems)]
        by_index = {row.text("index"): row for row in table}
        rotate = all(len(index) < len(str(ROTATION)) for index in by_index)
        known: dict[str, Embedded] = {}
        return [
            example
            for row in table
            for example in self._questions(row, by_index, known, rotate, problems)
        ]

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """In percent: `circular`, `asked once`, circular by l2-category and by category, and
        `unparsed`, the share of replies in which no option was found."""
        choices = self.choice_figures(examples, replies, rules)
        known = [e for e in examples if e.answer]
        if not known:
            return {"unparsed": choices.unparsed}
        areas = sorted({e.area for e in known if e.area})
        kinds = sorted({e.kind for e in known if e.kind})
        return {
            "circular": choices.circular(known),
            "asked once": choices.asked_once(known),
            **{area: choices.circular([e for e in known if e.area == area]) for area in areas},
            **{kind: choices.circular([e for e in known if e.kind == kind]) for kind in kinds},
            "unparsed": choices.unparsed,
        }

    def _questions(
        self,
        row: Row,
        by_index: Mapping[str, Row],
        known: dict[str, Embedded],
        rotate: bool,
        problems: list[str],
    ) -> Iterator[Example]:
        index, question, answer = row.text("index"), row.text("question"), row.text("answer")
        options = _options(row)
        holder = row if row.image else by_index.get(row.text("image_of"))
        wrong = (
            (not re.fullmatch(r"[0-9]{1,12}", index), f"the index {index!r} is no number"),
            (not question or len(options) < 2, "no question with two options or more"),
            (answer not in ("", *LETTERS[: len(options)]), f"the answer {answer!r} is no option"),
            (holder is None or holder.image is None, "no image"),
        )
        problems += [f"{row.where}: {reason}" for is_so, reason in wrong if is_so]
        if any(is_so for is_so, _ in wrong) or holder is None or holder.image is None:
            return
        group = str(int(index) % ROTATION)
        image = shared(known, f"question {group}", holder.image)
        for turns in range(len(options) if rotate else 1):
            shown, letter = rotate_options(options, answer, turns)
            yield Example(
                id=str(int(index) + turns * ROTATION),
                image=image,
                prompt=choice_prompt(self.prompt_style, question, shown, row.text("hint")),
                answer=letter,
                kind=row.text("category"),
                question=question,
                options=shown,
                group=group,
                area=row.text("l2-category") or row.text("L2-category"),
            )


def _options(row: Row) -> tuple[str, ...]:
    """Up to the first empty one."""
    texts = [row.text(letter) for letter in LETTERS]
    return tuple(texts[: texts.index("")] if "" in texts else texts)
