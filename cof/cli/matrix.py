"""`cof eval matrix`: grounders crossed with focuses on the embedded benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cof.cli.common import (
    BatchSizeOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelOption,
    OutOption,
    PresetOption,
    SeedOption,
    SideOption,
    load,
    sentences,
)

if TYPE_CHECKING:
    from cof.eval.report.document import Table as Numbers


@sentences
def eval_matrix(
    model: ModelOption = None,
    preset: PresetOption = None,
    out: OutOption = Path("results/matrix"),
    grounders: Annotated[
        str | None,
        typer.Option("--grounders", help="Such as prompt,attention,oracle. \\[default: all]"),
    ] = None,
    focuses: Annotated[
        str | None, typer.Option("--focuses", help="Such as attention,crop. \\[default: all]")
    ] = None,
    detector: DetectorOption = None,
    scenes: Annotated[
        int | None,
        typer.Option(
            "--scenes", min=1, help="Test scenes of each num_objects level. \\[default: 16]"
        ),
    ] = None,
    side: SideOption = 160,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 48,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Every grounder with every focus on small details: accuracy and cost of each."""
    from cof.eval.matrix import Plan, run_matrix
    from cof.eval.report.matrix import accuracies, write_matrix

    chosen: dict[str, Any] = {"sources": _names(grounders), "focuses": _names(focuses)}
    if scenes is not None:
        chosen |= {"scenes": scenes, "validation_scenes": max(1, scenes // 3)}
    plan = replace(
        Plan(side=side, limit=limit, batch_size=batch_size, seed=seed),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    cof = load(model, preset, dtype, device, False, detector=detector)
    results = run_matrix(cof.engine, cof.settings, plan, out, console=Console(stderr=True))
    write_matrix(results, out)
    _print(accuracies(results))
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


def _names(text: str | None) -> tuple[str, ...] | None:
    """`prompt, whole` -> `("prompt", "whole")`."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _print(numbers: Numbers) -> None:
    shown = Table(*numbers.head, title="Accuracy, and how much above the plain model")
    for row in numbers.rows:
        shown.add_row(*map(str, row))
    Console().print(shown)
