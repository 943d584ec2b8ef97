"""`cof submit`: files that a benchmark's server scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cof.cli.common import sentences
from cof.errors import CofError


@sentences
def submit_mmbench(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where `cof eval mmbench` wrote (--out).")
    ],
    data: Annotated[Path, typer.Option("--data", help="The split's TSV file.")],
    method: Annotated[
        str | None, typer.Option("--method", help="plain, whole, cof, ... \\[default: all of them]")
    ] = None,
) -> None:
    """Write DIR/submission-METHOD.xlsx: the split's columns with the replies as predictions."""
    from cof.eval.data.mmbench import MMBench
    from cof.eval.json_files import read_json_object
    from cof.eval.submit import submit_mmbench

    methods = read_json_object(directory / "results.json").get("methods")
    if not methods:
        raise CofError(
            f"There is no finished run in {directory}: run `cof eval mmbench` with --out "
            f"{directory}."
        )
    if method is not None and method not in methods:
        raise CofError(f"There is no method {method!r} in {directory}, but {', '.join(methods)}.")
    for name in [method] if method else methods:
        path = directory / f"submission-{name}.xlsx"
        n = submit_mmbench(MMBench(data), directory / "answers.jsonl", methods[name], path)
        typer.echo(f"{path}: {n} rows")
