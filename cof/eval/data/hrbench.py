"""HR-Bench 4K and 8K: multiple choice about small things in large images (arXiv 2408.15556).

Read from its TSV files, or parquet files with the same columns: every question four times, with its
options in four orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cof.errors import CofError
from cof.eval.data.choice import ChoiceBenchmark, choice_prompt
from cof.eval.data.files import Row
from cof.eval.data.mmbench import LETTERS
from cof.eval.examples import Example


@dataclass(frozen=True)
class HRBench(ChoiceBenchmark):
    """The benchmark's figure is `average` over the four cycles."""

    name = "hrbench"
    headline = ("average", "single", "cross")
    need = ("index", "question", *LETTERS, "answer", "category", "image")

    def read(self, problems: list[str]) -> list[Example]:
        seen: Counter[str] = Counter()

        def question(row: Row) -> Iterator[Example]:
            options, answer = tuple(map(row.text, LETTERS)), row.text("answer")
            if row.image is None or not all(options) or answer not in [*LETTERS]:
                raise CofError("lacks an image, four options or their letter")
            # the cycles of a question have no mark of their own; an order of the options that
            # comes again is another question in the same words, about another image
            group = f"{row.text('question')} {options[LETTERS.index(answer)]} {sorted(options)}"
            cycle = f"{group} {options}"
            seen[cycle] += 1
            group += f" {seen[cycle] - 1}" * (seen[cycle] > 1)
            yield Example(
                id=row.text("index"),
                image=self.image_of(row, group),
                prompt=choice_prompt(self.prompt_style, row.text("question"), options),
                answer=answer,
                kind=row.text("category"),
                question=row.text("question"),
                options=options,
                group=group,
            )

        return self.collect(question, problems)
