"""`cof eval faces`: the embedded benchmark in the formats of MME, POPE and MMBench."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cof.cli.common import (
    BatchSizeOption,
    DeviceOption,
    LimitOption,
    ModelOption,
    OutOption,
    PresetOption,
    SeedOption,
    SideOption,
    load,
    sentences,
)


@sentences
def eval_faces(
    model: ModelOption = None,
    preset: PresetOption = None,
    out: OutOption = Path("results/faces"),
    scenes: Annotated[
        int | None,
        typer.Option(
            "--scenes", min=1, help="Test scenes of each num_objects level. \\[default: 16]"
        ),
    ] = None,
    side: SideOption = 160,
    limit: LimitOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few scenes, to see that all runs.")
    ] = False,
    batch_size: BatchSizeOption = 32,
    seed: SeedOption = 0,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, bfloat16 or float16. "
            "\\[default: bfloat16 for an embedded model, else by "
            "device]",
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """The embedded benchmark as MME, POPE and MMBench: all methods, settings chosen beforehand."""
    from cof.eval.faces import Plan, run_faces
    from cof.eval.report.faces import second_table, write_faces_report
    from cof.tiny import EMBEDDED

    plan = Plan.quick() if quick else Plan()
    plan = replace(
        plan,
        scenes=scenes or plan.scenes,
        side=side,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
    )
    # what the embedded models were trained in, and their weights are
    dtype = dtype or ("bfloat16" if model is None or model in EMBEDDED else None)
    cof = load(model, preset, dtype, device, False)
    console = Console(stderr=True)
    results = run_faces(cof.engine, cof.settings, plan, out, console=console)
    write_faces_report(results, out)
    typer.echo(second_table(results))
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")
