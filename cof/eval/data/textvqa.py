"""TextVQA: questions about text in images, ten people's answers each (arXiv 1904.08920).

Read from `TextVQA_0.5.1_val.json` with a folder of images, or from the hub's parquet files.

LLaVA-1.5's published figure has the image's recognised text in the prompt, and is higher by some
12 points for that. The prompt style `llava-ocr` puts it there: from the parquet files'
`ocr_tokens`, or from `TextVQA_Rosetta_OCR_v0.2_val.json` beside the questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark
from cof.eval.data.files import Row, first_files
from cof.eval.examples import Example, Score
from cof.eval.figures import Figure, ratio
from cof.eval.json_files import read_json_object
from cof.eval.rules import Rules, vqa_accuracy, vqa_normalized
from cof.prompting.dialects import SHORT_ANSWER

RECOGNISED = "TextVQA_Rosetta_OCR_v0.2_val.json"


@dataclass(frozen=True)
class TextVQA(Benchmark):
    """VQA accuracy after the official normalisation; the rules `vlmevalkit` have their own."""

    name = "textvqa"
    headline = ("accuracy",)
    has_ocr = True
    need = ("question_id", "image_id", "question", "answers")
    patterns = ("TextVQA_[0-9]*val*.json", "*val*.parquet", "*/*val*.parquet")

    def read(self, problems: list[str]) -> list[Example]:
        return self.collect(self._question, problems)

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return vqa_normalized(text, rules) or None

    def score(self, example: Example, text: str) -> Score:
        """Right: at least half of the VQA accuracy, which two agreeing people give."""
        parsed = self.parse(example, text, self.rules)
        return Score(parsed, vqa_accuracy(text, example.answers, self.rules) >= 0.5)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """`accuracy`: the mean VQA accuracy in percent."""
        said = ((e, answers.replies[e.id] or "") for e in answers.examples)
        agreed = ((e.id, vqa_accuracy(text, e.answers, answers.rules), 1) for e, text in said)
        return {"accuracy": ratio(agreed, answers.clusters)}

    def _question(self, row: Row) -> Iterator[Example]:
        answers = row.texts("answers")
        if not answers:
            raise CofError("no list of answers")
        question, style = row.text("question"), self.prompt_style
        words = ", ".join(row.texts("ocr_tokens"))
        seen = f"\nReference OCR token: {words}" if style == "llava-ocr" else ""
        asked = question.capitalize() if style == "lmms-eval" else question
        yield Example(
            id=row.text("question_id"),
            image=self.image_of(row, row.text("image_id"), "train_images", "images", "."),
            prompt=question if style == "official" else asked + seen + SHORT_ANSWER,
            answer=max(answers, key=answers.count),
            question=question,
            answers=answers,
        )

    def rows(self, file: Path) -> Iterator[Row]:
        if file.suffix == ".parquet":
            yield from super().rows(file)
            return
        words: dict[str, Any] = {}
        if self.prompt_style == "llava-ocr":
            beside = first_files(file.parent, ["*OCR*val*.json"])
            if not beside:
                raise CofError(f"{file.name}: no recognised text ({RECOGNISED}) beside it")
            words = {str(each.get("image_id")): each.get("ocr_tokens") for each in _data(beside[0])}
        for number, record in enumerate(_data(file), start=1):
            row = Row.of_json(file, f"record {number}", record, self.need)
            yield replace(row, fields={**row.fields, "ocr_tokens": words.get(row.text("image_id"))})


def _data(file: Path) -> list[dict[str, Any]]:
    records = read_json_object(file, "download it again").get("data")
    if not isinstance(records, list):
        raise CofError(f"{file.name}: no list `data` in it")
    return [each if isinstance(each, dict) else {} for each in records]
