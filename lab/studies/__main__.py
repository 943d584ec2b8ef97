"""`python -m lab.studies tiny|grid|synthetic|effect`: what `make eval` and `make effect` run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cof import CoF
from cof.cli.evaluate import finish, split_names
from cof.tiny.benchmark import FINE
from lab.studies.effect import measure, write_effect
from lab.studies.scenes import FOCUSES_COMPARED, SOURCES, Plan, run_effect, run_grid, run_synthetic


def main(arguments: list[str] | None = None) -> None:
    """Run one study; an interrupted one goes on."""
    args = _parse(arguments)
    console = Console(stderr=True)
    if args.study == "effect":
        points = measure(args.checkpoints, args.out, scenes=args.scenes or 32, console=console)
        write_effect(points, args.out)
        return
    cof = CoF.from_pretrained(args.model, dtype=args.dtype)
    settings, plan = cof.settings, make_plan(args)
    if args.study == "tiny":
        results = run_effect(cof.engine, settings, plan, args.out, console=console)
    elif args.study == "synthetic":
        results = run_synthetic(cof.engine, settings, plan, args.out, console=console)
    else:
        if cof.engine.dialect.box_template is not None:
            settings = settings.changed(boxes="template")  # `soft` knows how sure the sides are
        results = run_grid(
            cof.engine,
            settings,
            plan,
            args.out,
            sources=split_names(args.grounders) or SOURCES,
            focuses=split_names(args.focuses) or FOCUSES_COMPARED,
            console=console,
        )
    finish(results, args.out)


def make_plan(args: argparse.Namespace) -> Plan:
    """The size of the study, and the values that it tries."""
    plan = Plan(side=args.side, limit=args.limit)
    options: dict[str, Any] = {}
    if args.study == "grid":
        options = {"strengths": plan.strengths[-5:], "expands": (1.0, 1.5, 2.5), "kinds": FINE}
    if args.quick:
        options |= {"scenes": 2, "validation_scenes": 1, "num_objects": (4, 12)}
        options |= {"strengths": (4.0, 16.0), "expands": (1.0,), "scopes": ("all",)}
    elif scenes := args.scenes or {"grid": 16, "synthetic": 16}.get(args.study):
        options |= {"scenes": scenes, "validation_scenes": min(8, max(1, scenes // 3))}
    return replace(plan, **options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("tiny", "grid", "synthetic", "effect"))
    parser.add_argument("checkpoints", nargs="*", type=Path, help="effect: folders, or names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scenes", type=int, help="test scenes of each number of objects")
    parser.add_argument("--side", type=int, default=160, help="above 160 details are smaller")
    parser.add_argument("--limit", type=int, help="about so many questions of each split")
    parser.add_argument("--quick", action="store_true", help="a few scenes, to see that all runs")
    parser.add_argument("--grounders", help="grid: such as prompt,attention,oracle")
    parser.add_argument("--focuses", help="grid: such as attention,crop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
