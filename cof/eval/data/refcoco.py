"""RefCOCO, RefCOCO+ and RefCOCOg: the box of what an expression refers to, for stage 1 alone.

Read from JSON lines with a picture's path, an expression and `bbox` as `[x1, y1, x2, y2]` in pixels
(names of the fields as Shikra's and Qwen-VL's files have them), from the hub's parquet files, whose
`bbox` is COCO's `[x, y, width, height]`, or from REFER's folders (`cof.eval.data.refer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cof.eval.data.base import Benchmark, Replies, image_path, shared
from cof.eval.data.files import Row, rows, split_files
from cof.eval.data.refer import is_refer, refer_rows
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Figure
from cof.eval.images import read_image_wh
from cof.eval.rules import Rules
from cof.geometry.boxes import XYXY

_PICTURE = ("img_path", "image", "file_name")
_REFER_IMAGES = "images/mscoco/images/train2014"
_EXPRESSION = ("expression", "sent", "phrase")


@dataclass(frozen=True)
class RefCOCO(Benchmark):
    """The figure is the share of boxes with an IoU of 0.5 or more, in the frame of the original
    picture."""

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
        for number, row in enumerate(rows(file, ("bbox",), problems)):
            name, said = _first(row, _PICTURE), _first(row, _EXPRESSION)
            if not name or not said:
                problems.append(f"{row.where}: no picture and expression")
                continue
            image = image_path(folders, name)
            if not image.is_file():
                image = image_path(folders, Path(name).name)
            box = self._box(row, image, problems, corners=True)
            if box is not None:
                yield _example(str(number), image, said, box)

    def _refer(self, problems: list[str]) -> Iterator[Example]:
        """A split of REFER's, `FOLDER/val`."""
        folders = [self.images] if self.images else []
        roots = [self.path.parent, *self.path.parent.parents[:2]]
        folders += [root / sub for root in roots for sub in (".", "train2014", _REFER_IMAGES)]
        for row in refer_rows(self.path, problems):
            image = image_path(folders, row.text("file_name"))
            box = self._box(row, image, problems, corners=False)
            if box is not None:
                yield _example(row.text("sent_id"), image, row.text("sent"), box)

    def _parquet(self, files: Sequence[Path], problems: list[str]) -> Iterator[Example]:
        known: dict[str, Embedded] = {}
        need = ("question_id", "image", "answer", "bbox")
        for row in (row for file in files for row in rows(file, need, problems)):
            expressions = row.fields["answer"]
            if row.image is None or not isinstance(expressions, list):
                problems.append(f"{row.where}: no picture and list of expressions")
                continue
            image = shared(known, row.text("file_name") or row.where, row.image)
            box = self._box(row, image, problems, corners=False)
            if box is not None:
                for number, said in enumerate(expressions, start=1):
                    yield _example(f"{row.text('question_id')}-{number}", image, str(said), box)

    def _box(
        self, row: Row, image: Path | Embedded, problems: list[str], *, corners: bool
    ) -> XYXY | None:
        try:
            x1, y1, x2, y2 = (float(value) for value in row.fields["bbox"])
        except (TypeError, ValueError):
            problems.append(f"{row.where}: bbox is not four numbers")
            return None
        if not corners:
            x2, y2 = x1 + x2, y1 + y2
        if not (x2 > x1 and y2 > y1):  # nor are they then if one is no number
            problems.append(f"{row.where}: bbox is empty")
            return None
        try:
            size = _size(row.fields, image)
        except (TypeError, ValueError):
            problems.append(f"{row.where}: width and height are no numbers")
            return None
        if size is None:
            problems.append(f"{row.where}: the picture's size is not known, for want of it")
            return None
        width, height = size
        return x1 / width, y1 / height, x2 / width, y2 / height


def _example(id: str, image: Path | Embedded, expression: str, box: XYXY) -> Example:
    return Example(id=id, image=image, prompt=expression, answer="", region=box, single=True)


def _first(row: Row, names: Sequence[str]) -> str:
    return next((row.text(name) for name in names if row.text(name)), "")


def _size(fields: Mapping[str, Any], image: Path | Embedded) -> tuple[float, float] | None:
    """Width and height in pixels: as the record says, else the picture's own."""
    if fields.get("width") and fields.get("height"):
        return float(fields["width"]), float(fields["height"])
    return read_image_wh(image)
