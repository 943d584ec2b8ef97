"""`cof sweep`: settings chosen on validation questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from cof.cli.common import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ImagesOption,
    LimitOption,
    LongestAnswerOption,
    ModelOption,
    PresetOption,
    PromptStyleOption,
    RulesOption,
    indices,
    load,
    sentences,
)
from cof.cli.evaluate import print_headline
from cof.errors import CofError

if TYPE_CHECKING:
    from cof.engines.base import Engine
    from cof.eval.chosen import Chosen
    from cof.eval.data.base import Benchmark
    from cof.eval.sweep import Indices, Sweep
    from cof.settings import Settings

EMBEDDED = "tiny"

T = TypeVar("T")


@sentences
def sweep(
    benchmark: Annotated[
        str,
        typer.Argument(metavar="[BENCHMARK]", help="tiny, or a name of `cof eval` with its PATH."),
    ] = EMBEDDED,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="The data as downloaded, or hf://owner/name/folder."),
    ] = None,
    model: ModelOption = None,
    preset: PresetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for results; an interrupted run goes on in it. "
            "\\[default: results/sweep-BENCHMARK]",
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option(
            "--share",
            help="Of the pictures, for choosing; the others stay for --part test. 1: all of PATH.",
        ),
    ] = 0.25,
    strengths: Annotated[str, typer.Option("--strengths", help="lambdas.")] = "1.5,2,4,8,16,32",
    expands: Annotated[str, typer.Option("--expands", help="alphas.")] = "1,1.3,1.6",
    scopes: Annotated[str, typer.Option("--scopes", help="all, text or both.")] = "all,text",
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            help="all, lower, upper, or such as 0-15,20; may be repeated. "
            "\\[default: all, lower and upper]",
        ),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option("--heads", help="all, or such as 0-7; may be repeated. \\[default: all]"),
    ] = None,
    rungs: Annotated[
        int, typer.Option("--rungs", min=1, help="1: every setting answers every question.")
    ] = 3,
    keep: Annotated[
        float,
        typer.Option(
            "--keep", help="Share of the settings that goes on from a rung.", show_default="1/3"
        ),
    ] = 1 / 3,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            help="Choose by questions of these kinds, such as digit,letter. "
            "\\[default: all; tiny: small details]",
        ),
    ] = None,
    then_test: Annotated[
        bool, typer.Option("--then-test", help="Measure the choice on the test part afterwards.")
    ] = False,
    images: ImagesOption = None,
    rules: RulesOption = "official",
    prompt_style: PromptStyleOption = None,
    limit: LimitOption = None,
    scenes: Annotated[
        int, typer.Option("--scenes", min=1, help="tiny: scenes of each num_objects level.")
    ] = 16,
    side: Annotated[
        int, typer.Option("--side", help="tiny: of the scenes; above 160 details are smaller.")
    ] = 200,
    batch_size: BatchSizeOption = 32,
    max_new_tokens: LongestAnswerOption = 32,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the questions.")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Choose lambda, alpha, scope and layers on validation questions, and freeze the choice.

    Without BENCHMARK and PATH: on the embedded benchmark's validation scenes, with the embedded
    model, in some minutes. DIR/chosen.json goes to `cof eval --settings`.
    """
    from cof.eval.report.sweep import write_report
    from cof.eval.sweep import Grid, Sweep
    from cof.settings import Settings

    folder = out or Path("results") / f"sweep-{benchmark}"
    options: dict[str, Any] = {"images": images, "rules": rules, "limit": limit}
    if benchmark == EMBEDDED:
        if path is not None:
            raise CofError(f"`cof sweep {EMBEDDED}` draws its own data: leave PATH out.")
        task, test = _scenes(folder, scenes, side, limit)
    else:
        task, test = _parts(benchmark, path, share, then_test, options)
    task.num_examples()  # so that data with problems is refused before a model is loaded

    def planned(settings: Settings, layer_count: int) -> Sweep:
        return Sweep(
            settings,
            Grid(
                _listed("--strengths", strengths, float),
                _listed("--expands", expands, float),
                _listed("--scopes", scopes, str),  # type: ignore[arg-type]
                _chosen_indices("--layers", layers or ["all", "lower", "upper"], layer_count),
                _chosen_indices("--heads", heads or ["all"], None),
            ),
            rungs,
            keep,
            batch_size,
            max_new_tokens,
            seed,
            _kinds(benchmark, kinds),
        )

    # refused before minutes are spent on loading a model
    planned(Settings(), 2).grid.methods(Settings())
    cof = load(model, preset, dtype, device, False)
    usual = "tiny" if cof.engine.dialect.name == "tiny" else "llava"
    task = replace(task, prompt_style=prompt_style or usual)  # type: ignore[arg-type]
    plan = planned(cof.settings, _layer_count(cof.engine))
    console = Console(stderr=True)
    chosen = plan.run(cof.engine, task, folder, console=console)
    write_report(folder)
    settings = chosen.settings
    typer.echo(
        f"Chosen: lambda {settings.strength:g}, alpha {settings.expand:g}, scope {settings.scope}, "
        f"layers {'all' if settings.layers is None else settings.layers}; accuracy "
        f"{chosen.about['accuracy']:.3f}, plain {chosen.about['plain_accuracy']:.3f}"
    )
    if chosen.about["accuracy"] <= chosen.about["plain_accuracy"]:
        typer.echo("No setting answers more of these questions than the plain model.")
    typer.echo(f"Frozen in {folder / 'chosen.json'}; all settings: {folder / 'sweep.md'}")
    if then_test:
        rest = replace(test(chosen), prompt_style=task.prompt_style)
        _measure(cof.engine, chosen, rest, plan, folder / "test", console)


def _scenes(
    folder: Path, scenes: int, side: int, limit: int | None
) -> tuple[Benchmark, Callable[[Chosen], Benchmark]]:
    """The validation scenes, and how to come by the test scenes, twice as many."""
    from cof.eval.data.scenes import Scenes
    from cof.tiny.benchmark import write_benchmark

    def drawn(split: str, scenes: int) -> Path:
        data = folder / "work" / split
        write_benchmark(data, split, scenes=scenes, side=side)
        return data

    return Scenes(drawn("validation", scenes), limit=limit), lambda chosen: Scenes(
        drawn("test", 2 * scenes), limit=limit, chosen=chosen
    )


def _parts(
    name: str, path: str | None, share: float, then_test: bool, options: dict[str, Any]
) -> tuple[Benchmark, Callable[[Chosen], Benchmark]]:
    """The validation part of a benchmark's data, and how to come by its test part."""
    from cof.eval.benchmarks import BENCHMARKS
    from cof.eval.data.hub import local

    if name not in BENCHMARKS:
        raise CofError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    if path is None:
        raise CofError(f"Name the data of {name}: cof sweep {name} PATH.")
    if then_test and share == 1:
        raise CofError("With --share 1 nothing is left to test on: name other data to `cof eval`.")
    reader, data = BENCHMARKS[name], local(path)
    part = reader(data, part="validation", share=share, **options)
    return part, lambda chosen: reader(data, part="test", chosen=chosen, **options)


def _measure(
    engine: Engine, chosen: Chosen, test: Benchmark, plan: Sweep, out: Path, console: Console
) -> None:
    from cof.eval.compare import Comparison
    from cof.eval.report.summary import write_summary

    comparison = Comparison.usual(
        chosen.settings,
        test,
        batch_size=plan.batch_size,
        max_new_tokens=plan.max_new_tokens,
        seed=plan.seed,
    )
    results = comparison.run(engine, test, out, console=console)
    write_summary(results, out)
    print_headline(results)
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


def _kinds(benchmark: str, text: str | None) -> tuple[str, ...]:
    from cof.tiny.benchmark import FINE

    if text is None:
        return FINE if benchmark == EMBEDDED else ()
    return tuple(part.strip() for part in text.split(","))


def _layer_count(engine: Any) -> int:
    layers, _ = engine.adapter.shape
    return int(layers)


def _listed(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """`1,2.5` -> `(1.0, 2.5)`."""
    try:
        return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise CofError(f"{option} takes numbers such as 1,2.5, not {text!r}.") from error


def _chosen_indices(option: str, texts: Sequence[str], count: int | None) -> tuple[Indices, ...]:
    from cof.eval.sweep import halves

    named: dict[str, Indices] = {"all": None}
    if count is not None:
        named |= dict(zip(("all", "lower", "upper"), halves(count), strict=True))
    found = [named[text] if text in named else indices(option, text) for text in texts]
    return tuple(dict.fromkeys(found))
