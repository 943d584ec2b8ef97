"""`cof eval`: the embedded benchmark and the public ones."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cof.cli.common import (
    BatchSizeOption,
    BoxesOption,
    DataArgument,
    DeviceOption,
    DtypeOption,
    ExpandOption,
    ImagesOption,
    LimitOption,
    LongestAnswerOption,
    MaxBatchTokensOption,
    ModelOption,
    OutOption,
    PresetOption,
    PromptStyleOption,
    QuantizationOption,
    RulesOption,
    SeedOption,
    SideOption,
    StrengthOption,
    load,
    sentences,
)
from cof.errors import CofError


@sentences
def eval_tiny(
    model: ModelOption = None,
    out: OutOption = Path("results/tiny"),
    scenes: Annotated[
        int | None,
        typer.Option(
            "--scenes", min=1, help="Test scenes of each num_objects level. \\[default: 32]"
        ),
    ] = None,
    side: SideOption = 160,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first questions of each split.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few scenes and settings, to see that all runs.")
    ] = False,
    batch_size: BatchSizeOption = 48,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Plain, reweight-only, CoF, true boxes and random boxes on held-out scenes, compared."""
    from cof.eval.report.study import write_report
    from cof.eval.study import Plan
    from cof.eval.tiny import run_study

    plan = Plan.quick() if quick else Plan()
    if scenes is not None:
        plan = replace(plan, scenes=scenes, validation_scenes=max(2, scenes // 4))
    plan = replace(plan, side=side, limit=limit, batch_size=batch_size, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    engine = load(model, None, dtype, device, False).engine
    console = Console(stderr=True)
    results = run_study(engine, plan, out, console=console)
    write_report(results, out)
    _print_effect(results)
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


BENCHMARKS = {
    "mme": "MME's release folder or parquet files: yes/no in pairs, perception and cognition.",
    "mmbench": "An MMBench TSV file: multiple choice, right in every rotation of the options.",
    "pope": "POPE's three JSON files or parquet files: is there such an object?",
    "textvqa": "TextVQA's validation JSON or parquet files: reading text in pictures.",
    "vstar": "V*Bench's folder: small objects in large pictures, with their boxes.",
    "scenes": "What `cof scenes` drew: the embedded benchmark.",
    "hrbench": "An HR-Bench TSV file: small things in pictures of 4K or 8K.",
    "refcoco": "RefCOCO(+/g) JSON lines or a parquet file: stage 1's boxes alone.",
}


def add_benchmark(app: typer.Typer, name: str, about: str) -> None:
    """`cof eval NAME`; the commands differ in nothing but the reader."""

    @app.command(name, help=about)
    @sentences
    def evaluate(
        path: DataArgument,
        model: ModelOption = None,
        preset: PresetOption = None,
        expand: ExpandOption = None,
        strength: StrengthOption = None,
        settings: Annotated[
            Path | None,
            typer.Option("--settings", help="The chosen.json of `cof sweep`: its settings."),
        ] = None,
        part: Annotated[
            str,
            typer.Option(
                "--part", help="test: what `cof sweep` has not seen, with --settings. [all]"
            ),
        ] = "all",
        out: OutOption = Path("results") / name,
        images: ImagesOption = None,
        rules: RulesOption = "official",
        prompt_style: PromptStyleOption = None,
        check: Annotated[
            bool, typer.Option("--check", help="List everything wrong with the data, and stop.")
        ] = False,
        limit: LimitOption = None,
        shard: Annotated[
            str, typer.Option("--shard", help="i/n: a part; a run without it joins all parts.")
        ] = "1/1",
        batch_size: BatchSizeOption = 8,
        max_new_tokens: LongestAnswerOption = 32,
        seed: SeedOption = 0,
        dtype: DtypeOption = None,
        device: DeviceOption = None,
        boxes: BoxesOption = None,
        quantization: QuantizationOption = None,
        max_batch_tokens: MaxBatchTokensOption = None,
    ) -> None:
        from cof.eval.benchmarks import BENCHMARKS as READERS
        from cof.eval.chosen import Chosen
        from cof.eval.compare import Comparison
        from cof.eval.data.hub import local
        from cof.eval.report.summary import write_summary
        from cof.eval.store import write_atomically

        if settings is not None and any(of is not None for of in (preset, expand, strength, boxes)):
            raise CofError(
                "--settings are chosen already: leave --preset, --expand, --strength, --boxes out."
            )
        chosen = None if settings is None else Chosen.read(settings)
        data = local(path)
        options: dict[str, Any] = {"images": images, "limit": limit, "shard": shard_of(shard)}
        options |= {"part": part, "chosen": chosen}
        task = READERS[name](data, rules, prompt_style or "llava", **options)  # type: ignore[arg-type]
        if check:
            _print_check(task.check(), data)
            return
        task.num_examples()  # so that data with problems is refused before a model is loaded
        cof = load(
            model,
            preset,
            dtype,
            device,
            False,
            expand=expand,
            strength=strength,
            boxes=boxes,
            quantization=quantization,
            max_batch_tokens=max_batch_tokens,
        )
        if chosen is not None:
            chosen.warn_of_another(cof.engine.name)
        if prompt_style is None and cof.engine.dialect.name == "tiny":
            task = replace(task, prompt_style="tiny")
        comparison = Comparison.usual(
            chosen.settings if chosen else cof.settings,
            task,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        results = comparison.run(cof.engine, task, out, console=Console(stderr=True))
        if chosen is not None and settings is not None:  # beside what it led to
            write_atomically(out / settings.name, settings.read_text("utf-8"))
        write_summary(results, out)
        print_headline(results)
        typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


def _print_effect(results: dict[str, Any]) -> None:
    """The headline: fine details over all num_objects levels, or all kinds where there are none."""
    groups = results["test"]["groups"]
    title, table = next((name, groups[name]) for name in ("fine", "all") if name in groups)
    shown = Table("method", "accuracy", "against plain", "fixed", "broken", "p", title=title)
    for method, row in table.items():
        against = [""] * 4
        if "difference" in row:
            counts = [str(row["fixed"]), str(row["broken"]), f"{row['p']:.2g}"]
            against = [f"{row['difference']:+.3f}", *counts]
        shown.add_row(method, f"{row['accuracy']:.3f}", *against)
    Console().print(shown)


def shard_of(text: str) -> tuple[int, int]:
    """`2/4` -> `(2, 4)`."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None:
        raise CofError(f"--shard takes i/n, such as 2/4, not {text!r}.")
    return int(found[1]), int(found[2])


def _print_check(problems: list[str], path: Path) -> None:
    if not problems:
        typer.echo(f"{path}: no problems.")
        return
    for problem in problems:
        typer.echo(problem)
    raise CofError(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}, listed above.")


def print_headline(results: dict[str, Any]) -> None:
    """The figures that papers quote, by method; of stage 1 where that is all there is."""
    by_method = results["metrics"][results["rules"]]
    if not by_method:
        for row in results["grounding"].values():
            typer.echo(f"IoU >= 0.5: {row['iou_50']:.3f}   mean IoU: {row['mean_iou']:.3f}")
        return
    known = next(iter(by_method.values()))
    names = [name for name in results["headline"] if name in known] or list(known)
    shown = Table("method", *names, title=f"{results['about']['benchmark']}, {results['rules']}")
    for method, metrics in by_method.items():
        shown.add_row(method, *(f"{metrics[name]:.1f}" for name in names))
    Console().print(shown)
