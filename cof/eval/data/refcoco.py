"""RefCOCO, RefCOCO+ and RefCOCOg: the box of what an expression refers to, for stage 1 alone.

Read from JSON lines with an image's path, an expression and `bbox` as `[x1, y1, x2, y2]` in pixels
(names of the fields as Shikra's and Qwen-VL's files have them), from the hub's parquet files, whose
`bbox` is COCO's `[x, y, width, height]`, or from REFER's folders (`cof.eval.data.refer`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cof.eval.data.base import Benchmark, Replies, image_path, shared
from cof.eval.data.files import Row, read_rows, split_files
from cof.eval.data.refer import is_refer, read_refer
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Figure
from cof.eval.images import read_image_wh
from cof.eval.rules import Rules
from cof.geometry.boxes import XYXY

_IMAGE = ("img_path", "image", "file_name")
_REFER_IMAGES = "images/mscoco/images/train2014"
_EXPRESSION = ("expression", "sent", "phrase")


@dataclass(frozen=True)
class RefCOCO(Benchmark):
    """The figure is the share of boxes with an IoU of 0.5 or more, in the frame of the original
    image."""

    name: ClassVar[str] = "refcoco"
    headline: ClassVar[tuple[str, ...]] = ()
    stage_one: ClassVar[bool] = True

    def read(self, problems: list[str]) -> list[Example]:
        if is_refer(self.path):
            return list(self._refer(problems))
        choices = [["*.jsonl"], ["*.parquet"], ["*/*.parquet"]]
        files = split_files(self.path, choices, "RefCOCO files")
        if files[0].suffix == ".parquet":
            return list(self._parquet(files, problems))
        return list(self._lines(files[0], problems))

    @classmethod
    def is_there(cls, path: Path) -> bool:
        return super().is_there(path) or is_refer(path)

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return None  # there is no answer but the box

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        return {}

    def _lines(self, file: Path, problems: list[str]) -> Iterator[Example]:
        folders = [self.images] if self.images else []
        folders += [file.parent, file.parent / "images", file.parent / "train2014"]
        for number, row in enumerate(read_rows(file, ("bbox",), problems)):
            name, expression = _first(row, _IMAGE), _first(row, _EXPRESSION)
            if not name or not expression:
                problems.append(f"{row.where}: no image and expression")
                continue
            image = image_path(folders, name)
            if not os.path.isfile(image):
                image = image_path(folders, Path(name).name)
            box = self._box(row, image, problems, corners=True)
            if box is not None:
                yield _example(str(number), image, expression, box)

    def _refer(self, problems: list[str]) -> Iterator[Example]:
        """A split of REFER's, `FOLDER/val`."""
        folders = [self.images] if self.images else []
        roots = [self.path.parent, *self.path.parent.parents[:2]]
        folders += [root / sub for root in roots for sub in (".", "train2014", _REFER_IMAGES)]
        for row in read_refer(self.path, problems):
            image = image_path(folders, row.text("file_name"))
            box = self._box(row, image, problems, corners=False)
            if box is not None:
                yield _example(row.text("sent_id"), image, row.text("sent"), box)

    def _parquet(self, files: Sequence[Path], problems: list[str]) -> Iterator[Example]:
        known: dict[str, Embedded] = {}
        need = ("question_id", "image", "answer", "bbox")
        for row in (row for file in files for row in read_rows(file, need, problems)):
            expressions = row.fields["answer"]
            if row.image is None or not isinstance(expressions, list):
                problems.append(f"{row.where}: no image and list of expressions")
                continue
            image = shared(known, row.text("file_name") or row.where, row.image)
            box = self._box(row, image, problems, corners=False)
            if box is not None:
                for number, expression in enumerate(expressions, start=1):
                    id = f"{row.text('question_id')}-{number}"
                    yield _example(id, image, str(expression), box)

    def _box(
        self, row: Row, image: Path | Embedded, problems: list[str], *, corners: bool
    ) -> XYXY | None:
        try:
            x1, y1, x2, y2 = map(float, row.fields["bbox"])
        except (OverflowError, TypeError, ValueError):
            problems.append(f"{row.where}: bbox is not four numbers")
            return None
        if not corners:
            x2, y2 = x1 + x2, y1 + y2
        if not -math.inf < x1 < x2 < math.inf or not -math.inf < y1 < y2 < math.inf:
            problems.append(f"{row.where}: bbox is empty")
            return None
        try:
            size = _size(row.fields, image)
        except (OverflowError, TypeError, ValueError):
            problems.append(f"{row.where}: width and height are no numbers above 0")
            return None
        if size is None:
            problems.append(f"{row.where}: the image's size is neither given nor found in it")
            return None
        width, height = size
        return x1 / width, y1 / height, x2 / width, y2 / height


def _example(id: str, image: Path | Embedded, expression: str, box: XYXY) -> Example:
    return Example(id=id, image=image, prompt=expression, answer="", region=box, single=True)


def _first(row: Row, names: Sequence[str]) -> str:
    return next((row.text(name) for name in names if row.text(name)), "")


def _size(fields: Mapping[str, Any], image: Path | Embedded) -> tuple[float, float] | None:
    """Width and height in pixels: as the record says, else the image's own."""
    if not fields.get("width") or not fields.get("height"):
        return read_image_wh(image)
    width, height = float(fields["width"]), float(fields["height"])
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError
    return width, height
