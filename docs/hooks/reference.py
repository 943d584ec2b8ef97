"""The reference pages that the code writes: options, presets, families; the command line."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from cof.cli import app
from cof.cli.common import Model
from cof.families import FAMILIES
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.options import options_of
from cof.presets import PRESETS
from cof.settings import Settings


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for name, text in (("settings", settings_page()), ("cli", cli_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def settings_page() -> str:
    """Every method with its options, every preset and family, from the registries themselves."""
    parts = [
        "# Settings\n\nArguments of [`cof.Settings`](python.md#cof.Settings) and of "
        "[`CoF.from_pretrained`](python.md#cof.CoF.from_pretrained), and `--set NAME=VALUE` on "
        "[the command line](cli.md). Options belong to [a grounder or a focus](methods.md), or to "
        "what stands between both."
    ]
    for title, methods in (("Grounders", GROUNDERS), ("Focuses", FOCUSES), ("Between", {})):
        rows = []
        for name, method in methods.items() or [("", Settings)]:
            rows += [[f"**`{name}`**", "", "", method.help]] if name else []
            for each in options_of(method):
                default = "" if each.default is None else f"`{each.default}`"
                choices = ", ".join(f"`{choice}`" for choice in each.choices)
                meaning = each.help + (f" ({choices})" if choices else "")
                rows.append(["", f"`{each.name}`", default, meaning])
        parts += [f"## {title}", _table(["name", "option", "default", "meaning"], rows)]
    plain, rows = Settings().as_dict(), []
    for name, models in PRESETS.items():
        for row in models:
            own = row.settings.as_dict().items()
            changed = [f"`{key}={value}`" for key, value in own if value != plain.get(key)]
            rows.append([f"`{name}`", row.model, ", ".join(changed)])
    head = ["preset", "model", "differs from the defaults in"]
    parts += ["## Presets", _table(head, rows)]
    rows = [[each.name, ", ".join(f"`{kind}`" for kind in each.model_types)] for each in FAMILIES]
    parts += ["## Families", _table(["family", "`model_type` in config.json"], rows)]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """The command line as typer tells it; options that commands share are listed once."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="cof"), name="cof")
    ask, others = re.split(r"(?=^## `cof ground`)", text, maxsplit=1, flags=re.MULTILINE)
    flags = "|".join(each.name for each in fields(Model))
    lines = rf"(?:^\* `--(?:{flags})\b[^\n]*\n){{{len(fields(Model)) - 1},}}"
    shared = "* the model and how it looks closer, as for [`cof ask`](#cof-ask)\n"
    others = re.sub(lines, shared, others, flags=re.MULTILINE)
    return f"# The command line\n{ask.partition(chr(10))[2]}{others}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
