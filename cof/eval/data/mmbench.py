"""MMBench: multiple choice, right only in every rotation of the options (arXiv 2307.06281).

Read from its TSV files (`cof.eval.data.choice.ChoiceTable`), or from the hub's parquet files with
the same columns. Files with rotations (index + k * 10^6) and without are taken; without, the
rotations are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cof.eval.data.base import Answers, split_by
from cof.eval.data.choice import ROTATION, ChoiceTable, index_of
from cof.eval.data.files import Row
from cof.eval.figures import Figure


@dataclass(frozen=True)
class MMBench(ChoiceTable):
    """`circular` is the benchmark's figure; `asked once` counts the first rotation alone.

    Questions of a split without answers (test) are asked, and only unparsed replies counted.
    """

    name = "mmbench"
    headline = ("circular", "asked once")
    answered = False
    rotated = True

    def group_of(self, row: Row, options: Sequence[str], answer: str) -> str:
        return str(int(index_of(row)) % ROTATION)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """In percent: `circular`, `asked once`, circular by l2-category and by category, and
        `unparsed`, the share of replies in which no option was found. Of a file with several splits
        the same for each, as `dev: circular`."""
        splits = split_by("split", answers.examples)
        if len(splits) > 1:
            return {
                f"{split}: {name}": figure
                for split, asked in splits.items()
                for name, figure in self.figures_of(replace(answers, examples=asked)).items()
            }
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
