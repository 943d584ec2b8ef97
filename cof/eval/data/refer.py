"""REFER's own files of RefCOCO, RefCOCO+ and RefCOCOg: `refs(unc).p` beside `instances.json`.

A split is named as if it lay there: `refcoco/val`, `refcoco/testA`; where a folder has several
partitions (RefCOCOg's `refs(google).p` and `refs(umd).p`), with its name: `refcocog/umd-val`.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cof.errors import CofError
from cof.eval.data.files import Row
from cof.eval.json_files import read_json_object

_PARTITIONS = "refs(*).p"
_INSTANCES = "instances.json"


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
