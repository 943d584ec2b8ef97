"""`python -m lab.studies tiny|grid|synthetic|effect`: what `make eval` and `make effect` run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cof import CoF
from cof.cli.evaluate import finish
from cof.errors import CofError
from cof.tiny.benchmark import FINE, SPLITS
from lab.studies.effect import measure, write_effect
from lab.studies.scenes import (
    FOCUSES_COMPARED,
    HEADLINE,
    SOURCES,
    Plan,
    run_effect,
    run_grid,
    run_synthetic,
)


def main(arguments: list[str] | None = None) -> None:
    """Run one study; an interrupted one goes on."""
    args = _parse(arguments)
    console = Console(stderr=True)
    if args.study == "effect":
        points = measure(args.checkpoints, args.out, scenes=args.scenes or 32, console=console)
        write_effect(points, args.out)
        return
    plan, cof = make_plan(args), CoF.from_pretrained(args.model, dtype=args.dtype)
    settings, run = cof.settings, {"tiny": run_effect, "synthetic": run_synthetic}.get(args.study)
    if run is None:
        if cof.engine.dialect.box_template is not None:
            settings = settings.changed(boxes="template")  # `soft` knows how sure the sides are
        cells = {"sources": args.grounders or SOURCES, "focuses": args.focuses or FOCUSES_COMPARED}
        run = partial(run_grid, **cells)
    finish(run(cof.engine, settings, plan, args.out, console=console), args.out)


def make_plan(args: argparse.Namespace) -> Plan:
    """The size of the study, and the values that it tries.

    Raises:
        CofError: the headline scenes are not to be asked whole.
    """
    whole = args.split == HEADLINE
    if whole and (args.quick or args.scenes):
        raise CofError("The headline scenes are asked whole: for fewer of them, --split test.")
    plan = Plan(split=args.split, chosen_on=args.choose_on, side=args.side, limit=args.limit)
    few = {"grid": 16, "synthetic": 16}.get(args.study, plan.scenes)
    many = 64 if args.study == "synthetic" else 450  # 10,000 questions about small details
    options: dict[str, Any] = {"scenes": many if whole else args.scenes or few}
    if args.fine or args.study == "grid":
        options |= {"kinds": FINE}
    if args.study == "grid":
        options |= {"chosen_kinds": FINE}
        options |= {"strengths": plan.strengths[-5:], "expands": (1.0, 1.5, 2.5)}
    if args.quick:
        options |= {"scenes": 2, "num_objects": (4, 12)}
        options |= {"strengths": (4.0, 16.0), "expands": (1.0,), "scopes": ("all",)}
    validation = min(plan.validation_scenes, max(1, options["scenes"] // 3))
    return replace(plan, **options, validation_scenes=validation)


def _names(text: str) -> tuple[str, ...]:
    """`prompt, whole` -> `("prompt", "whole")`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("tiny", "grid", "synthetic", "effect"))
    parser.add_argument("checkpoints", nargs="*", type=Path, help="effect: folders, or names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--split", default="test", choices=list(SPLITS), help="to measure on")
    parser.add_argument("--choose-on", default="validation", help="the split to choose settings on")
    parser.add_argument("--scenes", type=int, help="of each number of objects, to measure on")
    parser.add_argument("--fine", action="store_true", help="measure on small details alone")
    parser.add_argument("--side", type=int, default=160, help="above 160 details are smaller")
    parser.add_argument("--limit", type=int, help="about so many questions of either split")
    parser.add_argument("--quick", action="store_true", help="a few scenes, to see that all runs")
    parser.add_argument("--grounders", type=_names, help="grid: such as prompt,oracle")
    parser.add_argument("--focuses", type=_names, help="grid: such as attention,crop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
