"""V*Bench: attributes and relative positions of small objects in large images, with their boxes
(arXiv 2312.14135).

Read from its folders `direct_attributes/` and `relative_position/`, an image and a JSON file for
each question: question, options (the first is right), bbox (`[x, y, width, height]` in pixels, one
for each object asked about).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cof.errors import CofError
from cof.eval.data.base import image_path
from cof.eval.data.choice import ROTATION, CycleBenchmark, choice_prompt, rotate_options
from cof.eval.data.files import read_json
from cof.eval.examples import Example
from cof.eval.images import read_image_wh
from cof.geometry.boxes import XYXY, union

KINDS = ("direct_attributes", "relative_position")


@dataclass(frozen=True)
class VStar(CycleBenchmark):
    """Every question is asked in each rotation of its options, so that the place of the right one,
    always the first in the data, says nothing.

    The prompt style `official` asks as the benchmark's own script does: the question alone, once,
    and the option whose text the model finds most probable is the answer. Figures of the two ways
    are not comparable.
    """

    name: ClassVar[str] = "vstar"
    headline: ClassVar[tuple[str, ...]] = ("average", *KINDS)

    def read(self, problems: list[str]) -> list[Example]:
        files = [file for kind in KINDS for file in sorted((self.path / kind).glob("*.json"))]
        if not files:
            raise CofError(f"{self.path} has no JSON files in {' or '.join(KINDS)}.")
        return [e for number, file in enumerate(files) for e in self._file(number, file, problems)]

    def _file(self, number: int, file: Path, problems: list[str]) -> Iterator[Example]:
        kind = file.parent.name
        record = read_json(file, problems)
        if record is None:
            return
        try:
            question, options = str(record["question"]), tuple(map(str, record["options"]))
            boxes = [_corners(box) for box in record["bbox"]]
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            problems.append(f"{kind}/{file.name}: no question, options and bbox ({error!r})")
            return
        if not 2 <= len(options) <= 26:
            problems.append(f"{kind}/{file.name}: no options")
            return
        image = image_path([(self.images or self.path) / kind], file.stem)
        region = _region(image, boxes)
        likelihood = self.prompt_style == "official"
        for turns in range(1 if likelihood else len(options)):
            shown, answer = rotate_options(options, "A", turns)
            yield Example(
                id=str(number + turns * ROTATION),
                image=image,
                prompt=question
                if likelihood
                else choice_prompt(self.prompt_style, question, shown),
                answer=answer,
                region=region,
                kind=kind,
                single=len(boxes) == 1,
                question=question,
                options=shown,
                group=f"{kind}/{file.stem}",
                likelihood=likelihood,
            )


def _corners(xywh: Sequence[Any]) -> XYXY:
    x, y, width, height = map(float, xywh)
    if not (math.isfinite(x + y) and 0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"{list(xywh)} is no box")
    return x, y, x + width, y + height


def _region(image: Path, boxes: Sequence[XYXY]) -> XYXY | None:
    """The box around all, in 0..1 of the image; None without boxes or image."""
    wh = read_image_wh(image)  # a missing or damaged image is reported when all are checked
    if wh is None or not boxes:
        return None
    x1, y1, x2, y2 = union(boxes)
    return x1 / wh[0], y1 / wh[1], x2 / wh[0], y2 / wh[1]
