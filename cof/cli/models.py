"""`cof models` and `cof settings`: what there is to choose from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cof.cli.common import JsonOption, sentences
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.options import Option, Options, options_of
from cof.settings import Settings


@sentences
def models() -> None:
    """List the supported model families, and the paper's settings."""
    from cof.families import FAMILIES
    from cof.presets import PRESETS

    console = Console()
    families = _table(
        "Supported models", "family", "model_type", "bias goes to", "boxes", "prompt style"
    )
    for family in FAMILIES:
        dialect = family.dialect
        families.add_row(
            family.name,
            "\n".join(family.model_types),
            family.adapter,
            dialect.units + (", yx" if dialect.order == "yxyx" else ""),
            dialect.name,
        )
    console.print(families)
    console.print(
        "Models of other types are tried as they load, where image tokens are a raster over the "
        "processed image: a warning says what is assumed of them, or a sentence what is missing."
    )
    presets = Table("preset", "model", "expand (alpha)", "strength (lambda)", title="Presets")
    for name, rows in PRESETS.items():
        for row in rows:
            strength = f"{row.settings.option('strength'):g}"
            presets.add_row(name, row.model, f"{row.settings.expand:g}", strength)
    console.print(presets)


@sentences
def settings(as_json: JsonOption = False) -> None:
    """List the grounders, the focuses, and all options, for --set, --grounder and --focus."""
    about: dict[str, dict[str, type[Options]]]
    about = {"settings": {"": Settings}, "grounder": {**GROUNDERS}, "focus": {**FOCUSES}}
    if as_json:
        typer.echo(json.dumps({kind: _describe(owners) for kind, owners in about.items()}))
        return
    console = Console()
    for kind, title in (
        ("grounder", "Where to look (--grounder)"),
        ("settings", "What becomes of the place"),
        ("focus", "How to make the model look there (--focus)"),
    ):
        table = _table(title, kind if kind != "settings" else "", "option", "default", "meaning")
        for name, owner in about[kind].items():
            if kind != "settings":
                table.add_row(name, "", "", Text(owner.help, style="bold"))  # type: ignore[attr-defined]
            for each in options_of(owner):
                default = "" if each.default is None else str(each.default)
                table.add_row("", each.name, default, Text(_meaning(each)))
        console.print(table)


def _describe(owners: dict[str, type[Options]]) -> dict[str, Any]:
    return {
        name or "options": {
            "help": getattr(owner, "help", ""),
            "options": {each.name: asdict(each) for each in options_of(owner)},
        }
        for name, owner in owners.items()
    }


def _meaning(option: Option) -> str:
    return option.help + (f" [{', '.join(option.choices)}]" if option.choices else "")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1])
    return table
