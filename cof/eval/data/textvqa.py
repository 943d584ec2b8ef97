"""TextVQA: questions about text in images, ten people's answers each (arXiv 1904.08920).

Read from `TextVQA_0.5.1_val.json` with a folder of images, or from the hub's parquet files.

LLaVA-1.5's published figure has the image's recognised text in the prompt, and is higher by some
12 points for that. The prompt style `llava-ocr` puts it there: from the parquet files'
`ocr_tokens`, or from `TextVQA_Rosetta_OCR_v0.2_val.json` beside the questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from cof.eval.data.base import Benchmark, Replies, image_path, shared
from cof.eval.data.files import Row, data_files, lacking, read_json, read_rows
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Figure, find_clusters, ratio
from cof.eval.rules import Rules, vqa_accuracy, vqa_normalized
from cof.eval.scoring import Score
from cof.prompting.dialects import SHORT_ANSWER

NEEDED = ("question_id", "image_id", "question", "answers")


@dataclass(frozen=True)
class TextVQA(Benchmark):
    """VQA accuracy after the official normalisation; all rule sets have the same."""

    name: ClassVar[str] = "textvqa"
    headline: ClassVar[tuple[str, ...]] = ("accuracy",)
    has_ocr: ClassVar[bool] = True

    def read(self, problems: list[str]) -> list[Example]:
        choices = [["TextVQA_[0-9]*val*.json"], ["*val*.parquet"], ["*/*val*.parquet"]]
        files = data_files(self.path, choices, "TextVQA file")
        if files[0].suffix == ".json":
            files = files[:1]
        known: dict[str, Embedded] = {}
        words = self._recognised(files[0], problems)
        folders = [self.images] if self.images else []
        folders += [files[0].parent / sub for sub in ("train_images", "images", ".")]
        examples = []
        for row in chain.from_iterable(_read(file, NEEDED, problems) for file in files):
            answers = _texts(row.fields["answers"])
            name, question = row.text("image_id"), row.text("question")
            seen = words.get(name) or _texts(row.fields.get("ocr_tokens") or [])
            if not answers or seen is None:
                problems.append(f"{row.where}: no list of answers, or of recognised words")
                continue
            examples.append(
                Example(
                    id=row.text("question_id"),
                    image=shared(known, name, row.image)
                    if row.image
                    else image_path(folders, name),
                    prompt=self._prompt(question, seen),
                    answer=max(answers, key=answers.count),
                    question=question,
                    answers=answers,
                )
            )
        return examples

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return vqa_normalized(text) or None

    def score(self, example: Example, text: str) -> Score:
        """Right: at least half of the VQA accuracy, which two agreeing people give."""
        parsed = self.parse(example, text, self.rules)
        return Score(parsed, vqa_accuracy(text, example.answers) >= 0.5)

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """`accuracy`: the mean VQA accuracy in percent."""
        agreed = ((e.id, vqa_accuracy(replies[e.id] or "", e.answers), 1) for e in examples)
        return {"accuracy": ratio(agreed, find_clusters(examples))}

    def _prompt(self, question: str, words: Sequence[str]) -> str:
        if self.prompt_style == "official":
            return question
        if self.prompt_style == "lmms-eval":
            return question.capitalize() + SHORT_ANSWER
        shown = self.prompt_style == "llava-ocr"
        text = f"\nReference OCR token: {', '.join(words)}" if shown else ""
        return question + text + SHORT_ANSWER

    def _recognised(self, file: Path, problems: list[str]) -> dict[str, tuple[str, ...] | None]:
        """The words in each image, where they have a file of their own."""
        if self.prompt_style != "llava-ocr" or file.suffix == ".parquet":
            return {}
        files = sorted(file.parent.glob("*OCR*val*.json"))
        if not files:
            problems.append(
                f"{file.name}: no recognised text (TextVQA_Rosetta_OCR_v0.2_val.json) beside it"
            )
            return {}
        table = _read(files[0], ("image_id", "ocr_tokens"), problems)
        return {row.text("image_id"): _texts(row.fields["ocr_tokens"]) for row in table}


def _texts(values: Any) -> tuple[str, ...] | None:
    """A list of texts; None: it is no list."""
    return tuple(map(str, values)) if isinstance(values, list) else None


def _read(file: Path, need: Sequence[str], problems: list[str]) -> Iterator[Row]:
    if file.suffix == ".parquet":
        yield from read_rows(file, need, problems)
        return
    content = read_json(file, problems)
    if content is None:
        return
    if not isinstance(content.get("data"), list):
        problems.append(f"{file.name}: no list `data` in it")
        return
    for number, fields in enumerate(content["data"], start=1):
        where = f"{file.name}, record {number}"
        missing = lacking(fields, need)
        if missing:
            problems.append(f"{where}: lacks {', '.join(missing)}")
        else:
            yield Row(where, fields)
