"""HR-Bench 4K and 8K: multiple choice about small things in large images (arXiv 2408.15556).

Read from its TSV or parquet files: every question four times, with its options in four orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

from cof.eval.data.choice import ChoiceTable, choice_prompt, list_options
from cof.eval.data.files import Row
from cof.eval.rules import HRBENCH


@dataclass(frozen=True)
class HRBench(ChoiceTable):
    """The benchmark's figure is `average` over the four cycles."""

    name = "hrbench"
    headline = ("average", "single", "cross")
    readers = HRBENCH
    _seen: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def group_of(self, row: Row, options: Sequence[str], answer: str) -> str:
        # the cycles of a question have no mark of their own; an order of the options that comes
        # again is another question in the same words, about another image
        right = options[ascii_uppercase.index(answer)]
        group = f"{row.text('question')} {right} {sorted(options)}"
        cycle = f"{group} {options}"
        self._seen[cycle] += 1
        return group + f" {self._seen[cycle] - 1}" * (self._seen[cycle] > 1)

    def ask(self, question: str, options: Sequence[str], hint: str = "") -> str:
        if self.prompt_style == "lmms-eval":
            return f"{question}\n{list_options(options)}\nAnswer the option letter directly."
        style = "vlmevalkit" if self.prompt_style == "official" else self.prompt_style
        return choice_prompt(style, question, options, hint)
