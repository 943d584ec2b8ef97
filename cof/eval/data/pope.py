"""POPE: is there such an object, absent ones being chosen in three ways (arXiv 2305.10355).

Read from its JSON lines (`coco_pope_random.json` and so on; fields question_id, image, text, label)
with a folder of the COCO pictures, or from the hub's parquet files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cof.eval.data.base import Benchmark, image_path, mean, percent, shared
from cof.eval.data.files import data_files, rows
from cof.eval.rules import POPE as READERS
from cof.eval.rules import Rules
from cof.eval.tasks import Embedded, Example
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

    def metrics(
        self, examples: Sequence[Example], replies: Mapping[str, str], rules: Rules
    ) -> dict[str, float]:
        """F1 of each kind, then accuracy, precision, recall, yes ratio and unparsed replies, all in
        percent; and their means over the kinds.

        An unparsed reply is wrong. VLMEvalKit counts it as "no" in recall; lmms-eval leaves it out
        of recall, and its yes ratio is that of the true answers.
        """
        parts: dict[str, dict[str, float]] = {}
        for kind in KINDS:
            rows = [e for e in examples if e.kind == kind]
            if rows:
                said = [self.parse(e, replies[e.id], rules) for e in rows]
                parts[kind] = counted(said, [e.answer for e in rows], rules)
        names = ("f1", "accuracy", "precision", "recall", "yes ratio", "unparsed")
        table = {f"{kind} {name}": parts[kind][name] for name in names for kind in parts}
        return table | {
            f"mean {name}": mean([part[name] for part in parts.values()]) for name in names
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
        for row in rows(file, need, problems):
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


def counted(said: Sequence[str | None], true: Sequence[str], rules: Rules) -> dict[str, float]:
    """Figures in percent, `yes` being the positive answer.

    >>> found = counted(["yes", "yes", "no", None], ["yes", "no", "no", "yes"], "official")
    >>> round(found["precision"]), round(found["recall"]), round(found["f1"])
    (50, 50, 50)
    """
    pairs = list(zip(said, true, strict=True))
    hits = pairs.count(("yes", "yes"))
    alarms = pairs.count(("yes", "no"))
    missed = pairs.count(("no", "yes"))
    if rules != "lmms-eval":
        missed += pairs.count((None, "yes"))
    precision, recall = percent(hits, hits + alarms), percent(hits, hits + missed)
    asserted = true if rules == "lmms-eval" else said
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": percent(sum(a == b for a, b in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "yes ratio": percent(sum(answer == "yes" for answer in asserted), len(pairs)),
        "unparsed": percent(sum(answer is None for answer in said), len(pairs)),
    }
