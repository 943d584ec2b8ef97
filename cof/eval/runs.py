"""The finished runs in a folder, and what they keep beside their numbers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cof.errors import CofError
from cof.eval.benchmarks import BENCHMARKS
from cof.eval.compared import answers_path, shard_answers
from cof.eval.data.base import Benchmark, selected
from cof.eval.report.gallery import Kept, Pictures
from cof.eval.rules import Rules
from cof.eval.saved import Replies, questions
from cof.eval.store import GROUNDING
from cof.eval.tasks import SceneTask

Kind = Literal["paper", "study", "comparison", "faces", "other"]
"""The paper's tables; the embedded benchmark's study; methods on a benchmark; its three
faces; anything else that left one of `TEXTS`."""

TEXTS = ("table.md", "sweep.md")
"""Markdown of runs that are shown as they stand."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        name: short, for files; unique in the report.
        kind: of its results.
        results: its numbers; empty for an `other`.
    """

    folder: Path
    name: str
    kind: Kind
    results: dict[str, Any]


def find(out: Path) -> list[Run]:
    """All runs in a folder and below it, the paper's tables before their parts.

    Raises:
        CofError: there is none, or the results of one are damaged.
    """
    found: list[tuple[Path, Kind, dict[str, Any]]] = []
    marks = ("paper.json", "results.json", *TEXTS)
    for folder in sorted({path.parent for name in marks for path in out.rglob(name)}):
        results = read(folder / "results.json")
        kind = _kind(results)
        if (folder / "paper.json").is_file():
            found.append((folder, "paper", read(folder / "paper.json")))
        elif kind is not None:
            found.append((folder, kind, results))
        elif text_of(folder) is not None:
            found.append((folder, "other", {}))
    if not found:
        raise CofError(
            f"There is no finished run in {out}: name the folder that `cof eval` or "
            "`cof reproduce` wrote to (--out)."
        )
    names = _names(out, [folder for folder, _, _ in found])
    return [
        Run(folder, name, kind, results)
        for name, (folder, kind, results) in zip(names, found, strict=True)
    ]


def text_of(folder: Path) -> Path | None:
    """The Markdown that a run left, the first of `TEXTS`."""
    return next((folder / name for name in TEXTS if (folder / name).is_file()), None)


def read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        CofError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CofError(f"{path} is damaged ({error}): run the evaluation again.") from error
    return results if isinstance(results, dict) else {}


def comparison(run: Run, rules: Rules | None = None) -> tuple[Benchmark, Replies]:
    """The benchmark of a comparison, without its data, and what was said.

    Args:
        run: a `comparison`.
        rules: by which answers are read; None: the run's.

    Raises:
        CofError: questions or replies are missing, damaged or of another run, or there are no such
            rules.
    """
    check_replies(run)
    about, shard = run.results["about"], tuple(run.results["shard"])
    task = BENCHMARKS[about["benchmark"]](
        run.folder,  # in place of the data, which is not read
        rules=rules or run.results["rules"],
        prompt_style=about["prompt_style"],
        limit=about["limit"],
        shard=shard,
    )
    examples = selected(questions(run.folder / "questions.jsonl"), None, shard)
    stores = shard_answers(run.folder) if shard == (1, 1) else []
    return task, Replies.read(examples, [*stores, answers_path(run.folder, shard)])


def check_replies(run: Run) -> None:
    """Refuse replies that another model gave, or that were given to other questions.

    Raises:
        CofError: they are those of another run than the results.
    """
    path = run.folder / ("work/run.json" if run.kind == "study" else "run.json")
    about = run.results["about"]
    if any(name in about and about[name] != value for name, value in read(path).items()):
        raise CofError(
            f"The replies beside {path} are of another run than the results: run the evaluation "
            "again."
        )


def kept(run: Run) -> Kept | None:
    """Replies and pictures of a study or comparison; None where the replies are not there, or are
    those of another run."""
    try:
        found = _study(run) if run.kind == "study" else _comparison(run)
        found.replies.of({**found.methods, GROUNDING: GROUNDING})  # refuses if any is missing
    except CofError:
        return None
    return found


def of_face(run: Run, face: str) -> Run:
    """One of the faces of `faces`, as a comparison on its test scenes."""
    results = {
        "about": run.results["about"] | {"benchmark": face},
        "rules": "official",
        "shard": [1, 1],
        "methods": run.results["methods"],
    }
    return Run(run.folder / "work" / "test" / face, f"{run.name}-{face}", "comparison", results)


def _comparison(run: Run) -> Kept:
    task, replies = comparison(run)
    return Kept(replies.scored(task), run.results["methods"], _pictures(run))


def _study(run: Run) -> Kept:
    check_replies(run)
    methods = run.results["test"].get("methods")
    if methods is None:
        raise CofError(f"{run.folder} was written by an earlier version: run the evaluation again.")
    task = SceneTask(run.folder / "work" / "test", limit=run.results["plan"]["limit"])
    replies = Replies.read(task.examples, [run.folder / "work" / "test.jsonl"]).scored(task)
    pictures = {example.id: example.image for example in task.examples}
    return Kept(replies, methods, pictures)


def _pictures(run: Run) -> Pictures:
    """From the data, if it is still where the run found it."""
    place = read(run.folder / "data.json")
    if not place:
        return {}
    about = run.results["about"]
    folder = run.folder.resolve()
    images = None if place["images"] is None else folder / place["images"]
    try:
        task = BENCHMARKS[about["benchmark"]](
            folder / place["path"], prompt_style=about["prompt_style"], images=images
        )
        return {example.id: example.image for example in task.read([])}
    except (CofError, OSError):
        return {}


def _kind(results: dict[str, Any]) -> Kind | None:
    if {"about", "plan", "choice", "test", "seconds"} <= results.keys():
        return "study"
    if {"metrics", "methods", "shard", "about"} <= results.keys():
        return "comparison"
    if {"about", "methods", "faces"} <= results.keys():
        return "faces"
    return None


def _names(out: Path, folders: list[Path]) -> list[str]:
    """Of letters, digits and hyphens; numbered where several are the same."""
    names: list[str] = []
    for folder in folders:
        inside = folder.relative_to(out).as_posix()
        name = out.resolve().name if inside == "." else inside
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
        taken = sum(name == other or other.startswith(f"{name}--") for other in names)
        names.append(f"{name}--{taken + 1}" if taken else name)
    return names
