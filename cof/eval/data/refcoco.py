"""RefCOCO, RefCOCO+ and RefCOCOg: the box of what an expression refers to, for stage 1 alone.

Read from JSON lines with an image's path, an expression and `bbox` as `[x1, y1, x2, y2]` in pixels
(names of the fields as Shikra's and Qwen-VL's files have them), or from the hub's parquet files,
whose `bbox` is COCO's `[x, y, width, height]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark, read_region
from cof.eval.data.files import Row
from cof.eval.examples import Example
from cof.eval.figures import Figure
from cof.eval.rules import Rules
from cof.geometry.boxes import XYXY

_FOUR = re.compile(r"\[\s*" + r",\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")


@dataclass(frozen=True)
class RefCOCO(Benchmark):
    """The figure is the share of boxes with an IoU of 0.5 or more, in the frame of the original
    image: of the box around all in the reply, its corners put in order. The rules `vlmevalkit` take
    the first box, `lmms-eval` the first in brackets and with its corners in order, or none."""

    name = "refcoco"
    headline = ()
    stage_one = True
    patterns = ("*.jsonl", "*.parquet", "*/*.parquet")
    need = ("bbox",)

    def read(self, problems: list[str]) -> list[Example]:
        numbers = count()

        def questions(row: Row) -> Iterator[Example]:
            one = row.text("expression", "sent", "phrase")
            several = () if one else row.texts("answer")
            name = row.text("img_path", "image", "file_name")
            if not (name or row.image) or not (one or several):
                raise CofError("no image and expression")
            image = self.image_of(row, name, ".", "images", "train2014")
            # JSON lines have corners, parquet files COCO's width and height
            region = read_region(row, image, corners=row.image is None)
            if one:
                asked = {str(next(numbers)): one}
            else:
                group = row.text("question_id")
                asked = {f"{group}-{n}": each for n, each in enumerate(several, start=1)}
            for id, expression in asked.items():
                yield Example(id, image, expression, answer="", region=region, single=True)

        return self.collect(questions, problems)

    def judged_boxes(self, text: str, boxes: tuple[XYXY, ...]) -> tuple[XYXY, ...]:
        if self.rules == "lmms-eval":
            found = _FOUR.search(text)
            x1, y1, x2, y2 = map(float, found.groups() if found else "0000")
            return boxes[:1] if x1 < x2 and y1 < y2 else ()
        return boxes[:1] if self.rules == "vlmevalkit" else boxes

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return None  # there is no answer but the box

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        return {}
