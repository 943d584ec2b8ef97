"""`cof reproduce`: published experiments again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cof.cli.common import (
    BatchSizeOption,
    LimitOption,
    LongestAnswerOption,
    Model,
    OutOption,
    sentences,
    with_model,
)
from cof.errors import CofError

if TYPE_CHECKING:
    from cof.eval.paper import Parts
    from cof.pipeline import CoF


@sentences
@with_model()
def reproduce_paper(
    data: Annotated[Path, typer.Option(help="Folder with mme/, mmbench/ and pope/ as downloaded.")],
    model: Model,
    out: OutOption = Path("results/paper"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is there, what is missing, how long.")
    ] = False,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 8,
    max_new_tokens: LongestAnswerOption = 32,
) -> None:
    """Tables I and II: plain, reweighting alone, CoF, and CoF as its released code has it."""
    from cof.eval.paper import LAYOUT, check_parts, find_parts, run_paper
    from cof.eval.report.publish import write_table

    parts = find_parts(data)
    if dry_run:
        _print_parts(parts)
    check_parts(parts)  # before minutes are spent on loading a model
    cof = model.pipeline()
    style = "tiny" if cof.engine.dialect.name == "tiny" else "llava"
    parts = find_parts(data, prompt_style=style, limit=limit)
    how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    if dry_run:
        _print_cost(cof, parts, how)
        return
    console = Console(stderr=True)
    for name, task in parts.items():
        if task is None:
            console.print(f"{name} is not there and left out: put it at {LAYOUT[name][2]}")
    results = run_paper(cof.engine, cof.settings, parts, out, console=console, **how)
    typer.echo(write_table(results, out))
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


def _print_parts(parts: Parts) -> None:
    """Which parts of the paper's data are there, and their problems."""
    from cof.eval.paper import LAYOUT

    shown = Table("part", "there", "questions", "problems", title="Data")
    for name, task in parts.items():
        if task is None:
            shown.add_row(name, f"no: put it at {LAYOUT[name][2]}", "", "")
            continue
        try:
            shown.add_row(name, str(task.path), str(len(task.examples)), "none")
        except CofError as error:
            shown.add_row(name, str(task.path), "", Text(str(error)))
    Console().print(shown)


def _print_cost(cof: CoF, parts: Parts, how: dict[str, Any]) -> None:
    """Memory of the weights, and time measured on one batch of each part."""
    from cof.eval.paper import estimate_seconds

    model = getattr(cof.engine, "model", None)
    if model is not None:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        typer.echo(f"Weights: {size / 2**30:.2f} GiB in {model.dtype} on {model.device}.")
    total = 0.0
    for name, task in parts.items():
        if task is not None:
            spent = estimate_seconds(cof.engine, cof.settings, task, **how)
            total += spent
            typer.echo(f"{name}: about {spent / 60:.1f} minutes")
    typer.echo(f"In all about {total / 60:.1f} minutes, from one batch of each part.")
