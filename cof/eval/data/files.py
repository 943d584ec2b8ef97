"""Rows of the formats that benchmarks come in: JSON lines, TSV with base64 images, parquet.

Problems are collected, not raised, so that one look at a data set names all of them.
"""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.examples import Embedded
from cof.eval.json_files import parse_json

_NOTHING = "nan"
"""How pandas may have spelled an empty cell; "None" can be an option's text."""


@dataclass(frozen=True)
class Row:
    """One record of a data file.

    Attributes:
        where: for messages: file and line.
        fields: by column; the image's is left out.
        image: the image that the file itself holds, if it does.
    """

    where: str
    fields: Mapping[str, Any]
    image: Embedded | None = None

    def text(self, column: str) -> str:
        """A cell as text without blanks around it; empty for missing ones and `nan`."""
        value = self.fields.get(column)
        text = "" if value is None else str(value).strip()
        return "" if text == _NOTHING else text


def read_rows(
    path: Path, need: Sequence[str], problems: list[str], image: str = "image"
) -> Iterator[Row]:
    """The records of one file, by its ending: `.tsv`, `.parquet`, else JSON lines.

    Args:
        path: the file.
        need: columns without which a record is of no use; a file or line that lacks one is
            reported and left out.
        problems: gets a sentence for everything that is wrong.
        image: the column that holds images, if the format can hold any.
    """
    read = {".tsv": _read_tsv, ".parquet": _read_parquet}.get(path.suffix.lower(), _read_json_lines)
    try:
        yield from read(path, need, problems, image)
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path.name}: cannot be read ({error})")


def data_files(path: Path, choices: Sequence[Sequence[str]], what: str) -> list[Path]:
    """The files of a data set.

    Args:
        path: a file; a folder; or the common beginning of one split's files as the hub cuts them,
            such as `data/val` for `data/val-00000-of-00002.parquet` and its like.
        choices: patterns of the files in a folder, the preferred kind first.
        what: for the message.

    Returns:
        The file, or all files of the first kind that is there, sorted.

    Raises:
        CofError: there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return shards(path)
    for patterns in choices:
        files = sorted({file for pattern in patterns for file in path.glob(pattern)})
        if files:
            return files
    looked_for = ", ".join(pattern for patterns in choices for pattern in patterns)
    raise CofError(
        f"{path} holds no {what} ({looked_for}): name the folder or file of the data set as it was "
        "downloaded."
    )


def split_files(path: Path, choices: Sequence[Sequence[str]], what: str) -> list[Path]:
    """`data_files` of a data set whose splits are separate files: those of one split.

    Raises:
        CofError: there are none, or those of several splits.
    """
    files = data_files(path, choices, what)
    splits = dict.fromkeys(_split(file) for file in files)
    if len(splits) > 1:
        raise CofError(f"Name one of {', '.join(map(str, splits))}: each is a split of its own.")
    return files


def shards(path: Path) -> list[Path]:
    """The files that the hub's way of cutting makes of one split, sorted."""
    return sorted(path.parent.glob(f"{path.name}-*-of-*"))


def _split(file: Path) -> Path:
    """The name of the split that a file is, or is a shard of."""
    match = re.match(r"(.+?)-\d{5}-of-\d{5}", file.name)
    return file.with_name(match[1]) if match else file


def read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None, with a problem added, if it holds none."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: no JSON ({error})")
        return None
    if isinstance(content, dict):
        return content
    problems.append(f"{path.name}: no JSON object")
    return None


def _read_json_lines(path: Path, need: Sequence[str], problems: list[str], _: str) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}, line {number}"
            if not line.strip():
                continue
            try:
                fields = parse_json(line)
            except ValueError:
                problems.append(f"{where}: no JSON (truncated?)")
                continue
            missing = lacking(fields, need)
            if missing:
                problems.append(f"{where}: lacks {', '.join(missing)}")
                continue
            yield Row(where, fields)


def lacking(record: Any, need: Sequence[str]) -> list[str]:
    """The fields that a JSON record lacks: all of them if it is no object."""
    return [name for name in need if not isinstance(record, dict) or name not in record]


def _read_tsv(path: Path, need: Sequence[str], problems: list[str], image: str) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = _Lines(file)
        table = _csv(lines)
        head: list[str] = next(table, [])
        if not _columns(path, head, need, problems):
            return
        while True:
            offset = lines.offset
            number = lines.number + 1
            cells = next(table, None)
            if cells is None:
                return
            if not cells:  # a blank line
                continue
            where = f"{path.name}, line {number}"
            if len(cells) != len(head):
                problems.append(
                    f"{where}: {len(cells)} columns instead of {len(head)} (truncated?)"
                )
                continue
            fields = dict(zip(head, cells, strict=True))
            column = head.index(image) if image in head else None
            held = None
            if column is not None:
                text = fields.pop(image)
                if len(text) > 64:
                    held = Embedded(where, partial(_tsv_image, path, offset, column, where))
                else:  # another row's index stands where images repeat
                    fields[f"{image}_of"] = text
            yield Row(where, fields, held)


class _Lines:
    """The lines of a binary file as text, with the offset after the last one that was taken."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self._file = file
        self.offset = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.offset += len(line)
            self.number += 1
            yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")


def _csv(lines: Iterable[str]) -> Any:
    csv.field_size_limit(2**31 - 1)  # an image is one cell
    return csv.reader(lines, delimiter="\t")


def _tsv_image(path: Path, offset: int, column: int, where: str) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        cells = next(_csv(line.decode("utf-8") for line in file))
    return _base64(cells[column], where)


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise CofError(f"{where}: the image is no base64 ({error}).") from error


def _read_parquet(
    path: Path, need: Sequence[str], problems: list[str], image: str
) -> Iterator[Row]:
    file = _open_parquet(path)
    head = list(file.schema_arrow.names)
    if not _columns(path, head, need, problems):
        return
    columns = [name for name in head if name != image]
    number = 0
    for group in range(file.num_row_groups):
        with _arrow_errors(path):
            records = file.read_row_group(group, columns=columns).to_pylist()
        for place, fields in enumerate(records):
            number += 1
            where = f"{path.name}, row {number}"
            held = None
            if image in head:
                held = Embedded(where, partial(_parquet_image, path, group, place, image, where))
            yield Row(where, fields, held)


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise CofError(f"Reading {path.name} takes pyarrow: pip install 'cof[eval]'.") from error
    with _arrow_errors(path):
        return ParquetFile(path)


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Arrow's readers raise many kinds on damaged data
        raise CofError(f"{path} is no parquet file, or a part of one ({error}).") from error


def _parquet_image(path: Path, group: int, place: int, image: str, where: str) -> bytes:
    with _arrow_errors(path):
        cell = _parquet_column(path, group, image)[place].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, str):
        return _base64(data, where)
    if not isinstance(data, bytes):
        raise CofError(f"{where}: column {image} holds no image.")
    return data


@lru_cache(maxsize=1)  # images are asked for in order
def _parquet_column(path: Path, group: int, image: str) -> Any:
    return _open_parquet(path).read_row_group(group, columns=[image]).column(image)


def _columns(path: Path, head: Sequence[str], need: Sequence[str], problems: list[str]) -> bool:
    missing = [name for name in need if name not in head]
    if missing:
        problems.append(
            f"{path.name}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(head) or 'none'}"
        )
    return not missing
