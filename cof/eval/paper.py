"""The paper's tables I and II again: ours beside the published figures, with the difference."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.evaluate import Evaluation, usual_methods
from cof.eval.methods import Method
from cof.eval.report.blocks import STATISTICS, Numbers, headline_table
from cof.eval.report.document import Block, Cell, Heading, Items, Number, Table, Text
from cof.eval.rules import SOURCES
from cof.presets import PRESETS, preset
from cof.settings import Settings

FIGURES: Mapping[str, tuple[str, str]] = {
    "MME-P": ("mme", "perception"),
    "MME-C": ("mme", "cognition"),
    "MMBench dev": ("mmbench-dev", "circular"),
    "MMBench test": ("mmbench-test", "circular"),
    "POPE random": ("pope", "random f1"),
    "POPE popular": ("pope", "popular f1"),
    "POPE adversarial": ("pope", "adversarial f1"),
}
"""Columns of table I but the sum: in which part of the data, and what it is called there."""

_HEAD = ("MME perception", "MME cognition", *list(FIGURES)[2:], "sum")
"""Titles of all columns of table I; table II has the first four, no POPE."""

_STEPS = {"plain": ("", ""), "whole": ("yes", ""), "cof": ("yes", "yes")}
"""Rows of table II: attention reweighted? at the model's own boxes?"""

PARITY = "cof (released code)"

PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "LLaVA-1.5-7B": {
        "plain": (1510.7, 285.0, 64.3, 66.4, 87.3, 86.1, 84.2),
        "cof": (1515.9, 334.0, 65.1, 67.7, 87.4, 86.3, 84.2),
    },
    "LLaVA-1.5-13B": {
        "plain": (1531.3, 295.4, 67.7, 67.0, 87.1, 86.2, 84.5),
        "cof": (1545.6, 310.7, 68.3, 69.2, 88.0, 86.6, 84.8),
        "whole": (1527.2, 306.8, 68.5, 69.1),  # table II, which has no POPE
    },
    "InstructBLIP-13B": {
        "plain": (1212.8, 291.8, 29.2, 36.7, 87.7, 77.0, 72.0),
        "cof": (1236.1, 290.8, 29.2, 50.6, 87.5, 84.8, 82.5),
    },
}
"""Model -> row -> the figures of `FIGURES`, in order (paper, tables I and II)."""

LAYOUT: Mapping[str, tuple[type[Benchmark], str, str]] = {
    "mme": (
        MME,
        r"mme[^./]*|mme[^/]*\.parquet",
        "mme/: the release's task folders, or the hub's parquet files",
    ),
    "mmbench-dev": (MMBench, r"(?!.*_cn)mmbench.*dev.*\.tsv", "mmbench/*dev*.tsv (English)"),
    "mmbench-test": (MMBench, r"(?!.*_cn)mmbench.*test.*\.tsv", "mmbench/*test*.tsv (English)"),
    "pope": (POPE, r"pope", "pope/: coco_pope_*.json and val2014/, or the hub's parquet files"),
}
"""Part -> reader, where it lies in the data folder (a pattern, whatever the case), in words."""


def find_parts(data: Path) -> dict[str, Benchmark]:
    """The parts of the paper's data that a folder holds, by name.

    Raises:
        CofError: there is no such folder, or nothing of it is there.
    """
    if not data.is_dir():
        raise CofError(f"There is no folder {data}: name the one that holds mme/, mmbench/, pope/.")
    parts: dict[str, Benchmark] = {}
    paths = [path for path in (*data.iterdir(), *data.glob("*/*.tsv")) if path.name[0] != "."]
    for name, (reader, pattern, _) in LAYOUT.items():
        for path in sorted(paths):
            place = path.relative_to(data).as_posix()
            if name not in parts and re.fullmatch(pattern, place, re.IGNORECASE):
                parts[name] = reader(path)
    if not parts:
        needed = "; ".join(place for _, _, place in LAYOUT.values())
        raise CofError(f"None of the paper's data is there. It is looked for as: {needed}.")
    return parts


def published(model_name: str) -> Mapping[str, tuple[float, ...]]:
    """The paper's figures for a model by hub id or path; empty for models that it does not have."""
    for row in PRESETS["paper"]:
        if re.search(row.pattern, model_name.lower()):
            return PUBLISHED[row.model]
    return {}


def paper_methods(settings: Settings, model_name: str) -> dict[str, Method]:
    """The tables' rows: the plain model, reweighting alone, CoF as stated in the paper, and CoF
    with all that its released code does otherwise (which it does for LLaVA-1.5 alone)."""
    methods = usual_methods(settings)
    del methods["oracle"], methods["random"]
    try:
        parity = preset("paper-parity", model_name)
    except CofError:
        if published(model_name):
            return methods
        own = {name: settings.option(name) for name in ("strength", "grounding_prompt")}
        own = {name: value for name, value in own.items() if value is not None}
        parity = preset("paper-parity:llava-1.5-7b").changed(expand=settings.expand, **own)
    return {**methods, PARITY: Method(parity.changed(system=settings.system))}


def run_paper(
    engine: Engine,
    settings: Settings,
    parts: Mapping[str, Benchmark],
    out: Path,
    *,
    console: Console,
    **how: Any,
) -> dict[str, Any]:
    """Run all rows on all parts there are, as `Evaluation(**how).run`; "cof" has these settings."""
    paper = {
        "published": {
            row: dict(zip(FIGURES, values, strict=False))
            for row, values in published(engine.name).items()
        },
        "missing": [name for name in LAYOUT if name not in parts],
    }
    evaluation = Evaluation(paper_methods(settings, engine.name), (settings,), **how)
    study = "Tables I and II of the paper"
    return evaluation.run(engine, parts, out, console=console, study=study, paper=paper)


def estimate_seconds(engine: Engine, settings: Settings, task: Benchmark, **how: Any) -> float:
    """A rough estimate of the time of all rows on one benchmark, from one batch of it.

    One question is asked before that, because first passes are slow.
    """
    evaluation = Evaluation(paper_methods(settings, engine.name), (settings,), **how)
    seconds, asked = 0.0, 1
    for limit in (1, evaluation.batch_size):
        sample = {"part": replace(task, limit=limit)}
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            evaluation.ask(engine, sample, Path(folder), console=Console(quiet=True))
            seconds, asked = time.perf_counter() - start, len(sample["part"].examples)
    return seconds * len(task.examples) / asked


def collect_paper(results: Numbers) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of both tables out of `results.json`: `ours` and the `published` ones,
    `{row: {figure: value}}`, with the sum where all seven are there."""
    ours: dict[str, dict[str, float]] = {row: {} for row in results["methods"]}
    for figure, (name, metric) in FIGURES.items():
        task = results["tasks"].get(name)
        for row in ours if task else ():
            metrics = task["metrics"][task["rules"]][row]
            if metric in metrics:
                ours[row][figure] = metrics[metric]
    theirs = {row: dict(figures) for row, figures in results["paper"]["published"].items()}
    for figures in (*ours.values(), *theirs.values()):
        if len(figures) == len(FIGURES):
            figures["sum"] = round(sum(figures.values()), 4)
    return {"ours": ours, "published": theirs}


def paper_blocks(results: Numbers) -> list[Block]:
    """The report; every number in it is one of `results.json`."""
    about, paper, numbers = results["about"], results["paper"], collect_paper(results)
    rules = next(iter(results["tasks"].values()))["rules"]
    text = (
        f"Model `{about['model']}` ({about['dtype']}), answers read by the rules `{rules}` "
        f"({SOURCES[rules]})."
    )
    if about["limit"] is not None:
        text += f" Only about {about['limit']} questions of each part."
    if paper["missing"]:
        text += f" Not there: {', '.join(paper['missing'])}."
    if not paper["published"]:
        text += " The paper has no figures for this model."
    first = [
        [f"{row}, {whose}", *cells]
        for row in numbers["ours"]
        if row != "whole"
        for whose, cells in _rows(numbers, row, [*FIGURES, "sum"])
    ]
    second = [
        [*steps, whose, *cells]
        for row, steps in _STEPS.items()
        for whose, cells in _rows(numbers, row, list(FIGURES)[:4])
    ]
    blocks: list[Block] = [
        Heading("Tables I and II of the paper", 1),
        Text(text),
        Items(results["methods"].items()),
        Heading("Table I: MME, MMBench (circular), POPE (F1)"),
        Table("table-1", ["row", *_HEAD], first),
        Heading("Table II: the two stages apart"),
        Table("table-2", ["reweighted", "grounded", "whose", *_HEAD[:4]], second),
    ]
    for name, task in results["tasks"].items():
        table = headline_table(name, task)
        if table.rows:  # MMBench's test split has none: only its server knows the answers
            blocks += [Heading(f"{name}: intervals"), table]
    return [*blocks, Text(STATISTICS)]


def _rows(numbers: Numbers, row: str, names: Sequence[str]) -> Iterator[tuple[str, list[Cell]]]:
    """Ours; and the paper's and the difference where the paper has the row."""

    def cells(figures: Numbers, spec: str = ".1f") -> list[Cell]:
        return [Number(figures[name], spec) if name in figures else "-" for name in names]

    ours, theirs = numbers["ours"][row], numbers["published"].get(row)
    yield "ours", cells(ours)
    if theirs is not None:
        yield "paper", cells(theirs)
        gaps = {
            name: ours[name] - theirs[name] for name in names if name in ours and name in theirs
        }
        yield "difference", cells(gaps, "+.1f")
