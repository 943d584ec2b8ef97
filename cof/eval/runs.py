"""The finished runs in a folder: their numbers, questions and replies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.data import BENCHMARKS
from cof.eval.data.base import Benchmark
from cof.eval.evaluate import task_folder
from cof.eval.examples import Embedded
from cof.eval.json_files import read_json_object
from cof.eval.methods import Method
from cof.eval.rules import Rules
from cof.eval.store import Replies
from cof.settings import Settings

RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path  # the one it wrote to
    name: str  # short, for files; unique in the report
    results: dict[str, Any]  # its numbers (`cof.eval.evaluate.Evaluation.run`)

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        methods = {}
        for name, values in self.results["settings"].items():
            settings = {k: v for k, v in values.items() if k != "given"}
            try:
                methods[name] = Method(Settings(**settings), values["given"])
            except CofError as error:
                raise CofError(
                    f"{self.folder / RESULTS} is of another version of cof: run cof eval again, "
                    f"or read it with that version ({str(error).rstrip('.')})."
                ) from None
        return methods

    def read_task(self, name: str, rules: Rules | None = None) -> tuple[Benchmark, Replies]:
        """A task of the run, without its data, and the replies to it, by these rules or the run's.

        Raises:
            CofError: questions or replies are missing, damaged or of another run.
        """
        path, about = self.folder / "run.json", self.results["about"]
        if any(about.get(name) != value for name, value in read_json_object(path).items()):
            raise CofError(
                f"The replies beside {path} are of another run than the results: run the "
                "evaluation again."
            )
        tasks = self.results["tasks"]
        numbers, folder = tasks[name], task_folder(self.folder, name, tasks)
        part, parts = numbers["shard"]
        task = BENCHMARKS[numbers["benchmark"]](
            folder,  # in place of the data, which is not read
            rules=rules or numbers["rules"],
            prompt_style=numbers["prompt_style"],
            limit=about["limit"],
            shard=(part, parts),
        )
        return task, Replies.read(folder, task.shard)

    def find_images(self, name: str) -> Mapping[str, Path | Embedded]:
        """The image of each question of a task, by id; empty where its data lies elsewhere now."""
        tasks = self.results["tasks"]
        numbers, folder = tasks[name], task_folder(self.folder, name, tasks).resolve()
        place = read_json_object(folder / "data.json")
        try:
            images = place["images"] and folder / place["images"]
            task = BENCHMARKS[numbers["benchmark"]](
                folder / place["path"], prompt_style=numbers["prompt_style"], images=images
            )
            return {example.id: example.image for example in task.read([])}
        except (CofError, KeyError, OSError):
            return {}


def find_runs(out: Path) -> list[Run]:
    """All runs in a folder and below it.

    Raises:
        CofError: there is none, or the results of one are damaged or of another version.
    """
    runs: list[Run] = []
    for folder in sorted(path.parent for path in out.rglob(RESULTS)):
        inside = folder.relative_to(out).as_posix()
        name = out.resolve().name if inside == "." else inside
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
        taken = sum(re.fullmatch(rf"{name}(--\d+)?", run.name) is not None for run in runs)
        name = f"{name}--{taken + 1}" if taken else name
        runs.append(Run(folder, name, read_json_object(folder / RESULTS)))
        with explain_damage(runs[-1]):
            # names of tasks are names of files
            if not all(re.fullmatch(r"[\w-]+", task) for task in runs[-1].results["tasks"]):
                raise ValueError("a task's name is no file's")
    if not runs:
        raise CofError(
            f"There is no finished run in {out}: name the folder that `cof eval` or "
            "`cof reproduce` wrote to (--out)."
        )
    return runs


@contextmanager
def explain_damage(run: Run) -> Iterator[None]:
    """Errors about what is missing or of another type in a run's results become a `CofError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CofError(
            f"{run.folder / RESULTS} is damaged, or of another version of cof ({error!r}): run the "
            "evaluation again."
        ) from error
