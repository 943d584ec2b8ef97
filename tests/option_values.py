"""For each setting a value other than its default, and how it is written on a command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from cof.settings import Settings


def other_values() -> dict[str, tuple[str, Any]]:
    """`{name: (text, value)}` for every field of `Settings`; lambda is 1, so that no grounder runs.

    >>> other_values()["scope"], other_values()["layers"], other_values()["strength"]
    (('text', 'text'), ('0-2+5', (0, 1, 2, 5)), ('1', 1))
    """
    kinds = get_type_hints(Settings)
    values: dict[str, tuple[str, Any]] = {}
    for field in fields(Settings):
        kind, choices = kinds[field.name], field.metadata["choices"]
        if choices:
            value = next(choice for choice in choices if choice != field.default)
            values[field.name] = (value, value)
        elif kind is bool:
            values[field.name] = (str(not field.default), not field.default)
        elif kind in (int, float):
            values[field.name] = ("1", 1) if field.default != 1 else ("0.5", 0.5)
        elif kind == tuple[int, ...] | None:
            values[field.name] = ("0-2+5", (0, 1, 2, 5))
        else:
            values[field.name] = ("paper", "paper")
    return values
