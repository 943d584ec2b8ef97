"""`cof sweep` and `cof calibrate`: settings chosen by answers, and heads chosen without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cof.cli.common import (
    DataArgument,
    Model,
    ModelArgument,
    Questions,
    group,
    pairs,
    sentences,
    with_model,
    with_questions,
)
from cof.cli.evaluate import finish
from cof.cli.verify import LOADING
from cof.errors import CofError
from cof.options import read_value

USUAL = ("expand=1,1.3,1.6", "strength=1.5,2,4,8,16,32", "scope=all,text")
"""What is tried unless told otherwise, of the options that the focus has."""


@sentences
@with_model()
@with_questions
def sweep(
    model: Model,
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="A name of `cof eval`, such as pope.")
    ],
    path: DataArgument,
    out: Annotated[
        Path | None,
        "Folder for results; an interrupted run goes on in it. "
        "\\[default: results/sweep-BENCHMARK]",
    ] = None,
    share: Annotated[
        float, "Of the images, for choosing; the others are for measuring. 1: all."
    ] = 0.25,
    tried: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="NAME=VALUES",
            help="Values of an option, such as strength=2,4,8; may be repeated. "
            f"\\[default: {' '.join(USUAL)}]",
        ),
    ] = None,
    then_test: Annotated[bool, "Then measure on the others, in DIR/test."] = False,
    break_at_most: Annotated[
        float | None,
        "Half of the part chooses; the other half chooses max_plain_confidence so that at "
        "most this share of right answers is broken (0..1), with 95 % confidence.",
    ] = None,
    *,
    asked: Questions,
) -> None:
    """Choose settings on a part of your questions, and freeze the choice.

    Every combination answers every question. DIR/chosen.json goes to `cof eval --settings`.
    """
    from cof.eval.evaluate import Evaluation
    from cof.eval.sweep import CHOSEN, choose, make_candidates, tabulate_choices

    folder = out or Path("results") / f"sweep-{benchmark}"
    validation = asked.read(benchmark, path, part="validation", share=share)
    others = replace(validation, part="test")
    for task in (validation, others)[: 1 + then_test]:
        _ = task.examples  # so that data with problems is refused before a model is loaded
    values = values_of(tried or USUAL)
    if break_at_most is not None and "max_plain_confidence" in values:
        raise CofError("--break-at-most chooses max_plain_confidence: leave it out of --try.")
    cof = model.pipeline()
    if not tried:
        values = {name: of for name, of in values.items() if cof.settings.option(name) is not None}
    if break_at_most is not None:
        values["max_plain_confidence"] = [1.0]
    if asked.prompt_style is None and cof.engine.dialect.name == "tiny":
        validation, others = (replace(each, prompt_style="tiny") for each in (validation, others))
    console = Console(stderr=True)
    how = {"batch_size": asked.batch_size, "max_new_tokens": asked.max_new_tokens}
    choice = choose(
        cof.engine,
        {benchmark: validation},
        make_candidates(cof.settings, **values),
        folder / CHOSEN,
        console=console,
        at_most=break_at_most,
        **how,
    )
    best, which = choice.tried[choice.best], choice.about["asked"][benchmark]
    typer.echo(
        f"Chosen of {len(choice.tried)}: {choice.key}; accuracy {best:.3f}, plain "
        f"{choice.plain:.3f} on the {choice.about['count']} questions that chose ({which})"
    )
    if "promise" in choice.about:
        typer.echo(f"{choice.about['promise']}.")
    if best <= choice.plain:
        typer.echo("No setting answers more of these questions than the plain model.")
    typer.echo(f"Frozen in {folder / CHOSEN}, with all settings that were tried")
    if then_test:
        more: Any = {"console": console, "tables": [tabulate_choices({"cof": choice})]}
        evaluation, test = Evaluation.compare_usual(choice.settings, others, **how), folder / "test"
        finish(evaluation.run(cof.engine, {benchmark: others}, test, **more), test)


@sentences
@group("model", LOADING, Model)
def calibrate(
    name: ModelArgument,
    path: Annotated[Path, typer.Argument(metavar="DATA", help="JSON lines: image, question.")],
    *,
    model: Model,
    out: Annotated[Path, "The file of the choice."] = Path("heads.json"),
    count: Annotated[int, "How many heads."] = 4,
) -> None:
    """Choose the attention heads that find things, by a hundred of your questions.

    Nobody has to know the answers (arXiv 2503.06287). `cof eval --settings` reads the file.
    """
    from cof.eval.evaluate import describe_engine
    from cof.eval.examples import image_digest
    from cof.eval.heads import choose_heads, read_maps, read_questions
    from cof.eval.sweep import Choice

    questions = read_questions(path)
    cof = replace(model, model=name).pipeline()
    heads = choose_heads(read_maps(cof.engine, questions), count)
    chosen = ",".join(map(str, heads))
    few = " (few: more may choose others)" if len(questions) < 30 else ""
    typer.echo(
        f"Chosen by {len(questions)} questions{few}: "
        f"--grounder attention --set grounder_heads={chosen}"
    )
    settings = cof.settings.changed(grounder="attention", grounder_heads=chosen)
    images = frozenset(image_digest(each.image) for each in questions)
    about = {**describe_engine(cof.engine), "count": len(questions)}
    Choice(settings, images, about=about).write(out)
    typer.echo(f"Frozen in {out}")


def values_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values to try, by option; layers and heads have commas of their own.

    >>> values_of(["strength=2,4", "layers=0-3,5", "layers=null"])
    {'strength': [2, 4], 'layers': ['0-3,5', None]}
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        (name,) = pairs("--try", [text], "strength=2,4")
        given = text.partition("=")[2]
        parts = [given] if name.endswith(("layers", "heads")) else given.split(",")
        values.setdefault(name, []).extend(read_value(part.strip()) for part in parts)
    return values
