"""`cof report` and `cof rescore`: all runs of a folder as one page, with questions that a method
fixed or broke; Markdown; tables for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

import cof
from cof.errors import CofError
from cof.eval.data.choice import list_options
from cof.eval.examples import Embedded, Example, open_image
from cof.eval.json_files import write_atomically
from cof.eval.methods import grounding_key
from cof.eval.paper import paper_blocks
from cof.eval.report.blocks import result_blocks
from cof.eval.report.charts import result_charts
from cof.eval.report.document import (
    Block,
    Card,
    Chart,
    Heading,
    Table,
    Text,
    csv_text,
    html,
    markdown,
)
from cof.eval.results import collect_results
from cof.eval.rules import Rules
from cof.eval.runs import RESULTS, Run, explain_damage, find_runs
from cof.eval.store import Record
from cof.geometry.boxes import FULL
from cof.geometry.regions import Region
from cof.viz.page import webp_url
from cof.viz.panels import overlay

PAGE, TEXT, PARTS = "report.html", "report.md", "report"
"""The page, the same as Markdown, and the folder of its charts and tables."""

_MOST = 12  # fixed questions of a run that are shown, and broken ones
_SIDE = 420  # of an image's longer side in the page, pixels


def make_blocks(results: Mapping[str, Any]) -> list[Block]:
    """A run's tables: the paper's, for a run of the paper, else those of its tasks."""
    return paper_blocks(results) if "paper" in results else result_blocks(results)


def write_table(results: Mapping[str, Any], out: Path) -> str:
    """Write a run's tables into its folder, as `table.md`, and return them."""
    table = markdown(make_blocks(results))
    write_atomically(out / "table.md", table)
    return table


def rescore(out: Path, rules: Rules | None = None) -> list[Path]:
    """Score the run of a folder again, or all runs in it, by these rules or the run's own, without
    model and data; the same version of this package writes what the run itself wrote.

    Returns:
        The folders of the runs.

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


def make_gallery(run: Run, task: str) -> list[Block]:
    """Fixed and broken questions of `cof`, the first ones; a sentence where the replies are not
    there, or are those of another run."""
    changed = run.results["tasks"][task]["changed"].get("cof")
    if not changed or not any(changed.values()):
        return []
    methods = {name: run.methods[name] for name in ("plain", "cof")}
    try:
        benchmark, replies = run.read_task(task)
        replies = replies.score(benchmark.score)
        answers = replies.answers({name: method.key for name, method in methods.items()})
    except CofError:
        return [Text("The replies are not there, so no questions are shown.")]
    # of several grounders the first one's
    boxes = replies.records.get(grounding_key(methods["cof"].settings.grounders[0]), {})
    by_id, images = {example.id: example for example in replies.examples}, run.find_images(task)
    cards = []
    for outcome, ids in changed.items():
        for id in ids[:_MOST]:
            example, said = by_id[id], {name: records[id] for name, records in answers.items()}
            image = _draw_image(images.get(id), example, boxes.get(id), said["cof"])
            options = dict(zip(ascii_uppercase, example.options, strict=False))
            true = options.get(example.answer)
            listed = f"{example.question or example.prompt}\n{list_options(example.options)}"
            card = Card(
                outcome=outcome,
                kind=example.kind,
                question=listed.rstrip("\n"),
                truth=f"{example.answer}. {true}" if true else example.answer,
                answers=[(name, each.text, bool(each.right)) for name, each in said.items()],
                image=image,
            )
            cards.append(card)
    parts = [f"{len(ids)} {outcome}" for outcome, ids in changed.items()]
    title = "What CoF changed" if len(run.results["tasks"]) == 1 else f"{task}: what CoF changed"
    return [
        Heading(title),
        Text(
            f"Against the plain model: {', '.join(parts)}; of each at most {_MOST} are shown. "
            "Dashed: the box found. Solid: where the model was made to look. Dotted: the true "
            "region, where the data has it."
        ),
        *cards,
    ]


def _draw_image(
    source: Path | Embedded | None, example: Example, found: Record | None, cof: Record
) -> str:
    """An address that holds the image; empty where it is no longer there."""
    if source is None:
        return ""
    try:
        image = open_image(source)
    except CofError:
        return ""
    panel = overlay(
        image,
        Region(boxes=cof.boxes, whole=cof.boxes == (FULL,)) if cof.boxes else None,
        found=found.boxes if found else (),
        true=example.region,
    )
    panel.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return webp_url(panel)
