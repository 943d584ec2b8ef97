"""`cof report`, `cof rescore`, `cof submit`: what runs left, shown, scored again, sent in."""

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
def report(directory: DirectoryArgument) -> None:
    """Write DIR/report.html (one page, opens offline), report.md, and all tables and charts."""
    from cof.eval.report.publish import PARTS, publish

    page, text = publish(directory)[:2]
    typer.echo(page)
    parts = directory / PARTS
    typer.echo(f"The same as Markdown: {text}; tables as CSV, charts as SVG: {parts}")


@sentences
def rescore(
    directory: DirectoryArgument,
    rules: Annotated[
        str | None,
        "Read answers by official, llava, lmms-eval or vlmevalkit. \\[default: the run's]",
    ] = None,
) -> None:
    """Score the replies of finished runs again, without model and data, and rewrite the results."""
    from cof.eval.report.publish import PAGE, publish
    from cof.eval.report.publish import rescore as score_again

    for run in score_again(directory, rules):  # type: ignore[arg-type]  # checked there
        typer.echo(f"{run / 'results.json'}, {run / 'table.md'}")
    if (directory / PAGE).is_file():
        typer.echo(publish(directory)[0])


@sentences
def submit_mmbench(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where `cof eval mmbench` wrote (--out).")
    ],
    data: Annotated[Path, "The split's TSV file."],
) -> None:
    """Write DIR/submission-METHOD.xlsx: the split's columns with the replies as predictions."""
    from cof.eval.data.mmbench import MMBench, submit_mmbench
    from cof.eval.json_files import read_json_object

    methods = read_json_object(directory / "results.json").get("methods")
    if not methods:
        raise CofError(
            f"There is no finished run in {directory}: run `cof eval mmbench` with --out "
            f"{directory}."
        )
    for name, key in methods.items():
        path = directory / f"submission-{name}.xlsx"
        n = submit_mmbench(MMBench(data), directory / "answers.jsonl", key, path)
        typer.echo(f"{path}: {n} rows")
