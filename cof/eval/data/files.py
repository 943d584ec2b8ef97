"""Rows of the formats that benchmarks come in: JSON lines, TSV with base64 images, parquet."""

from __future__ import annotations

import ast
import base64
import csv
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.examples import Embedded
from cof.eval.json_files import T, parse_json

_NOTHING = "nan"
"""How pandas may have spelled an empty cell; "None" can be an option's text."""


@dataclass(frozen=True)
class Row:
    """One record of a data file."""

    file: Path  # where it stands
    place: str  # in the file, such as `line 3`; empty: the file is the record
    fields: Mapping[str, Any]  # by column; an image that the file holds is left out
    image: Embedded | None = None  # that image
    problem: str = ""  # why the record is of no use; empty: it has all that is needed

    @classmethod
    def of_json(cls, file: Path, place: str, record: Any, need: Sequence[str]) -> Row:
        """Of a JSON value, which should be an object with the fields that are needed."""
        fields = record if isinstance(record, dict) else {}
        return cls(file, place, fields, problem=_lacking(fields, need))

    @property
    def where(self) -> str:
        """For messages: `POPE/coco_pope_random.json, line 3`."""
        return "/".join(self.file.parts[-2:]) + (self.place and f", {self.place}")

    def text(self, *columns: str) -> str:
        """The first of these cells with any text but `nan`, without blanks around it; or empty."""
        for column in columns:
            text = _as_text(self.fields.get(column), column)
            if text not in ("", _NOTHING):
                return text
        return ""

    def texts(self, column: str) -> tuple[str, ...]:
        """The texts of a list, also of records `{"answer": ...}`; none: the cell is empty.

        Raises:
            CofError: it is no list of texts.
        """
        values = self.fields.get(column)
        if not isinstance(values, list | None):
            raise CofError(f"{column} is no list")
        return tuple(
            _as_text(each.get("answer", each) if isinstance(each, dict) else each, f"{column} {n}")
            for n, each in enumerate(values or (), start=1)
        )


def _as_text(value: Any, name: str) -> str:
    if isinstance(value, dict | list | tuple):
        raise CofError(f"{name} is no text: {str(value)[:60]}")
    return "" if value is None else str(value).strip()


def only_one(value: Any) -> Any:
    """A cell, or the one value of a list in it, which may be spelled as Python does.

    Raises:
        CofError: it holds several.
    """
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        with suppress(SyntaxError, ValueError):
            value = ast.literal_eval(value)
    if isinstance(value, list):
        if len(value) != 1:
            raise CofError(f"it holds {len(value)} images, and a question is asked about one")
        return value[0]
    return value


def collect(
    make: Callable[[Row], Iterable[T]], problems: list[str], *sources: Iterable[Row]
) -> list[T]:
    """What is made of each row of several sources, such as files. Every `CofError` about a row or a
    source becomes one of the problems, so that one look at a data set names all of them."""
    made: list[T] = []
    for rows in sources:
        try:
            for row in rows:
                try:
                    if row.problem:
                        raise CofError(row.problem)
                    made += make(row)
                except CofError as error:
                    problems.append(f"{row.where}: {error}".rstrip("."))
        except CofError as error:
            problems.append(str(error).rstrip("."))
    return made


def read_rows(path: Path, need: Sequence[str]) -> Iterator[Row]:
    """The records of one file, by its ending: `.tsv`, `.parquet`, else JSON lines.

    Raises:
        CofError: it cannot be read, or is a table that lacks a column.
    """
    read = {".tsv": _read_tsv, ".parquet": _read_parquet}.get(path.suffix.lower(), _read_json_lines)
    try:
        yield from read(path, need)
    except CofError:
        raise
    except ModuleNotFoundError as error:
        raise CofError(f"Reading {path.name} takes pyarrow: pip install 'cof[eval]'.") from error
    except Exception as error:  # on damaged data readers raise many kinds
        reason = getattr(error, "strerror", None) or error
        raise CofError(f"{path} cannot be read ({reason}).") from error


def data_files(path: Path, patterns: Sequence[str], *, one_split: bool) -> list[Path]:
    """The files of a data set.

    Args:
        path: a file; a folder; or the common beginning of one split's files as the hub cuts them,
            such as `data/val` for `data/val-00000-of-00002.parquet` and its like.
        patterns: of the files in a folder, of which the first kind that is there is taken.
        one_split: whether files that are no parts of one split are refused.

    Raises:
        CofError: there are none, or those of several splits.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return shards(path)
    files = first_files(path, patterns)
    if not files:
        raise CofError(
            f"{path} holds no data ({', '.join(patterns)}): name the folder or file of the data "
            "set as it was downloaded."
        )
    splits = dict.fromkeys(re.sub(r"-\d{5}-of-\d{5}[^/\\]*$", "", str(file)) for file in files)
    if one_split and len(splits) > 1:
        raise CofError(f"Name one of {', '.join(splits)}: each is a split of its own.")
    return files


def first_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The sorted files of the first pattern that has any, without what is hidden (`._1.txt`)."""

    def seen(file: Path) -> bool:
        return not any(part.startswith(".") for part in file.relative_to(folder).parts)

    return next(filter(None, (sorted(filter(seen, folder.glob(p))) for p in patterns)), [])


def shards(path: Path) -> list[Path]:
    """The files that the hub's way of cutting makes of one split, sorted."""
    return sorted(path.parent.glob(f"{path.name}-*-of-*"))


def _read_json_lines(path: Path, need: Sequence[str]) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield Row.of_json(path, f"line {number}", parse_json(line), need)
                except ValueError:
                    yield Row(path, f"line {number}", {}, problem="no JSON (truncated?)")


def _read_tsv(path: Path, need: Sequence[str]) -> Iterator[Row]:
    with path.open("rb") as file:
        table = _csv(iter(file.readline, b""))
        head: list[str] = next(table, [])
        _check_columns(path, head, need)
        offset, line = file.tell(), table.line_num + 1
        for cells in table:
            place, problem, image = f"line {line}", "", None
            fields = dict(zip(head, cells, strict=False))
            if len(cells) != len(head):
                problem = f"{len(cells)} columns instead of {len(head)} (truncated?)"
            if len(fields.get("image", "")) > 64:  # else another row's index
                try:
                    only_one(fields.pop("image"))
                except CofError as error:
                    problem = str(error)
                image = _embedded(
                    path, place, partial(_tsv_cell, path, offset, head.index("image"))
                )
            if cells:  # no blank line
                yield Row(path, place, fields, image, problem)
            offset, line = file.tell(), table.line_num + 1


def _csv(lines: Iterable[bytes]) -> Any:
    csv.field_size_limit(2**31 - 1)  # an image is one cell
    return csv.reader((line.decode("utf-8-sig") for line in lines), delimiter="\t")


def _tsv_cell(path: Path, offset: int, column: int) -> Any:
    with path.open("rb") as file:
        file.seek(offset)
        return next(_csv(file))[column]


def _embedded(path: Path, place: str, cell: Callable[[], Any]) -> Embedded:
    """The image in a cell: as base64, as bytes, or as bytes beside a path."""

    def load() -> bytes:
        try:
            value = only_one(cell())
            data = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(data, str):
                data = base64.b64decode(re.sub(r"^\s*data:[^,]*,|\s", "", data), validate=True)
            if not isinstance(data, bytes):
                raise ValueError("there is none")
        except Exception as error:  # on damaged data readers raise many kinds
            raise CofError(f"{path.name}, {place}: the image cannot be read ({error}).") from error
        return data

    return Embedded(place, load)


def _read_parquet(path: Path, need: Sequence[str]) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    head = file.schema_arrow.names
    _check_columns(path, head, need)
    columns = [name for name in head if name != "image"]
    numbers = count(1)
    for group in range(file.num_row_groups):
        for n, fields in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
            place = f"row {next(numbers)}"
            cell = partial(lambda group, n: _parquet_images(path, group)[n].as_py(), group, n)
            image = _embedded(path, place, cell) if "image" in head else None
            yield Row(path, place, fields, image)


@lru_cache(maxsize=1)  # images are asked for in order
def _parquet_images(path: Path, group: int) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path).read_row_group(group, columns=["image"]).column("image")


def _check_columns(path: Path, head: Sequence[str], need: Sequence[str]) -> None:
    if lacking := _lacking(head, need):
        raise CofError(f"{path.name}: {lacking}; it has {', '.join(head) or 'no columns'}")


def _lacking(names: Container[str], need: Sequence[str]) -> str:
    missing = ", ".join(name for name in need if name not in names)
    return missing and f"lacks {missing}"
