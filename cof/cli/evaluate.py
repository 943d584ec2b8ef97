"""`cof eval` and `cof reproduce`: benchmarks, measured."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from cof.cli.common import (
    BatchSizeOption,
    DataArgument,
    LimitOption,
    LongestAnswerOption,
    Model,
    OutOption,
    Questions,
    sentences,
    with_model,
    with_questions,
)
from cof.client import RemoteCoF
from cof.errors import CofError
from cof.presets import default_settings
from cof.settings import Settings
from cof.tiny import EMBEDDED

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
    @with_questions
    def evaluate(
        context: typer.Context,
        path: DataArgument,
        model: Model,
        chosen: Annotated[
            Path | None,
            typer.Option(
                "--settings",
                help="Of `cof sweep` or `cof calibrate`: measured on what it has not seen.",
            ),
        ] = None,
        out: OutOption = Path("results") / name,
        check: Annotated[bool, "List everything wrong with the data, and stop."] = False,
        shard: Annotated[str, "i/n: a part; a run without it joins all parts."] = "1/1",
        server: Annotated[
            str | None, "Ask `cof serve` at URL,URL,...; COF_API_KEY holds the key."
        ] = None,
        *,
        asked: Questions,
    ) -> None:
        from cof.eval.evaluate import Evaluation
        from cof.eval.json_files import write_atomically
        from cof.eval.sweep import Choice, tabulate_choices

        if chosen is not None and (model.settings or model.preset):
            raise CofError("--settings are chosen already: leave --preset and other options out.")
        choice = None if chosen is None else Choice.read(chosen)
        style = choice.about.get("prompt_style") if choice else None
        if not (parts := re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)):
            raise CofError(f"--shard takes i/n, such as 2/4, not {shard!r}.")
        task = asked.read(name, path, style, shard=tuple(map(int, parts.groups())))
        if check:
            problems = task.check()
            typer.echo("\n".join(problems or [f"{task.path}: no problems."]))
            if problems:
                raise CofError(f"{task.path} has the problems listed above ({len(problems)}).")
            return
        if choice is not None and choice.share < 1 and choice.seen(task.examples):
            task = replace(task, part="test", share=choice.share)
            typer.echo(f"Measured on the {len(task.examples)} questions not chosen on.", err=True)
        _ = task.examples  # so that data with problems is refused before a model is loaded
        engine, settings, name_there, tiny = _asked(context, model, server)
        if choice is not None:
            choice.check(task.examples, name_there)
            settings = choice.settings
        if asked.prompt_style is None and style is None and tiny:
            task = replace(task, prompt_style="tiny")
        evaluation = Evaluation.compare_usual(
            settings, task, batch_size=asked.batch_size, max_new_tokens=asked.max_new_tokens
        )
        more = {"tables": [tabulate_choices({"cof": choice})]} if choice and choice.tried else {}
        results = evaluation.run(engine, {name: task}, out, console=Console(stderr=True), **more)
        if chosen is not None:  # beside what it led to
            write_atomically(out / chosen.name, chosen.read_text("utf-8"))
        finish(results, out)


def _asked(
    context: typer.Context, model: Model, server: str | None
) -> tuple[Any, Settings, str, bool]:
    """The engine or the servers that are asked, how, the model's name, and whether it is an
    embedded one."""
    if server is None:
        cof = model.pipeline()
        return cof.engine, cof.settings, cof.engine.name, cof.engine.dialect.name == "tiny"
    for name in ("model", "dtype", "device", "load"):  # servers have loaded theirs
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise CofError(f"--{name} is for models loaded here: leave it out, or --server.")
    remote = RemoteCoF(server, api_key=os.environ.get("COF_API_KEY"), **model.settings)
    context.call_on_close(remote.close)
    name, tiny = remote.model, remote.model in EMBEDDED
    settings = default_settings(name, "tiny" if tiny else "", model.preset)
    return remote, settings.changed(**model.settings), name, tiny


def finish(results: dict[str, Any], out: Path) -> None:
    """Write the tables, and print the figures that papers quote, or those of stage 1."""
    from cof.eval.report.blocks import grounding_blocks, headline_table
    from cof.eval.report.document import markdown
    from cof.eval.report.publish import write_table

    write_table(results, out)
    for name, numbers in results["tasks"].items():
        quoted = headline_table(name, numbers)
        shown = quoted if quoted.rows else grounding_blocks(name, numbers)[0]
        title = f"{numbers['benchmark']}, {numbers['rules']}"
        Console().print(Markdown(f"**{title}**\n\n{markdown([shown])}"))
    typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")


@sentences
@with_model()
def reproduce_paper(
    data: Annotated[Path, "Folder with mme/, mmbench/ and pope/ as downloaded."],
    model: Model,
    out: OutOption = Path("results/paper"),
    dry_run: Annotated[bool, "Say what is there, what is missing, how long."] = False,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 8,
    max_new_tokens: LongestAnswerOption = 32,
) -> None:
    """Tables I and II: plain, reweighting alone, CoF, and CoF as its released code has it."""
    from cof.eval.paper import LAYOUT, estimate_seconds, find_parts, run_paper
    from cof.eval.report.publish import write_table

    parts = find_parts(data)
    for name, (_, _, place) in LAYOUT.items():
        if name not in parts:
            typer.echo(f"{name} is not there and left out: put it at {place}", err=True)
    for name, task in parts.items():  # with problems it is refused before a model is loaded
        typer.echo(f"{name}: {len(task.examples)} questions in {task.path}", err=True)
    cof = model.pipeline()
    style: Any = "tiny" if cof.engine.dialect.name == "tiny" else "llava"
    parts = {n: replace(task, prompt_style=style, limit=limit) for n, task in parts.items()}
    how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    if not dry_run:
        console = Console(stderr=True)
        results = run_paper(cof.engine, cof.settings, parts, out, console=console, **how)
        typer.echo(write_table(results, out))
        typer.echo(f"All numbers: {out / 'table.md'}, {out / 'results.json'}")
        return
    loaded = getattr(cof.engine, "model", None)
    if loaded is not None:
        size = sum(p.numel() * p.element_size() for p in loaded.parameters())
        typer.echo(f"Weights: {size / 2**30:.2f} GiB in {loaded.dtype} on {loaded.device}.")
    total = 0.0
    for name, task in parts.items():
        total += (spent := estimate_seconds(cof.engine, cof.settings, task, **how))
        typer.echo(f"{name}: about {spent / 60:.1f} minutes")
    typer.echo(f"In all about {total / 60:.1f} minutes, from one batch of each part.")
