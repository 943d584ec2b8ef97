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
from cof.options import options_of
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
        types, dialect = "\n".join(family.model_types), family.dialect
        units = dialect.units + (", yx" if dialect.order == "yxyx" else "")
        families.add_row(family.name, types, family.adapter, units, dialect.name)
    console.print(families)
    console.print(
        "Models of other types are tried as they load, where image tokens are a raster over the "
        "processed image: a warning says what is assumed of them, or a sentence what is missing."
    )
    presets = Table("preset", "model", "expand (alpha)", "strength (lambda)", title="Presets")
    for name, rows in PRESETS.items():
        for model, of in ((row.model, row.settings) for row in rows):
            presets.add_row(name, model, f"{of.expand:g}", f"{of.option('strength'):g}")
    console.print(presets)


@sentences
def settings(as_json: JsonOption = False) -> None:
    """List the grounders, the focuses, and all options, for --set, --grounder and --focus."""
    console = Console()
    described: dict[str, dict[str, Any]] = {}
    for kind, title, owners in (
        ("grounder", "Where to look (--grounder)", GROUNDERS),
        ("settings", "What becomes of the place", {"options": Settings}),
        ("focus", "How to make the model look there (--focus)", FOCUSES),
    ):
        table = _table(title, kind, "option", "default", "meaning")
        described[kind] = {}
        for name, owner in owners.items():
            about, options = getattr(owner, "help", ""), options_of(owner)
            described[kind][name] = {"help": about, "options": {o.name: asdict(o) for o in options}}
            table.add_row(name, "", "", Text(about, style="bold"))
            for each in options:
                default = "" if each.default is None else str(each.default)
                choices = f" [{', '.join(each.choices)}]" if each.choices else ""
                table.add_row("", each.name, default, Text(each.help + choices))
        if not as_json:
            console.print(table)
    if as_json:
        typer.echo(json.dumps(described))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1])
    return table
