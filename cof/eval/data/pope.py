"""POPE: is there such an object, absent ones being chosen in three ways (arXiv 2305.10355).

Read from its JSON lines (`coco_pope_random.json` and so on; fields question_id, image, text, label)
with a folder of the COCO images, or from the hub's parquet files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cof.eval.data.base import Benchmark, Replies, image_path, shared, unparsed
from cof.eval.data.files import data_files, read_rows
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Clusters, Figure, find_clusters, ratio, share, total
from cof.eval.rules import POPE as READERS
from cof.eval.rules import Rules
from cof.prompting.dialects import SHORT_ANSWER

KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class POPE(Benchmark):
    """Papers quote F1 with "yes" as the positive answer, in percent."""

    name: ClassVar[str] = "pope"
    headline: ClassVar[tuple[str, ...]] = tuple(f"{kind} f1" for kind in KINDS)

    def read(self, problems: list[str]) -> list[Example]:
        lines = [f"{sub}*pope_{kind}.json*" for kind in KINDS for sub in ("", "*/", "*/*/")]
        # the hub's repository has the same questions in data/ and in Full/
        choices = [lines, ["*.parquet"], ["data/*.parquet"], ["*/*.parquet"]]
        files = data_files(self.path, choices, "POPE files")
        known: dict[str, Embedded] = {}
        examples = [e for file in files for e in self._file(file, known, problems)]
        return sorted(examples, key=lambda e: KINDS.index(e.kind))

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return READERS[rules](text)

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """F1 of each kind, then accuracy, precision, recall, yes ratio and unparsed replies, all in
        percent; and their means over the kinds.

        An unparsed reply is wrong. VLMEvalKit counts it as "no" in recall; lmms-eval leaves it out
        of recall, and its yes ratio is that of the true answers.
        """
        answers = self.read_answers(examples, replies, rules)
        clusters = find_clusters(examples)
        parts = {
            kind: yes_no_figures(asked, answers, clusters, rules)
            for kind in KINDS
            if (asked := [e for e in examples if e.kind == kind])
        }
        names = list(next(iter(parts.values()), {}))
        return {
            **{f"{kind} {name}": parts[kind][name] for name in names for kind in parts},
            **{
                f"mean {name}": total([figures[name] for figures in parts.values()], 1 / len(parts))
                for name in names
            },
        }

    def _prompt(self, question: str) -> str:
        if self.prompt_style in ("llava", "lmms-eval"):
            return question + SHORT_ANSWER
        return f"{question} Please answer yes or no." if self.prompt_style == "tiny" else question

    def _file(
        self, file: Path, known: dict[str, Embedded], problems: list[str]
    ) -> Iterator[Example]:
        named = re.search(rf"pope_({'|'.join(KINDS)})", file.name)
        parquet = file.suffix == ".parquet"
        need = ("question", "answer") if parquet else ("text", "label", "image")
        folders = [self.images] if self.images else []
        folders += [file.parent / sub for sub in (".", "val2014", "images", "../val2014")]
        for row in read_rows(file, need, problems):
            kind = named[1] if named else row.text("category")
            question, answer = row.text(need[0]), row.text(need[1]).lower()
            if kind not in KINDS or answer not in ("yes", "no") or not question:
                problems.append(f"{row.where}: lacks a kind, a question, or yes/no as its answer")
                continue
            if row.image is not None:
                image: Path | Embedded = shared(
                    known, row.text("image_source") or row.where, row.image
                )
            else:
                image = image_path(folders, row.text("image"))
            yield Example(
                id=f"{kind}-{row.text('question_id')}",
                image=image,
                prompt=self._prompt(question),
                answer=answer,
                kind=kind,
                question=question,
            )


def yes_no_figures(
    examples: Sequence[Example],
    answers: Mapping[str, str | None],
    clusters: Clusters,
    rules: Rules,
) -> dict[str, Figure]:
    """Figures in percent, `yes` being the positive answer.

    F1 = 2 hits / (2 hits + false alarms + misses), a ratio of counts.
    """

    def figure(count: Callable[[str | None, str], tuple[float, float]]) -> Figure:
        return ratio(((e.id, *count(answers[e.id], e.answer)) for e in examples), clusters)

    def missed(answer: str | None, true: str) -> bool:
        counts = answer == "no" or (answer is None and rules != "lmms-eval")
        return true == "yes" and counts

    def f1(answer: str | None, true: str) -> tuple[float, float]:
        hit = answer == true == "yes"
        return 2 * hit, 2 * hit + (answer == "yes" != true) + missed(answer, true)

    def recall(answer: str | None, true: str) -> tuple[float, float]:
        hit = answer == true == "yes"
        return hit, hit + missed(answer, true)

    return {
        "f1": figure(f1),
        "accuracy": share({e.id: answers[e.id] == e.answer for e in examples}, clusters),
        "precision": figure(lambda answer, true: (answer == true == "yes", answer == "yes")),
        "recall": figure(recall),
        "yes ratio": figure(
            lambda answer, true: ((true if rules == "lmms-eval" else answer) == "yes", 1)
        ),
        "unparsed": unparsed({e.id: answers[e.id] for e in examples}, clusters),
    }
