"""`cof report` and `cof rescore`: what runs left, shown to people, and scored again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cof.cli.common import sentences
from cof.errors import CofError

DirectoryArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="Where a run wrote (--out), or a folder with several such folders."
    ),
]


@sentences
def report(
    directory: DirectoryArgument,
    most: Annotated[
        int,
        typer.Option("--most", min=0, help="Questions fixed, and broken, to show of each run."),
    ] = 12,
) -> None:
    """Write DIR/report.html (one page, opens offline), report.md, and all tables and charts."""
    from cof.eval.report.publish import PARTS, publish

    written = publish(_there(directory), most=most)
    page, text = written.files[:2]
    typer.echo(f"{page}: {written.runs} run{'s' * (written.runs != 1)}, {_size(page)}")
    if written.without_image:
        typer.echo(
            f"{written.without_image} of {written.shown} images are no longer where the run "
            "found them."
        )
    parts = directory / PARTS
    typer.echo(f"The same as Markdown: {text}; tables as CSV and LaTeX, charts as SVG: {parts}")


@sentences
def rescore(
    directory: DirectoryArgument,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            help="Read answers by official, llava, lmms-eval or vlmevalkit. \\[default: the run's]",
        ),
    ] = None,
) -> None:
    """Score the replies of finished runs again, without model and data, and rewrite the results."""
    from cof.eval.report.publish import PAGE, publish
    from cof.eval.rescore import rescore as score_again
    from cof.eval.rules import RULES

    known = next((name for name in RULES if name == rules), None)
    if rules is not None and known is None:
        raise CofError(f"There are no rules {rules!r}; there are {', '.join(RULES)}.")
    for run in score_again(_there(directory), known):
        typer.echo(f"{run / 'results.json'}, {run / 'table.md'}")
    if (directory / PAGE).is_file():
        typer.echo(publish(directory).files[0])


def _there(directory: Path) -> Path:
    if not directory.is_dir():
        raise CofError(f"There is no folder {directory}: name one that a run wrote to (--out).")
    return directory


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 2**20:.1f} MiB"
