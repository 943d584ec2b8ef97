"""Options: the fields of grounders, focuses and settings, each with its help and its check."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

from cof.errors import CofError

T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""A name and a value -> the value as it is kept; refuses it with a `CofError` that names it."""


@dataclass(frozen=True)
class Option:
    """What is known of one option."""

    name: str
    default: Any
    help: str  # one sentence, for the command line and the documentation
    choices: tuple[str, ...]  # the values that it may have, where they can be listed


def option(default: T, help: str, check: Check | tuple[str, ...]) -> T:
    """A field of `Options`.

    Args:
        help: one sentence; a symbol of the paper stands in front, such as "lambda: ...".
        check: returns the value, or refuses it; or the values that it may have.
    """
    choices = check if isinstance(check, tuple) else ()
    if isinstance(check, tuple):
        check = _check(f"one of {', '.join(choices)}", str, choices.__contains__, str)
    value: T = field(default=default, metadata={"help": help, "check": check, "choices": choices})
    return value


@dataclass(frozen=True)
class Options:
    """A frozen dataclass whose fields are options, checked when it is made.

    Raises:
        CofError: a value is out of range or not among the choices.
    """

    name: ClassVar[str] = ""  # of the method that they belong to; empty: they are no method's

    def __post_init__(self) -> None:
        for each in fields(self):
            if "check" in each.metadata:
                symbol = re.match(r"(lambda|alpha): ", each.metadata["help"])
                name = f"{each.name} ({symbol[1]})" if symbol else each.name
                value = each.metadata["check"](name, getattr(self, each.name))
                object.__setattr__(self, each.name, value)


def options_of(owner: Options | type[Options]) -> list[Option]:
    """The options of a grounder, a focus or the settings, in their order."""
    return [
        Option(each.name, each.default, each.metadata["help"], each.metadata["choices"])
        for each in fields(owner)
        if "check" in each.metadata
    ]


def read_value(text: str) -> Any:
    """The value that a text stands for: JSON if it is some, else the text itself.

    >>> [read_value(text) for text in ("4.5", "true", "text", "0-15,20", "null")]
    [4.5, True, 'text', '0-15,20', None]
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_text(name: str, value: Any) -> str:
    """The text.

    Raises:
        CofError: it is none, or holds half of a surrogate pair, which no tokenizer takes.
    """
    if not isinstance(value, str):
        raise CofError(f"{name} must be a text, not {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CofError(
            f"{name} holds half of a surrogate pair, which is not a character: remove it."
        ) from None
    return value


def _check(what: str, kind: type, fits: Callable[[Any], bool], make: Callable[[Any], Any]) -> Check:
    def check(name: str, value: Any) -> Any:
        if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
            with suppress(OverflowError):
                if fits(made := make(value)):
                    return made
        raise CofError(f"{name} must be {what}, not {value!r}.")

    return check


positive = _check("a finite number above 0", Real, lambda n: 0 < n < math.inf, float)
fraction = _check("a number in 0..1", Real, lambda n: 0 <= n <= 1, float)
count = _check("a whole number above 0", Integral, lambda n: n >= 1, int)
flag = _check("true or false", bool, lambda _: True, bool)  # "False" would be true


def path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise CofError(f"{name} must be a hub id or a path, not {value!r}.")
    return os.fsdecode(value)


def indices(name: str, value: Any) -> tuple[int, ...] | None:
    """Numbers from 0 on: one, several, or a text of numbers and ranges.

    >>> indices("layers", "0-3,7"), indices("layers", [2, 5]), indices("layers", 4)
    ((0, 1, 2, 3, 7), (2, 5), (4,))
    """
    if value is None:
        return None
    numbers: list[Any] = []
    if isinstance(value, str):
        for part in re.split("[,+]", value):
            match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1) if match else [-1]
    else:
        numbers += value if isinstance(value, (tuple, list, range)) else [value]
    whole = [isinstance(each, Integral) and not isinstance(each, bool) for each in numbers]
    if not numbers or not all(whole) or min(numbers) < 0:
        raise CofError(f"{name} takes numbers and ranges such as 0-15,20, not {value!r}.")
    return tuple(dict.fromkeys(map(int, numbers)))
