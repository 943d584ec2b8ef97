"""`cof models` and `cof settings`: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cof.cli.common import JsonOption, sentences
from cof.focuses import FOCUSES, Focus
from cof.grounders import GROUNDERS, Grounder
from cof.settings import HOW, WHERE, Settings, settings_of

_ADAPTERS = {
    "decoder": "decoder",
    "qformer": "Q-Former",
    "mllama": "cross-attention",
    "kosmos2": "latent queries",
}
_SCALES = {
    "unit": "0..1",
    "percent": "0..100",
    "thousand": "0..1000",
    "loc1024": "0..1024",
    "cells32": "32 x 32 cells",
    "pixels": "pixels",
}


@sentences
def models() -> None:
    """List the supported model families, and the paper's settings."""
    from cof.families import FAMILIES
    from cof.settings import PRESETS

    console = Console()
    families = _table(
        "Supported models", "family", "model_type", "bias goes to", "boxes", "prompt style"
    )
    for family in FAMILIES:
        dialect = family.dialect
        families.add_row(
            family.name,
            "\n".join(family.model_types),
            _ADAPTERS[family.adapter],
            _SCALES[dialect.units] + (", yx" if dialect.order == "yxyx" else ""),
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
            presets.add_row(
                name, row.model, f"{row.settings.expand:g}", f"{row.settings.strength:g}"
            )
    console.print(presets)


@sentences
def settings(as_json: JsonOption = False) -> None:
    """List all settings of the method, with the grounders and focuses."""
    methods: dict[str, Mapping[str, type[Grounder] | type[Focus]]]
    methods = {"grounders": GROUNDERS, "focuses": FOCUSES}
    if as_json:
        known = {
            each.name: {
                "default": each.default,
                "help": each.metadata["help"],
                "choices": list(each.metadata["choices"]),
            }
            for each in fields(Settings)
        }
        about = {
            kind: {
                name: {"help": method.help, "settings": settings_of(method)}
                for name, method in registry.items()
            }
            for kind, registry in methods.items()
        }
        typer.echo(json.dumps({"settings": known, **about}))
        return
    console = Console()
    for group in (WHERE, HOW):
        table = _table(group, "setting", "default", "meaning")
        for each in fields(Settings):
            if each.metadata["group"] == group:
                default = "" if each.default is None else str(each.default)
                table.add_row(each.name, default, Text(each.metadata["help"]))
        console.print(table)
    for kind, registry in methods.items():
        table = _table(kind.capitalize(), "name", "settings", "meaning")
        for name, method in registry.items():
            table.add_row(name, "\n".join(settings_of(method)), Text(method.help))
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1])
    return table
