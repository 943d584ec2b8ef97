"""`cof eval`: the embedded benchmark's studies, and the public benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cof.cli.common import (
    BatchSizeOption,
    DataArgument,
    ImagesOption,
    LimitOption,
    LongestAnswerOption,
    ModelOptions,
    OutOption,
    PromptStyleOption,
    RulesOption,
    SeedOption,
    SideOption,
    sentences,
    with_model,
    with_settings,
)
from cof.errors import CofError
from cof.settings import Settings, default_settings
from cof.settings import preset as named_preset

if TYPE_CHECKING:
    from cof.client import RemoteCoF
    from cof.engines.base import Engine

ScenesOption = Annotated[
    int | None,
    typer.Option("--scenes", min=1, help="Test scenes of each number of objects. \\[default: 32]"),
]
KindsOption = Annotated[
    str | None,
    typer.Option("--kinds", help="Ask questions of these kinds only, such as digit,letter,color."),
]
_GRID_SETTINGS = [each.name for each in fields(Settings) if each.name not in ("grounder", "focus")]

QuickOption = Annotated[
    bool, typer.Option("--quick", help="A few scenes and settings, to see that all runs.")
]


@sentences
@with_model()
@with_settings()
def eval_tiny(
    model: ModelOptions,
    settings: dict[str, Any],
    out: OutOption = Path("results/tiny"),
    scenes: ScenesOption = None,
    side: SideOption = 160,
    kinds: KindsOption = None,
    limit: LimitOption = None,
    quick: QuickOption = False,
    batch_size: BatchSizeOption = 48,
    seed: SeedOption = 0,
) -> None:
    """Plain, CoF, two looks, and controls on held-out scenes; settings chosen beforehand."""
    from cof.eval.embedded import run_effect

    plan = _plan(settings, scenes, side, kinds, limit, quick, batch_size, seed)
    cof = model.load(settings)
    results = run_effect(cof.engine, cof.settings, plan, out, console=Console(stderr=True))
    finish(results, out)


@sentences
@with_model("tiny-early")
@with_settings(_GRID_SETTINGS)
def eval_grid(
    model: ModelOptions,
    settings: dict[str, Any],
    out: OutOption = Path("results/grid"),
    grounders: Annotated[
        str | None,
        typer.Option("--grounders", help="Such as prompt,attention,oracle. \\[default: all]"),
    ] = None,
    focuses: Annotated[
        str | None, typer.Option("--focuses", help="Such as attention,crop. \\[default: all]")
    ] = None,
    scenes: ScenesOption = 16,
    side: SideOption = 160,
    kinds: KindsOption = "digit,letter,color",
    limit: LimitOption = None,
    quick: QuickOption = False,
    batch_size: BatchSizeOption = 48,
    seed: SeedOption = 0,
) -> None:
    """Every grounder with every focus on small details: accuracy and cost of each."""
    from cof.eval.embedded import FOCUSES_COMPARED, SOURCES, run_grid

    plan = _plan(settings, scenes, side, kinds, limit, quick, batch_size, seed)
    if "strength" not in settings:
        plan = replace(plan, strengths=plan.strengths[-5:])
    if "expand" not in settings:
        plan = replace(plan, expands=(1.0, 1.5, 2.5))
    cof = model.load(settings)
    base = cof.settings
    if "boxes" not in settings and cof.engine.dialect.box_template is not None:
        base = base.changed(boxes="template")  # so that `soft` knows how sure the sides are
    results = run_grid(
        cof.engine,
        base,
        plan,
        out,
        sources=split_names(grounders) or SOURCES,
        focuses=split_names(focuses) or FOCUSES_COMPARED,
        console=Console(stderr=True),
    )
    finish(results, out)


@sentences
@with_model()
@with_settings()
def eval_synthetic(
    model: ModelOptions,
    settings: dict[str, Any],
    out: OutOption = Path("results/synthetic"),
    scenes: ScenesOption = 16,
    side: SideOption = 160,
    limit: LimitOption = None,
    quick: QuickOption = False,
    batch_size: BatchSizeOption = 32,
    seed: SeedOption = 0,
) -> None:
    """The paper's tables on scenes in the formats of MME, POPE and MMBench."""
    from cof.eval.embedded import run_synthetic

    plan = _plan(settings, scenes, side, None, limit, quick, batch_size, seed)
    cof = model.load(settings)
    results = run_synthetic(cof.engine, cof.settings, plan, out, console=Console(stderr=True))
    finish(results, out)


BENCHMARKS = {
    "mme": "MME's release folder or parquet files: yes/no in pairs, perception and cognition.",
    "mmbench": "An MMBench TSV file: multiple choice, right in every rotation of the options.",
    "pope": "POPE's three JSON files or parquet files: is there such an object?",
    "textvqa": "TextVQA's validation JSON or parquet files: reading text in images.",
    "vstar": "V*Bench's folder: small objects in large images, with their boxes.",
    "scenes": "What `cof scenes` drew: the embedded benchmark.",
    "hrbench": "An HR-Bench TSV file: small things in images of 4K or 8K.",
    "refcoco": "RefCOCO(+/g) JSON lines or a parquet file: stage 1's boxes alone.",
}


def add_benchmark(app: typer.Typer, name: str, about: str) -> None:
    """`cof eval NAME`; the commands differ in nothing but the reader."""

    @app.command(name, help=about)
    @sentences
    @with_model()
    @with_settings()
    def evaluate(
        context: typer.Context,
        path: DataArgument,
        model: ModelOptions,
        settings: dict[str, Any],
        chosen: Annotated[
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
        server: Annotated[
            str | None,
            typer.Option("--server", help="Ask `cof serve` at this URL, or at several: URL,URL."),
        ] = None,
        api_key: Annotated[
            str | None, typer.Option("--api-key", envvar="COF_API_KEY", help="The servers' key.")
        ] = None,
        batch_size: Annotated[
            int,
            typer.Option(
                "--batch-size",
                min=1,
                help="Questions in one forward pass; under way at each --server.",
            ),
        ] = 8,
        max_new_tokens: LongestAnswerOption = 32,
        seed: SeedOption = 0,
    ) -> None:
        from cof.eval.chosen import Chosen
        from cof.eval.data import BENCHMARKS as READERS
        from cof.eval.data.hub import local
        from cof.eval.evaluate import Evaluation
        from cof.eval.json_files import write_atomically

        if chosen is not None and (settings or model.preset):
            raise CofError("--settings are chosen already: leave --preset and other settings out.")
        choice = None if chosen is None else Chosen.read(chosen)
        if part == "test" and choice is None:
            raise CofError(
                "The test part is not read before the settings are chosen: run `cof sweep "
                f"{name}` on this data, then name its choice with --settings."
            )
        data = local(path)
        options: dict[str, Any] = {"images": images, "limit": limit, "shard": shard_of(shard)}
        options |= {"part": part, "share": choice.share if choice else 0.25}
        style = prompt_style or (choice and choice.about.get("prompt_style")) or "llava"
        task = READERS[name](data, rules, style, **options)  # type: ignore[arg-type]
        if check:
            _print_check(task.check(), data)
            return
        _ = task.examples  # so that data with problems is refused before a model is loaded
        if server is None:
            asked = _Asked.load(model, settings)
        else:
            _refuse_model_options(context)
            asked = _Asked.connect(context, server, api_key, model.preset, settings)
        if choice is not None:
            choice.check(task.examples, asked.name)
        if prompt_style is None and choice is None and asked.is_embedded:
            task = replace(task, prompt_style="tiny")
        evaluation = Evaluation.compare_usual(
            choice.settings if choice else asked.settings,
            task,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        results = evaluation.run(asked.engine, {name: task}, out, console=Console(stderr=True))
        if chosen is not None:  # beside what it led to
            write_atomically(out / chosen.name, chosen.read_text("utf-8"))
        finish(results, out)


@dataclass(frozen=True)
class _Asked:
    """The model that is asked: loaded here, or at servers.

    Attributes:
        engine: the model.
        name: hub id, path, or the name that servers give it.
        is_embedded: whether it is one of those that this package holds.
        settings: those of its preset or its own defaults, and those that were given.
    """

    engine: Engine | RemoteCoF
    name: str
    is_embedded: bool
    settings: Settings

    @classmethod
    def load(cls, model: ModelOptions, settings: dict[str, Any]) -> _Asked:
        cof = model.load(settings)
        tiny = cof.engine.dialect.name == "tiny"
        return cls(cof.engine, cof.engine.name, tiny, cof.settings)

    @classmethod
    def connect(
        cls,
        context: typer.Context,
        urls: str,
        api_key: str | None,
        preset: str | None,
        settings: dict[str, Any],
    ) -> _Asked:
        from cof.client import RemoteCoF
        from cof.tiny import EMBEDDED

        remote = RemoteCoF(urls, api_key=api_key, **settings)
        context.call_on_close(remote.close)
        name, tiny = remote.model, remote.model in EMBEDDED
        usual = default_settings(name, "tiny" if tiny else "")
        own = named_preset(preset, name) if preset else usual
        return cls(remote, name, tiny, own.changed(**settings))


def _refuse_model_options(context: typer.Context) -> None:
    """Refuse the options that load a model: servers have loaded theirs."""
    for field in fields(ModelOptions):
        source = context.get_parameter_source(field.name)
        if field.name != "preset" and source is not None and source.name == "COMMANDLINE":
            flag = "--" + field.name.replace("_", "-")
            raise CofError(f"{flag} is for models loaded here: leave it out, or --server.")


def print_headline(results: dict[str, Any]) -> None:
    """The figures that papers quote, by method; of a task without answers those of stage 1."""
    from cof.eval.report.blocks import grid_table

    if "grid" in results:
        table = grid_table(results)
        _print(table.head, table.rows, "Accuracy, and how much above the plain model")
        return
    for name, task in results["tasks"].items():
        title = f"{task['benchmark']}, {task['rules']}"
        metrics = [metric for metric in task["headline"] if metric in task["figures"]]
        if not metrics:
            _print_boxes(task["grounding"])
            continue
        lines = []
        for method in results["methods"]:
            cells = [method]
            for metric in metrics:
                numbers = task["figures"][metric][method]
                gain = f" ({numbers['difference']:+.1f})" if "difference" in numbers else ""
                cells.append(f"{numbers['value']:.1f}{gain}")
            lines.append(cells)
        _print(["method", *metrics], lines, title if len(results["tasks"]) == 1 else name)


def _print_boxes(groundings: dict[str, Any]) -> None:
    for step, groups in groundings.items():
        boxes = groups.get("all", {})
        if "iou_50" in boxes:
            typer.echo(
                f"{step.removeprefix('grounding ')}: IoU >= 0.5: {boxes['iou_50']['value']:.3f}   "
                f"mean IoU: {boxes['mean_iou']['value']:.3f}"
            )


def shard_of(text: str) -> tuple[int, int]:
    """`2/4` -> `(2, 4)`."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise CofError(f"--shard takes i/n, such as 2/4, not {text!r}.")
    return int(match[1]), int(match[2])


def _plan(
    settings: dict[str, Any],
    scenes: int | None,
    side: int,
    kinds: str | None,
    limit: int | None,
    quick: bool,
    batch_size: int,
    seed: int,
) -> Any:
    from cof.eval.embedded import Plan

    plan = Plan(side=side, limit=limit, batch_size=batch_size, seed=seed, kinds=split_names(kinds))
    if quick:
        plan = replace(
            plan,
            scenes=2,
            validation_scenes=1,
            num_objects=(4, 12),
            strengths=(4.0, 16.0),
            expands=(1.0,),
            scopes=("all",),
        )
    elif scenes is not None:
        plan = replace(plan, scenes=scenes, validation_scenes=min(8, max(1, scenes // 3)))
    # a value that is given is the only one to try
    return replace(
        plan,
        strengths=(settings["strength"],) if "strength" in settings else plan.strengths,
        expands=(settings["expand"],) if "expand" in settings else plan.expands,
        scopes=(settings["scope"],) if "scope" in settings else plan.scopes,
    )


def finish(results: dict[str, Any], out: Path) -> None:
    """Write the tables, and print the headline."""
    from cof.eval.report.publish import write_table

    write_table(results, out)
    print_headline(results)
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


def split_names(text: str | None) -> tuple[str, ...]:
    """`prompt, whole` -> `("prompt", "whole")`."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _print(head: Sequence[str], lines: Sequence[Sequence[object]], title: str) -> None:
    table = Table(*head, title=title)
    for line in lines:
        table.add_row(*map(str, line))
    Console().print(table)


def _print_check(problems: list[str], path: Path) -> None:
    if not problems:
        typer.echo(f"{path}: no problems.")
        return
    for problem in problems:
        typer.echo(problem)
    raise CofError(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}, listed above.")
