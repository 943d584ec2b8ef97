"""`cof reproduce`: published experiments again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cof.cli.common import (
    BatchSizeOption,
    LimitOption,
    LongestAnswerOption,
    Model,
    OutOption,
    sentences,
    with_model,
)


@sentences
@with_model()
def reproduce_paper(
    data: Annotated[Path, "Folder with mme/, mmbench/ and pope/ as downloaded."],
    model: Model,
    out: OutOption = Path("results/paper"),
    dry_run: Annotated[bool, "Say what is there, what is missing, how long."] = False,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 8,
    max_new_tokens: LongestAnswerOption = 32,
) -> None:
    """Tables I and II: plain, reweighting alone, CoF, and CoF as its released code has it."""
    from cof.eval.paper import LAYOUT, estimate_seconds, find_parts, run_paper
    from cof.eval.report.publish import write_table

    parts = find_parts(data)
    for name, (_, _, place) in LAYOUT.items():
        if name not in parts:
            typer.echo(f"{name} is not there and left out: put it at {place}", err=True)
    for name, task in parts.items():  # with problems it is refused before a model is loaded
        typer.echo(f"{name}: {len(task.examples)} questions in {task.path}", err=True)
    cof = model.pipeline()
    style: Any = "tiny" if cof.engine.dialect.name == "tiny" else "llava"
    parts = {n: replace(task, prompt_style=style, limit=limit) for n, task in parts.items()}
    how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    if not dry_run:
        console = Console(stderr=True)
        results = run_paper(cof.engine, cof.settings, parts, out, console=console, **how)
        typer.echo(write_table(results, out))
        typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")
        return
    loaded = getattr(cof.engine, "model", None)
    if loaded is not None:
        size = sum(p.numel() * p.element_size() for p in loaded.parameters())
        typer.echo(f"Weights: {size / 2**30:.2f} GiB in {loaded.dtype} on {loaded.device}.")
    total = 0.0
    for name, task in parts.items():
        total += (spent := estimate_seconds(cof.engine, cof.settings, task, **how))
        typer.echo(f"{name}: about {spent / 60:.1f} minutes")
    typer.echo(f"In all about {total / 60:.1f} minutes, from one batch of each part.")
