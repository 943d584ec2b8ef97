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
    DeviceOption,
    DtypeOption,
    LongestAnswerOption,
    ModelOption,
    OutOption,
    PresetOption,
    load,
    sentences,
)
from cof.errors import CofError

if TYPE_CHECKING:
    from cof.eval.paper import Part
    from cof.pipeline import CoF


@sentences
def reproduce_paper(
    data: Annotated[
        Path, typer.Option("--data", help="Folder with mme/, mmbench/ and pope/ as downloaded.")
    ],
    model: ModelOption = None,
    preset: PresetOption = None,
    out: OutOption = Path("results/paper"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is there, what is missing, how long.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="About so many questions of each part.")
    ] = None,
    batch_size: BatchSizeOption = 8,
    max_new_tokens: LongestAnswerOption = 32,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Tables I and II: plain, reweighting alone, CoF, and CoF as its released code has it."""
    from cof.eval.paper import parts, run_paper, usable
    from cof.eval.report.document import markdown
    from cof.eval.report.paper import blocks

    found = parts(data)
    if not dry_run:
        usable(found)  # before minutes are spent on loading a model
    try:
        cof = load(model, preset, dtype, device, False)
    except CofError as error:
        if not dry_run:
            raise
        _print_parts(found)
        raise CofError(f"The model is not there: {error}") from error
    prompt_style = "tiny" if cof.engine.dialect.name == "tiny" else "llava"
    found = parts(data, prompt_style=prompt_style, limit=limit)  # type: ignore[arg-type]
    how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    if dry_run:
        _print_parts(found)
        usable(found)
        _print_cost(cof, found, how)
        return
    console = Console(stderr=True)
    for part in found:
        if part.task is None:
            console.print(f"{part.name} is not there and left out: put it at {part.needed}")
    numbers = run_paper(cof.engine, cof.settings, found, out, console=console, **how)
    typer.echo(markdown(blocks(numbers)))
    typer.echo(f"All numbers: {out / 'paper.md'}, {out / 'paper.json'}, and a folder for each part")


def _print_parts(found: list[Part]) -> None:
    """What of the paper's data is there, and what is wrong with it."""
    shown = Table("part", "there", "questions", "problems", title="Data")
    for part in found:
        if part.task is None:
            shown.add_row(part.name, f"no: put it at {part.needed}", "", "")
            continue
        try:
            shown.add_row(part.name, str(part.task.path), str(part.task.num_examples()), "none")
        except CofError as error:
            shown.add_row(part.name, str(part.task.path), "", Text(str(error)))
    Console().print(shown)


def _print_cost(cof: CoF, found: list[Part], how: dict[str, Any]) -> None:
    """Memory of the weights, and time measured on one batch of each part."""
    from cof.eval.paper import seconds

    model = getattr(cof.engine, "model", None)
    if model is not None:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        typer.echo(f"Weights: {size / 2**30:.2f} GiB in {model.dtype} on {model.device}.")
    total = 0.0
    for part in found:
        if part.task is not None:
            spent = seconds(cof.engine, cof.settings, part.task, **how)
            total += spent
            typer.echo(f"{part.name}: about {spent / 60:.1f} minutes")
    typer.echo(f"In all about {total / 60:.1f} minutes, from one batch of each part.")
