"""Methods compared on benchmarks: one pass over the questions, all figures, one results file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.client import RemoteCoF
from cof.engines.base import Engine
from cof.eval.data.base import Benchmark
from cof.eval.json_files import write_atomically
from cof.eval.methods import PLAIN, Method, system_of
from cof.eval.replies import Replies, make_portable, write_questions
from cof.eval.results import collect_results
from cof.eval.run_info import check_same_run, describe_engine, progress_bar, questions_digest
from cof.eval.runner import Runner
from cof.eval.store import Store
from cof.settings import Settings


@dataclass(frozen=True)
class Evaluation:
    """Methods that answer the same questions.

    Attributes:
        methods: by the names under which they are reported; `plain` is among them unless only
            stage 1 is measured.
        grounded: settings whose stage 1 is measured even if no method needs it.
        batch_size: questions in one forward pass; under way at each server.
        max_new_tokens: the longest answer.
        seed: of the control's boxes and of the bootstrap.
    """

    methods: Mapping[str, Method]
    grounded: tuple[Settings, ...] = ()
    batch_size: int = 8
    max_new_tokens: int = 32
    seed: int = 0

    @classmethod
    def compare_usual(cls, settings: Settings, task: Benchmark, **options: Any) -> Evaluation:
        """The plain model, every image token, and the settings (`cof`); where the data has true
        regions, those and random boxes as a control."""
        if task.stage_one:
            return cls({}, (settings,), **options)
        methods = usual_methods(settings)
        if not any(example.region for example in task.examples):
            del methods["oracle"], methods["random"]
        return cls(methods, (settings,), **options)

    def run(
        self,
        engine: Engine | RemoteCoF,
        tasks: Mapping[str, Benchmark],
        out: Path,
        *,
        console: Console,
        **more: Any,
    ) -> dict[str, Any]:
        """Ask everything that `out` does not hold yet, and collect all figures.

        A shard's answers have a file of their own; a run without shards begins with those of all
        shards that `out` holds.

        Args:
            engine: the model, or servers that have it.
            tasks: benchmarks by name; the answers of several go to folders of their names.
            out: folder; a run that was interrupted goes on from there.
            console: for progress.
            more: goes into the results as it is.

        Returns:
            The content of `results.json`, which is written too.

        Raises:
            CofError: the data has problems, `out` holds answers of another run, or no server
                answers.
        """
        first = next(iter(tasks.values()))
        everything = {  # the questions of all shards
            name: (task if task.shard == (1, 1) else replace(task, shard=(1, 1))).examples
            for name, task in tasks.items()
        }
        about = {
            "prompt_style": first.prompt_style,
            "limit": first.limit,
            "data": questions_digest(chain.from_iterable(everything.values())),
            **describe_engine(engine),
            "max_new_tokens": self.max_new_tokens,
            # servers make batches of their own
            "batch_size": None if isinstance(engine, RemoteCoF) else self.batch_size,
            "seed": self.seed,
            "system": system_of(self.methods.values(), self.grounded) or None,
        }
        check_same_run(out / "run.json", about)
        replies = {}
        with progress_bar(console) as bar:
            for name, task in tasks.items():
                folder = task_folder(out, name, tasks)
                write_atomically(folder / "questions.jsonl", write_questions(everything[name]))
                write_atomically(folder / "data.json", _locate_data(task, folder))
                path = answers_path(folder, task.shard)
                runner = Runner(engine, task, path, self.batch_size, self.max_new_tokens, self.seed)
                shards = [] if task.shard[1] > 1 else find_shards(folder)
                for each in shards:
                    Store(path).append(Store(each).values())
                counter = bar.add_task(name, total=len(task.examples))
                advance = partial(bar.advance, counter)
                runner.run([*self.methods.values()], self.grounded, advance)
                replies[name] = Replies.read(make_portable(task.examples), [*shards, path])
        results: dict[str, Any] = {
            "about": about,
            "methods": {name: method.key for name, method in self.methods.items()},
            "settings": {
                name: {**method.settings.as_dict(), "given": method.given}
                for name, method in self.methods.items()
            },
            **more,
            "tasks": {
                name: collect_results(task, self.methods, replies[name], seed=self.seed)
                for name, task in tasks.items()
            },
        }
        write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
        for name, numbers in results["tasks"].items():
            if refused := max(numbers["errors"].values(), default=0):
                console.print(
                    f"{name}: {refused} question{'s' * (refused > 1)} could not be asked and count "
                    "as wrong; `error` in answers.jsonl says why."
                )
        return results


def task_folder(out: Path, name: str, tasks: Mapping[str, Any]) -> Path:
    """The folder of the answers to a task."""
    return out if len(tasks) == 1 else out / name


def usual_methods(settings: Settings) -> dict[str, Method]:
    """Plain, every image token, the settings, the true regions and random boxes."""
    return {
        "plain": PLAIN,
        "whole": Method(settings.changed(grounder="whole")),
        "cof": Method(settings),
        "oracle": Method(settings, "oracle"),
        "random": Method(settings, "random"),
    }


def answers_path(out: Path, shard: Sequence[int]) -> Path:
    """The file of a shard's replies in `out`."""
    part, parts = shard
    return out / ("answers.jsonl" if parts == 1 else f"answers-{part}-of-{parts}.jsonl")


def find_shards(out: Path) -> list[Path]:
    """The replies of all shards that `out` holds."""
    pattern = re.compile(r"answers-\d+-of-\d+\.jsonl")
    return sorted(path for path in out.glob("answers-*.jsonl") if pattern.fullmatch(path.name))


def _locate_data(task: Benchmark, out: Path) -> str:
    """The paths of the data, relative to `out`, as JSON: for images in a report."""

    def relative(path: Path | None) -> str | None:
        if path is None:
            return None
        # folders as they really lie, or ".." would lead elsewhere; a file's link keeps its name
        real = os.path.join(os.path.realpath(path.parent), path.name)
        return Path(os.path.relpath(real, os.path.realpath(out))).as_posix()

    return json.dumps({"path": relative(task.path), "images": relative(task.images)}) + "\n"
