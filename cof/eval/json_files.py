"""JSON on disk: objects, lines that runs append to, and dataclasses made of either."""

from __future__ import annotations

import functools
import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from huggingface_hub.dataclasses import type_validator

from cof.errors import CofError

T = TypeVar("T")

_hints = functools.cache(get_type_hints)


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds half of a surrogate pair.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():  # type: ignore[operator]
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json_object(path: Path, advice: str = "run the evaluation again") -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        CofError: the file is damaged, or holds another value; `advice` says what to do then.
    """
    if not path.is_file():
        return {}
    try:
        value = parse_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise CofError(f"{path} is damaged ({error}): {advice}.") from error
    return value


def read_json_lines(path: Path, read: Callable[[Any], T], advice: str) -> list[T]:
    """The values of a file of JSON lines; empty if there is no such file.

    Raises:
        CofError: `read` raises a ValueError or TypeError about a line; `advice` says what to do.
    """
    values = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(read(parse_json(line)))
        except (TypeError, ValueError) as error:
            raise CofError(f"{path}, line {number} is damaged ({error}): {advice}.") from error
    return values


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content all or nothing, whoever else writes it (shards); make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def from_json(kind: type[T], values: Any) -> T:
    """A dataclass of a JSON object with its fields; lists become tuples, and texts paths.

    Raises:
        ValueError: it is no object, a field is missing or unknown, or a value has another type.
    """
    if not isinstance(values, dict):
        raise ValueError("no object")
    hints = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed
    try:
        made = kind(**{name: _convert(hints.get(name), value) for name, value in values.items()})
        for name, hint in hints.items():
            type_validator(name, getattr(made, name), hint)
    except (RecursionError, TypeError) as error:
        raise ValueError(str(error)) from error
    return made


def _convert(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_convert(None, each) for each in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    return Path(value) if isinstance(value, str) and Path in get_args(hint) else value
