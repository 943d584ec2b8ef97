"""RefCOCO, RefCOCO+ and RefCOCOg: the box of what an expression refers to, for stage 1 alone.

Read from JSON lines with an image's path, an expression and `bbox` as `[x1, y1, x2, y2]` in pixels
(names of the fields as Shikra's and Qwen-VL's files have them), from the hub's parquet files, whose
`bbox` is COCO's `[x, y, width, height]`, or from REFER's own files, `refs(unc).p` beside
`instances.json`. A split of those is named as if it lay there (`refcoco/val`, `refcoco/testA`), and
where a folder has several partitions (RefCOCOg's `refs(google).p` and `refs(umd).p`) with that in
its name: `refcocog/umd-val`.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark, read_region
from cof.eval.data.files import Row, collect
from cof.eval.examples import Example
from cof.eval.figures import Figure
from cof.eval.json_files import read_json_object
from cof.eval.rules import Rules
from cof.geometry.boxes import XYXY

_FOLDERS = (".", "images", "train2014", "images/mscoco/images/train2014")
"""Where images lie in a data set's folder."""

_PARTITIONS = "refs(*).p"
_INSTANCES = "instances.json"

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

    @classmethod
    def is_there(cls, path: Path) -> bool:
        return super().is_there(path) or is_refer(path)

    def read(self, problems: list[str]) -> list[Example]:
        refer, numbers = is_refer(self.path), count()
        above = ("", "../", "../../") if refer else ("",)
        folders = [up + folder for up in above for folder in _FOLDERS]

        def questions(row: Row) -> Iterator[Example]:
            one = row.text("expression", "sent", "phrase")
            several = () if one else row.texts("answer")
            name = row.text("img_path", "image", "file_name")
            if not (name or row.image) or not (one or several):
                raise CofError("no image and expression")
            image = self.image_of(row, name, *folders)
            # JSON lines have corners, all others COCO's width and height
            region = read_region(row, image, corners=not (refer or row.image))
            if one:
                asked = {row.text("sent_id") if refer else str(next(numbers)): one}
            else:
                group = row.text("question_id")
                asked = {f"{group}-{n}": each for n, each in enumerate(several, start=1)}
            for id, expression in asked.items():
                yield Example(id, image, expression, answer="", region=region, single=True)

        if refer:
            return collect(questions, problems, read_refer(self.path))
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


def is_refer(path: Path) -> bool:
    """Whether a path names a split in a folder of REFER's."""
    folder = path.parent
    return not path.exists() and (folder / _INSTANCES).is_file() and any(folder.glob(_PARTITIONS))


def read_refer(path: Path) -> Iterator[Row]:
    """The expressions of a split, one row each: sent_id, sent, file_name of the image, its width
    and height, and bbox as `[x, y, width, height]` in pixels.

    Raises:
        CofError: there is no such split, or a file is damaged.
    """
    file, split = _partition(path)
    refs = _read_pickle(file)
    content = read_json_object(path.parent / _INSTANCES, "download it again")
    try:
        images = {image["id"]: image for image in content["images"]}
        boxes = {annotation["id"]: annotation["bbox"] for annotation in content["annotations"]}
        splits = {str(ref["split"]) for ref in refs}
        for ref in refs:
            if ref["split"] == split:
                about = {**images[ref["image_id"]], "bbox": boxes[ref["ann_id"]]}
                for sentence in ref["sentences"]:
                    yield Row(file, f"expression {sentence['sent_id']}", about | sentence)
    except (IndexError, KeyError, TypeError) as error:
        raise CofError(
            f"{file.name} and {_INSTANCES} do not belong together ({error!r})"
        ) from error
    if split not in splits:
        raise CofError(f"{file} has no split {split!r}, but {', '.join(sorted(splits))}.")


def _partition(path: Path) -> tuple[Path, str]:
    """`refcocog/umd-val` -> its file, and the split."""
    partition, _, split = path.name.rpartition("-")
    pattern = f"refs({partition}).p" if partition else _PARTITIONS
    files = sorted(path.parent.glob(pattern))
    if len(files) != 1:
        known = ", ".join(file.name for file in sorted(path.parent.glob(_PARTITIONS)))
        raise CofError(f"{path} names none of {known} alone: write it as umd-val or unc-testA.")
    return files[0], split


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers, and nothing that could run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _read_pickle(file: Path) -> list[dict[str, Any]]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            for opcode, argument, _ in pickletools.genops(opened):
                if isinstance(argument, str):
                    argument.encode()  # half of a surrogate pair is no text
                # a damaged place in the memo would take as much memory as its number says
                elif opcode.name.endswith("PUT") and int(argument or 0) > size:
                    raise pickle.UnpicklingError("it is damaged")
            opened.seek(0)
            return list(_PlainUnpickler(opened, encoding="latin1").load())
    except Exception as error:  # unpickling raises many kinds on damaged data
        raise CofError(f"{file.name}: cannot be read ({error})") from error
