"""`cof sweep`: settings chosen on validation questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from cof.cli.common import (
    BatchSizeOption,
    DataArgument,
    ImagesOption,
    LimitOption,
    LongestAnswerOption,
    Model,
    PromptStyleOption,
    RulesOption,
    sentences,
    with_model,
)
from cof.cli.evaluate import finish, split_names
from cof.errors import CofError
from cof.options import indices
from cof.settings import Settings

T = TypeVar("T")


@sentences
@with_model()
def sweep(
    model: Model,
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="A name of `cof eval`, such as pope.")
    ],
    path: DataArgument,
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
            "--share", help="Of the images, for choosing; the others are for measuring. 1: all."
        ),
    ] = 0.25,
    strengths: Annotated[str, typer.Option("--strengths", help="lambdas.")] = "1.5,2,4,8,16,32",
    expands: Annotated[str, typer.Option("--expands", help="alphas.")] = "1,1.3,1.6",
    scopes: Annotated[str, typer.Option("--scopes", help="all, text or both.")] = "all,text",
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", help="all, or such as 0-15,20; may be repeated."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option("--kinds", help="Choose by questions of these kinds. \\[default: all]"),
    ] = None,
    then_test: Annotated[
        bool, typer.Option("--then-test", help="Measure the choice on the other questions, too.")
    ] = False,
    images: ImagesOption = None,
    rules: RulesOption = "official",
    prompt_style: PromptStyleOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 32,
    max_new_tokens: LongestAnswerOption = 32,
) -> None:
    """Choose lambda, alpha, scope and layers on a part of your questions, and freeze the choice.

    Every combination answers every question. DIR/chosen.json goes to `cof eval --settings`.
    """
    from cof.eval.data import BENCHMARKS
    from cof.eval.data.hub import local
    from cof.eval.evaluate import Evaluation, usual_methods
    from cof.eval.sweep import choose, make_candidates

    if benchmark not in BENCHMARKS:
        raise CofError(f"There is no benchmark {benchmark!r}; there are {', '.join(BENCHMARKS)}.")
    if then_test and share == 1:
        raise CofError("With --share 1 nothing is left to test on: name other data to `cof eval`.")
    folder = out or Path("results") / f"sweep-{benchmark}"
    validation = BENCHMARKS[benchmark](
        local(path),
        rules,  # type: ignore[arg-type]
        images=images,
        limit=limit,
        part="validation",
        share=share,
    )
    _ = validation.examples  # so that data with problems is refused before a model is loaded

    values: dict[str, Any] = {
        "strengths": _listed("--strengths", strengths, float),
        "expands": _listed("--expands", expands, float),
        "scopes": _listed("--scopes", scopes, str),
        "layers": _layers(layers or ["all"]),
    }
    make_candidates(Settings(), **values)  # refused before minutes are spent on loading a model
    cof, console = model.pipeline(), Console(stderr=True)
    style = prompt_style or ("tiny" if cof.engine.dialect.name == "tiny" else "llava")
    validation = replace(validation, prompt_style=style)  # type: ignore[arg-type]
    candidates = make_candidates(cof.settings, **values)
    how: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    choice = choose(
        cof.engine,
        {benchmark: validation},
        [lambda chosen: {"cof": candidates}],
        folder,
        console=console,
        kinds=split_names(kinds),
        **how,
    )
    tried = {each["key"]: each["accuracy"] for each in choice.tried["cof"]}
    accuracy = tried[choice.chosen["cof"].key]
    typer.echo(
        f"Chosen of {len(tried)}: {choice.chosen['cof'].key}; accuracy {accuracy:.3f}, plain "
        f"{choice.plain:.3f} on {choice.questions} validation questions"
    )
    if accuracy <= choice.plain:
        typer.echo("No setting answers more of these questions than the plain model.")
    typer.echo(f"Frozen in {folder / 'chosen.json'}; all settings: {folder / 'choice.json'}")
    if then_test:
        task = replace(validation, part="test")
        methods = usual_methods(choice.chosen["cof"].settings)
        evaluation = Evaluation(methods, **how)
        more = {"study": "Sweep", "choice": choice.as_dict()}
        finish(
            evaluation.run(cof.engine, {benchmark: task}, folder, console=console, **more), folder
        )


def _listed(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """`1,2.5` -> `(1.0, 2.5)`."""
    try:
        return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise CofError(f"{option} takes numbers such as 1,2.5, not {text!r}.") from error


def _layers(texts: Sequence[str]) -> tuple[tuple[int, ...] | None, ...]:
    return tuple(dict.fromkeys(None if t == "all" else indices("--layers", t) for t in texts))
