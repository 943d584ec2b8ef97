"""The command line, one file for each group of commands.

Whatever needs a model is imported inside the commands, so that `cof --help` is quick.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from cof import __version__
from cof.cli.ask import BoxCommand, ask, ground
from cof.cli.evaluate import BENCHMARKS, add_benchmark, reproduce_paper
from cof.cli.look import demo, scenes
from cof.cli.models import models, settings
from cof.cli.report import report, rescore, submit_mmbench
from cof.cli.serve import serve, web
from cof.cli.sweep import calibrate, sweep
from cof.cli.verify import verify

app = typer.Typer(
    name="cof",
    help="Make a vision-language model look closer, without training it (arXiv 2412.16869).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cof {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The options of `cof` itself."""


app.command(cls=BoxCommand)(ask)
for _each in (ground, demo, web, models, settings, verify, scenes, serve, sweep, report, rescore):
    app.command()(_each)
app.command()(calibrate)

eval_app = typer.Typer(help="Measure the effect on a benchmark.", no_args_is_help=True)
for _name, _about in BENCHMARKS.items():
    add_benchmark(eval_app, _name, _about)
app.add_typer(eval_app, name="eval")

submit_app = typer.Typer(help="Write what a benchmark's server scores.", no_args_is_help=True)
submit_app.command("mmbench")(submit_mmbench)
app.add_typer(submit_app, name="submit")

reproduce_app = typer.Typer(help="Run published experiments again.", no_args_is_help=True)
reproduce_app.command("paper")(reproduce_paper)
app.add_typer(reproduce_app, name="reproduce")


def main() -> None:
    """The `cof` command. What a console cannot show is written as its number, such as \\u4e2d."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
