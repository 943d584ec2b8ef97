"""The reference pages that the code writes: settings, grounders and focuses, the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from cof.cli import app
from cof.cli.common import ModelOptions
from cof.families import FAMILIES
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.settings import PRESETS, Settings, settings_of


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for name, text in (("settings", settings_page()), ("cli", cli_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def settings_page() -> str:
    """Every setting, grounder, focus and preset, from the fields and registries themselves."""
    groups = dict.fromkeys(each.metadata["group"] for each in fields(Settings))
    parts = [
        "# Settings\n\nFields of [`cof.Settings`](python.md#cof.Settings); arguments of "
        "[`CoF.from_pretrained`](python.md#cof.CoF.from_pretrained); options of "
        "[the command line](cli.md) (`min_box` is `--min-box`); arguments in lmms-eval's "
        "`--model_args`."
    ]
    for group in groups:
        rows = [
            [f"`{each.name}`", _default(each.default), _meaning(each.metadata)]
            for each in fields(Settings)
            if each.metadata["group"] == group
        ]
        parts.append(f"## {group}\n\n{_table(['setting', 'default', 'meaning'], rows)}")
    for kind, registry in (("Grounders", GROUNDERS), ("Focuses", FOCUSES)):
        rows = [
            [f"`{name}`", method.help, ", ".join(f"`{of}`" for of in settings_of(method))]
            for name, method in registry.items()
        ]
        parts.append(f"## {kind}\n\n{_table(['name', 'where or how', 'settings'], rows)}")
    plain = Settings()
    rows = []
    for name, models in PRESETS.items():
        for row in models:
            own = row.settings.as_dict()
            changed = [f"`{key}={own[key]}`" for key in own if own[key] != getattr(plain, key)]
            rows.append([f"`{name}`", row.model, ", ".join(changed) or "the defaults"])
    head = ["preset", "model", "differs from the defaults in"]
    parts.append(f"## Presets\n\n{_table(head, rows)}")
    rows = [
        [family.name, ", ".join(f"`{kind}`" for kind in family.model_types)] for family in FAMILIES
    ]
    parts.append(f"## Families\n\n{_table(['family', '`model_type` in config.json'], rows)}")
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """The command line as typer tells it; options that commands share are listed once."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="cof"), name="cof")
    ask, others = re.split(r"(?=^## `cof ground`)", text, maxsplit=1, flags=re.MULTILINE)
    for what, owner in (("settings", Settings), ("options of the model", ModelOptions)):
        flags = "|".join(each.name.replace("_", "-") for each in fields(owner))
        lines = rf"(?:^\* `--(?:{flags})\b[^\n]*\n){{{len(fields(owner)) - 2},}}"
        shared = f"* the {what}, as for [`cof ask`](#cof-ask)\n"
        others = re.sub(lines, shared, others, flags=re.MULTILINE)
    return f"# The command line\n{ask.partition(chr(10))[2]}{others}"


def _meaning(metadata: Any) -> str:
    choices = ", ".join(f"`{choice}`" for choice in metadata["choices"])
    return metadata["help"] + (f" ({choices})" if choices else "")


def _default(value: object) -> str:
    return "" if value is None else f"`{value}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
