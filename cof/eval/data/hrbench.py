"""HR-Bench 4K and 8K: multiple choice about small things in large images (arXiv 2408.15556).

Read from its TSV files, or parquet files with the same columns: every question four times, with its
options in four orders.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from cof.eval.data.base import shared
from cof.eval.data.choice import CycleBenchmark, choice_prompt
from cof.eval.data.files import read_rows, split_files
from cof.eval.data.mmbench import LETTERS
from cof.eval.examples import Embedded, Example


@dataclass(frozen=True)
class HRBench(CycleBenchmark):
    """The benchmark's figure is `average` over the four cycles."""

    name: ClassVar[str] = "hrbench"
    headline: ClassVar[tuple[str, ...]] = ("average", "single", "cross")

    def read(self, problems: list[str]) -> list[Example]:
        choices = [["*.tsv"], ["*.parquet"], ["*/*.parquet"]]
        files = split_files(self.path, choices, "HR-Bench file")
        need = ("index", "question", *LETTERS, "answer", "category", "image")
        known: dict[str, Embedded] = {}
        seen: Counter[str] = Counter()
        examples = []
        for row in (row for file in files for row in read_rows(file, need, problems)):
            options = tuple(row.text(letter) for letter in LETTERS)
            if row.image is None or not all(options) or row.text("answer") not in [*LETTERS]:
                problems.append(f"{row.where}: lacks an image, four options or their letter")
                continue
            question = row.text("question")
            true = options[LETTERS.index(row.text("answer"))]
            # the cycles of a question have no mark of their own; an order of the options that
            # comes again is another question in the same words, about another image
            group = f"{question} {true} {sorted(options)}"
            times = seen[f"{group} {options}"]
            seen[f"{group} {options}"] += 1
            group += f" {times}" * (times > 0)
            examples.append(
                Example(
                    id=row.text("index"),
                    image=shared(known, group, row.image),
                    prompt=choice_prompt(self.prompt_style, question, options),
                    answer=row.text("answer"),
                    kind=row.text("category"),
                    question=question,
                    options=options,
                    group=group,
                )
            )
        return examples
