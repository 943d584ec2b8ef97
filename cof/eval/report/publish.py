"""`cof report`: all runs of a folder as one page, Markdown, and tables for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cof
from cof.eval.json_files import write_atomically
from cof.eval.report.blocks import result_blocks
from cof.eval.report.charts import result_charts
from cof.eval.report.document import (
    Block,
    Chart,
    Heading,
    Table,
    Text,
    csv_text,
    markdown,
)
from cof.eval.report.gallery import make_gallery
from cof.eval.report.latex import latex
from cof.eval.report.page import Section, html
from cof.eval.report.paper import paper_blocks
from cof.eval.runs import Run, explain_damage, find_runs

PAGE, TEXT, PARTS = "report.html", "report.md", "report"
"""The page, the same as Markdown, and the folder of its charts and tables."""


def make_blocks(results: Mapping[str, Any]) -> list[Block]:
    """A run's tables: the paper's, for a run of the paper, else those of its tasks."""
    return paper_blocks(results) if "paper" in results else result_blocks(results)


def write_table(results: Mapping[str, Any], out: Path) -> None:
    """`table.md` in the folder of a run."""
    write_atomically(out / "table.md", markdown(make_blocks(results)))


def publish(out: Path) -> list[Path]:
    """Write `report.html`, `report.md`, and `report/` with all charts (SVG) and tables (CSV, TeX).

    Neither the model nor the data is needed; images of questions are shown where they still are.
    The same results give the same files.

    Args:
        out: the folder of a run, or one with several of them in it.

    Returns:
        The files, the page first.

    Raises:
        CofError: there is no finished run, or jinja2 is not installed.
    """
    runs = find_runs(out)
    bodies = []
    for run in runs:
        with explain_damage(run):
            bodies.append(list(_named(run, _body(run))))
            markdown(bodies[-1])  # shows every cell
    title = f"Report: {out.resolve().name}"
    lead = f"{len(runs)} run{'s' * (len(runs) > 1)}, written by cof {cof.__version__}."
    sections = [
        Section(run.name, _title(body) + _place(run, out, len(runs)), body[1:])
        for run, body in zip(runs, bodies, strict=True)
    ]
    files = {out / PAGE: html(title, lead, sections)}
    lowered = [
        replace(block, level=block.level + 1) if isinstance(block, Heading) else block
        for body in bodies
        for block in body
    ]
    files[out / TEXT] = markdown([Heading(title, 1), Text(lead), *lowered], f"{PARTS}/")
    for block in lowered:
        if isinstance(block, Chart):
            files[out / PARTS / f"{block.name}.svg"] = block.svg + "\n"
        elif isinstance(block, Table):
            files[out / PARTS / f"{block.name}.csv"] = csv_text(block)
            files[out / PARTS / f"{block.name}.tex"] = latex(block)
    (out / PARTS).mkdir(exist_ok=True)
    for path, text in files.items():
        write_atomically(path, text)
    return list(files)


def _body(run: Run) -> list[Block]:
    """The tables with the charts before them, and a gallery of each task."""
    results = run.results
    body = make_blocks(results)
    first = next((n for n, block in enumerate(body[1:], 1) if isinstance(block, Heading)), 1)
    body[first:first] = result_charts(results)
    for name, numbers in results["tasks"].items():
        if not numbers["changed"].get("cof"):
            continue
        kept = run.read_kept(name)
        title = "What CoF changed" if len(results["tasks"]) == 1 else f"{name}: what CoF changed"
        if kept is None:
            body.append(Text("The replies are not there, so no questions are shown."))
        else:
            body += make_gallery(kept, numbers["changed"], title)
    return [*body, *_about(results["about"])]


def _title(body: Sequence[Block]) -> str:
    first = body[0]
    return first.text if isinstance(first, Heading) else "Results"


def _place(run: Run, out: Path, runs: int) -> str:
    """Tells runs with equal titles apart."""
    inside = run.folder.relative_to(out).as_posix()
    return f" ({inside})" if runs > 1 and inside != "." else ""


def _named(run: Run, blocks: Sequence[Block]) -> Iterator[Block]:
    """With names of tables and charts that are unique in the report, and captions for LaTeX."""
    title = below = _title(blocks)
    for block in blocks:
        if isinstance(block, Heading):
            below = block.text
        if isinstance(block, Table):
            caption = title if below == title else f"{title}: {below}"
            block = replace(block, caption=block.caption or f"{caption}.")
        if isinstance(block, (Table, Chart)):
            block = replace(block, name=f"{run.name}-{block.name}")
        yield block


def _about(about: Mapping[str, Any]) -> list[Block]:
    """The model, the data and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    facts = [
        f"{name.replace('_', ' ')} `{value}`"
        for name, value in about.items()
        if name != "versions" and value is not None
    ]
    return [Heading("What was run"), Text(f"{'; '.join([*facts, versions])}.")]
