"""`cof report`: all runs of a folder as one page, Markdown, and tables for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cof
from cof.eval.json_files import write_atomically
from cof.eval.paper import paper_blocks
from cof.eval.report.blocks import result_blocks
from cof.eval.report.charts import result_charts
from cof.eval.report.document import (
    Block,
    Chart,
    Heading,
    Table,
    Text,
    csv_text,
    html,
    markdown,
)
from cof.eval.report.gallery import make_gallery
from cof.eval.results import collect_results
from cof.eval.rules import Rules
from cof.eval.runs import RESULTS, Run, explain_damage, find_runs

PAGE, TEXT, PARTS = "report.html", "report.md", "report"
"""The page, the same as Markdown, and the folder of its charts and tables."""


def make_blocks(results: Mapping[str, Any]) -> list[Block]:
    """A run's tables: the paper's, for a run of the paper, else those of its tasks."""
    return paper_blocks(results) if "paper" in results else result_blocks(results)


def write_table(results: Mapping[str, Any], out: Path) -> str:
    """Write a run's tables into its folder, as `table.md`, and return them."""
    table = markdown(make_blocks(results))
    write_atomically(out / "table.md", table)
    return table


def rescore(out: Path, rules: Rules | None = None) -> list[Path]:
    """Score all runs in a folder again and write their results anew, without model and data.

    Args:
        out: the folder of a run, or one with several of them in it.
        rules: by which answers are read; None: those of the run.

    Returns:
        The folders of the runs; with the same rules and the same version of this package their
        files are what the run itself wrote.

    Raises:
        CofError: there is no finished run, or files of one are missing or damaged.
    """
    runs = find_runs(out)
    for run in runs:
        with explain_damage(run):
            seed, read = run.results["about"]["seed"], {}
            for name in run.results["tasks"]:
                task, replies = run.read_task(name, rules)
                read[name] = collect_results(task, run.methods, replies, seed=seed)
            results = {**run.results, "tasks": read}
            write_atomically(run.folder / RESULTS, json.dumps(results, indent=1) + "\n")
            write_table(results, run.folder)
    return [run.folder for run in runs]


def publish(out: Path) -> list[Path]:
    """Write `report.html`, `report.md`, and `report/` with all charts (SVG) and tables (CSV, TeX).

    Neither the model nor the data is needed; images of questions are shown where they still are.
    The same results give the same files.

    Args:
        out: the folder of a run, or one with several of them in it.

    Returns:
        All that was written, the page first.

    Raises:
        CofError: there is no finished run, or jinja2 is not installed.
    """
    runs = find_runs(out)
    title = f"Report: {out.resolve().name}"
    lead = f"{len(runs)} run{'s' * (len(runs) > 1)}, written by cof {cof.__version__}."
    texts, sections = [markdown([Heading(title, 1), Text(lead)])], []
    parts: dict[Path, str] = {}
    for run in runs:
        with explain_damage(run):
            (heading, *body) = blocks = _body(run)
            texts.append(markdown(blocks, f"{PARTS}/{run.name}-", deeper=1))  # shows every cell
        name = heading.text if isinstance(heading, Heading) else run.name
        inside = run.folder.relative_to(out).as_posix()  # tells runs with equal titles apart
        place = f" ({inside})" if len(runs) > 1 and inside != "." else ""
        sections.append((run.name, f"{name}{place}", body))
        for block in body:
            if isinstance(block, Chart):
                parts[out / PARTS / f"{run.name}-{block.name}.svg"] = f"{block.svg}\n"
            elif isinstance(block, Table):
                parts[out / PARTS / f"{run.name}-{block.name}.csv"] = csv_text(block)
    files = {out / PAGE: html(title, lead, sections), out / TEXT: "\n".join(texts), **parts}
    for path, text in files.items():
        write_atomically(path, text)
    return list(files)


def _body(run: Run) -> list[Block]:
    """The tables with the charts before them, a gallery of each task, and what was run."""
    results = run.results
    body = make_blocks(results)
    first = next((n for n, block in enumerate(body[1:], 1) if isinstance(block, Heading)), 1)
    body[first:first] = result_charts(results)
    for task in results["tasks"]:
        body += make_gallery(run, task)
    facts = [
        f"{name.replace('_', ' ')} `{value}`"
        for name, value in results["about"].items()
        if name != "versions" and value is not None
    ]
    facts += [f"{name} {version}" for name, version in results["about"]["versions"].items()]
    return [*body, Heading("What was run"), Text(f"{'; '.join(facts)}.")]
