"""POPE: is there such an object, absent ones being chosen in three ways (arXiv 2305.10355).

Read from its JSON lines (`coco_pope_random.json` and so on; fields question_id, image, text, label)
with a folder of the COCO images, or from the hub's parquet files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark, split_by
from cof.eval.data.files import Row, read_rows
from cof.eval.examples import Example
from cof.eval.figures import Figure, ratio, total
from cof.eval.rules import POPE as READERS
from cof.eval.rules import Rules
from cof.prompting.dialects import SHORT_ANSWER

KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class POPE(Benchmark):
    """Papers quote F1 with "yes" as the positive answer, in percent."""

    name = "pope"
    headline = tuple(f"{kind} f1" for kind in (*KINDS, "pooled"))
    # the hub's repository has the same questions in data/ and in Full/
    patterns = (
        *(f"{folder}*pope_*.json*" for folder in ("", "*/", "*/*/")),
        *("*.parquet", "data/*.parquet", "*/*.parquet"),
    )
    one_split = False

    def read(self, problems: list[str]) -> list[Example]:
        examples = self.collect(self._question, problems)
        return sorted(examples, key=lambda e: KINDS.index(e.kind))

    def rows(self, file: Path) -> Iterator[Row]:
        parquet = file.suffix == ".parquet"
        return read_rows(file, ("question", "answer") if parquet else ("text", "label", "image"))

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return READERS[rules](text)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """F1 of each kind, then accuracy, precision, recall, yes ratio and unparsed replies, all in
        percent; their means over the kinds, and of all together (`pooled`: lmms-eval's `pope`).

        An unparsed reply is wrong. VLMEvalKit counts it as "no" in recall; lmms-eval leaves it out
        of recall, and its yes ratio is that of the true answers.
        """
        parts = {
            kind: yes_no_figures(asked, answers)
            for kind, asked in split_by("kind", answers.examples).items()
        }
        pooled = yes_no_figures(answers.examples, answers)
        names = list(pooled)
        return {
            **{f"{kind} {name}": parts[kind][name] for name in names for kind in parts},
            **{f"pooled {name}": figure for name, figure in pooled.items()},
            **{
                f"mean {name}": total([figures[name] for figures in parts.values()], 1 / len(parts))
                for name in names
            },
        }

    def _question(self, row: Row) -> Iterator[Example]:
        named = re.search(rf"pope_({'|'.join(KINDS)})", row.file.name)
        kind = named[1] if named else row.text("category")
        question, answer = row.text("question", "text"), row.text("answer", "label").lower()
        if kind not in KINDS or answer not in ("yes", "no") or not question:
            raise CofError("lacks a kind, a question, or yes/no as its answer")
        short = self.prompt_style in ("llava", "lmms-eval")
        asks = " Please answer yes or no." if self.prompt_style == "tiny" else ""
        name = row.text("image_source", "image")
        yield Example(
            id=f"{kind}-{row.text('question_id')}",
            image=self.image_of(row, name, ".", "val2014", "images", "../val2014"),
            prompt=question + (SHORT_ANSWER if short else asks),
            answer=answer,
            kind=kind,
            question=question,
        )


def yes_no_figures(examples: Sequence[Example], answers: Answers) -> dict[str, Figure]:
    """Figures in percent, `yes` being the positive answer.

    F1 = 2 hits / (2 hits + false alarms + misses), a ratio of counts.
    """

    def figure(count: Callable[[str | None, str], tuple[float, float]]) -> Figure:
        counts = ((e.id, *count(answers.read[e.id], e.answer)) for e in examples)
        return ratio(counts, answers.clusters)

    lmms = answers.rules == "lmms-eval"

    def recall(answer: str | None, true: str) -> tuple[float, float]:
        hit = answer == true == "yes"
        missed = true == "yes" and (answer == "no" or (answer is None and not lmms))
        return hit, hit + missed

    def f1(answer: str | None, true: str) -> tuple[float, float]:
        hit, positive = recall(answer, true)
        return 2 * hit, hit + positive + (answer == "yes" != true)

    return {
        "f1": figure(f1),
        "accuracy": answers.share(examples),
        "precision": figure(lambda answer, true: (answer == true == "yes", answer == "yes")),
        "recall": figure(recall),
        "yes ratio": figure(lambda answer, true: ((true if lmms else answer) == "yes", 1)),
        "unparsed": answers.unparsed(examples),
    }
