"""Grounders and focuses by name, and made of options given by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, TypeAlias

from cof.errors import CofError
from cof.focuses import FOCUSES, Focus
from cof.grounders import GROUNDERS, Grounder
from cof.options import options_of

GrounderLike: TypeAlias = "str | Grounder | Sequence[Grounder]"
FocusLike: TypeAlias = "str | Focus"


def find_grounders(given: GrounderLike) -> list[Any]:
    """Grounders, or their classes where they are named."""
    if isinstance(given, Grounder):
        return [given]
    names: Sequence[Any] = given.split("+") if isinstance(given, str) else given
    if isinstance(names, (list, tuple)) and names:
        methods = [each if isinstance(each, Grounder) else GROUNDERS.get(each) for each in names]
        used = {each.name for each in methods if each is not None}
        if len(used) == len(names) and (len(names) == 1 or not used & {"given", "none"}):
            return methods
    raise CofError(
        f"grounder must be one of {', '.join(GROUNDERS)}, or several joined by + such as "
        f"prompt+attention, not {given!r}."
    )


def find_focus(given: FocusLike) -> Any:
    """A focus, or its class where it is named."""
    if isinstance(given, Focus):
        return given
    if isinstance(given, str) and given in FOCUSES:
        return FOCUSES[given]
    raise CofError(f"focus must be one of {', '.join(FOCUSES)}, not {given!r}.")


def values_of(owner: Any) -> dict[str, Any]:
    """The options of an object or class by name, each also as `method.option`, with its value."""
    values = {each.name: getattr(owner, each.name) for each in options_of(owner)}
    if owner.name:
        values |= {f"{owner.name}.{name}": value for name, value in values.items()}
    return values


def make(method: Any, options: Mapping[str, Any]) -> Any:
    """The method with those of the options that are its own."""
    own = {
        each.name: options[name]
        for each in options_of(method)
        for name in (each.name, f"{method.name}.{each.name}")
        if name in options
    }
    return method(**own) if isinstance(method, type) else replace(method, **own)


def explain_unknown(name: str, methods: Sequence[Any], own: Sequence[str]) -> str:
    """The sentence about an option that none of the methods in use has."""
    known: dict[str, list[str]] = {}
    for kind, registry in (("grounder", GROUNDERS), ("focus", FOCUSES)):
        for owner, method in registry.items():
            for each in values_of(method):
                known.setdefault(each, []).append(f"{kind} {owner}")
    if name in known:
        used = " and ".join(method.name for method in methods)
        return f"{name} is an option of {', '.join(known[name])}, not of {used}."
    symbol = {"lambda": "strength", "lambda_": "strength", "alpha": "expand"}.get(name)
    near = [symbol] if symbol else get_close_matches(name, [*known, *own, "grounder", "focus"], 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"There is no option {name!r}; {meant}`cof settings` lists them."
