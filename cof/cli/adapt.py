"""`cof adapt`: fit and freeze a rule for when to look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cof.cli.common import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelOption,
    OutOption,
    PresetOption,
    SideOption,
    load,
    sentences,
)


@sentences
def adapt(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Where `cof eval` wrote for a benchmark: fit on half of its pictures. \\[default: "
            "ask the embedded benchmark's questions]",
        ),
    ] = None,
    model: ModelOption = None,
    preset: PresetOption = None,
    out: OutOption = Path("results/adaptive"),
    scenes: Annotated[
        int | None,
        typer.Option("--scenes", min=1, help="Scenes of each num_objects level and split."),
    ] = None,
    side: SideOption = 160,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 48,
    seed: Annotated[int, typer.Option("--seed", help="Of the folds and of the intervals.")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Fit a rule for when to look (`--adaptive`) on some questions, and measure it on others."""
    from cof.eval.adaptive.study import RULE, Plan, adapt_run, run_adaptation
    from cof.eval.report.adapt import verdict, write_adaptation

    if run is not None:
        results = adapt_run(run, out, seed=seed)
    else:
        plan = Plan(side=side, limit=limit, batch_size=batch_size, seed=seed)
        if scenes is not None:
            plan = replace(plan, scenes=scenes, validation_scenes=scenes)
        cof = load(model, preset, dtype, device, False)
        console = Console(stderr=True)
        results = run_adaptation(cof.engine, cof.settings, plan, out, console=console)
    write_adaptation(results, out)
    typer.echo(f"The rule: {results['rule']['sentence']}.")
    typer.echo(verdict(results))
    typer.echo(f"The rule is {out / RULE}; all numbers: {out / 'table.md'}, {out / 'results.json'}")
