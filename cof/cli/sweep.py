"""`cof sweep`: settings chosen on validation questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from cof.cli.common import (
    BatchSizeOption,
    ImagesOption,
    LimitOption,
    LongestAnswerOption,
    ModelOptions,
    PromptStyleOption,
    RulesOption,
    indices,
    sentences,
    with_model,
    with_settings,
)
from cof.cli.evaluate import finish, split_names
from cof.errors import CofError
from cof.settings import Settings

if TYPE_CHECKING:
    from cof.eval.data.base import Benchmark

EMBEDDED = "tiny"

T = TypeVar("T")
Indices = tuple[int, ...] | None


_SWEPT = ("strength", "expand", "scope", "layers", "heads")
_SETTINGS = [each.name for each in fields(Settings) if each.name not in _SWEPT]


@sentences
@with_model()
@with_settings(_SETTINGS)
def sweep(
    model: ModelOptions,
    settings: dict[str, Any],
    benchmark: Annotated[
        str,
        typer.Argument(metavar="[BENCHMARK]", help="tiny, or a name of `cof eval` with its PATH."),
    ] = EMBEDDED,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="The data as downloaded, or hf://owner/name/folder."),
    ] = None,
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
            help="Of the images, for choosing; the others stay for --part test. 1: all of PATH.",
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
        int, typer.Option("--scenes", min=1, help="tiny: scenes of each number of objects.")
    ] = 16,
    side: Annotated[
        int, typer.Option("--side", help="tiny: of the scenes; above 160 details are smaller.")
    ] = 200,
    batch_size: BatchSizeOption = 32,
    max_new_tokens: LongestAnswerOption = 32,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the questions.")] = 0,
) -> None:
    """Choose lambda, alpha, scope and layers on validation questions, and freeze the choice.

    Without BENCHMARK and PATH: on the embedded benchmark's validation scenes, with the embedded
    model, in some minutes. DIR/chosen.json goes to `cof eval --settings`.
    """
    from cof.eval.embedded import make_candidates, make_sweep
    from cof.tiny.benchmark import FINE

    folder = out or Path("results") / f"sweep-{benchmark}"
    if benchmark == EMBEDDED:
        if path is not None:
            raise CofError(f"`cof sweep {EMBEDDED}` draws its own data: leave PATH out.")
        validation, test = _draw(folder, scenes, side, limit, then_test)
    else:
        options = {"images": images, "rules": rules, "limit": limit, "share": share}
        validation, test = _parts(benchmark, path, then_test, options)
    _ = validation.examples  # so that data with problems is refused before a model is loaded

    def plan(base: Settings, layer_count: int | None) -> Any:
        named = ["all", "lower", "upper"] if layer_count else ["all"]
        candidates = make_candidates(
            base,
            _listed("--strengths", strengths, float),
            _listed("--expands", expands, float),
            _listed("--scopes", scopes, str),  # type: ignore[arg-type]
            _indices("--layers", layers or named, layer_count),
            _indices("--heads", heads or ["all"], None),
        )
        return make_sweep(
            candidates,
            rungs=rungs,
            keep=keep,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
            kinds=split_names(kinds) or (FINE if benchmark == EMBEDDED else ()),
        )

    plan(Settings(), 2)  # refused before minutes are spent on loading a model
    cof = model.load(settings)
    style = prompt_style or ("tiny" if cof.engine.dialect.name == "tiny" else "llava")
    validation = replace(validation, prompt_style=style)  # type: ignore[arg-type]
    adapter = getattr(cof.engine, "adapter", None)
    layer_count = adapter.shape[0] if adapter else None
    study, console = plan(cof.settings, layer_count), Console(stderr=True)
    choice = study.choose(cof.engine, {benchmark: validation}, folder, console=console)
    tried = {each["key"]: each["accuracy"] for each in choice.tried["cof"]}
    accuracy = tried[choice.chosen["cof"].key]
    typer.echo(
        f"Chosen of {len(tried)}: {choice.chosen['cof'].key}; accuracy {accuracy:.3f}, plain "
        f"{choice.plain:.3f} on {choice.questions} validation questions"
    )
    if accuracy <= choice.plain:
        typer.echo("No setting answers more of these questions than the plain model.")
    typer.echo(f"Frozen in {folder / 'chosen.json'}; all settings: {folder / 'choice.json'}")
    if test is not None:
        task = replace(test, prompt_style=style)  # type: ignore[arg-type]
        finish(
            study.measure(cof.engine, {benchmark: task}, choice, folder, console=console), folder
        )


def _draw(
    folder: Path, scenes: int, side: int, limit: int | None, then_test: bool
) -> tuple[Benchmark, Benchmark | None]:
    """The validation scenes, and twice as many test scenes."""
    from cof.eval.data.scenes import Scenes
    from cof.tiny.benchmark import write_benchmark

    def draw(split: str, scenes: int) -> Benchmark:
        data = folder / "data" / split
        write_benchmark(data, split, scenes=scenes, side=side)
        return Scenes(data, limit=limit)

    return draw("validation", scenes), draw("test", 2 * scenes) if then_test else None


def _parts(
    name: str, path: str | None, then_test: bool, options: dict[str, Any]
) -> tuple[Benchmark, Benchmark | None]:
    """The validation part of a benchmark's data, and its test part."""
    from cof.eval.data import BENCHMARKS
    from cof.eval.data.hub import local

    if name not in BENCHMARKS:
        raise CofError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    if path is None:
        raise CofError(f"Name the data of {name}: cof sweep {name} PATH.")
    if then_test and options["share"] == 1:
        raise CofError("With --share 1 nothing is left to test on: name other data to `cof eval`.")
    reader, data = BENCHMARKS[name], local(path)
    test = reader(data, part="test", **options) if then_test else None
    return reader(data, part="validation", **options), test


def _listed(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """`1,2.5` -> `(1.0, 2.5)`."""
    try:
        return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise CofError(f"{option} takes numbers such as 1,2.5, not {text!r}.") from error


def _indices(option: str, texts: Sequence[str], count: int | None) -> tuple[Indices, ...]:
    named: dict[str, Indices] = {"all": None}
    if count is not None:
        middle = count // 2
        named |= {"lower": tuple(range(middle)), "upper": tuple(range(middle, count))}
    chosen = [named[text] if text in named else indices(option, text) for text in texts]
    return tuple(dict.fromkeys(chosen))
