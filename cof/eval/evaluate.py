"""Methods compared on benchmarks in one pass: all figures, and what a run records of itself."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

import cof
from cof.client import RemoteCoF
from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.data.base import Benchmark
from cof.eval.examples import Embedded, Example, image_digest
from cof.eval.json_files import read_json_object, write_atomically
from cof.eval.methods import PLAIN, Method, system_of
from cof.eval.results import collect_results
from cof.eval.runner import Runner
from cof.eval.store import Replies, Store, answers_path, find_shards, write_questions
from cof.settings import Settings


@dataclass(frozen=True)
class Evaluation:
    """Methods that answer the same questions.

    Attributes:
        methods: by the names in reports; `plain` is among them unless only stage 1 is measured.
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
        """`usual_methods`; `oracle` and `random`, a control, only where there are true regions."""
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

        Args:
            engine: the model, or servers that have it.
            tasks: benchmarks by name; the answers of several go to folders of their names.
            out: folder; a run that was interrupted goes on from there.
            console: for progress.
            more: goes into the results (`results.json`) as it is.

        Raises:
            CofError: the data has problems, `out` is another run's, or no server answers.
        """
        results: dict[str, Any] = {
            "about": self.ask(engine, tasks, out, console=console),
            "methods": {name: method.key for name, method in self.methods.items()},
            "settings": {
                name: {**method.settings.as_dict(), "given": method.given}
                for name, method in self.methods.items()
            },
            **more,
            "tasks": {},
        }
        for name, task in tasks.items():
            replies = Replies.read(task_folder(out, name, tasks), task.shard)
            numbers = collect_results(task, self.methods, replies, seed=self.seed)
            results["tasks"][name] = numbers
            if refused := max(numbers["errors"].values(), default=0):
                console.print(
                    f"{name}: {refused} question{'s' * (refused > 1)} could not be asked and count "
                    "as wrong; `error` in answers.jsonl says why."
                )
        write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
        return results

    def ask(
        self,
        engine: Engine | RemoteCoF,
        tasks: Mapping[str, Benchmark],
        out: Path,
        *,
        console: Console,
    ) -> dict[str, Any]:
        """Ask without collecting figures (see `run`), and tell what answers depend on.

        A shard's answers have a file of their own; a run without shards begins with all of these.
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
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("questions"))
        with Progress(*columns, console=console) as bar:
            for name, task in tasks.items():
                folder = task_folder(out, name, tasks)
                write_questions(everything[name], folder)
                write_atomically(folder / "data.json", _locate_data(task, folder))
                path = answers_path(folder, task.shard)
                for each in find_shards(folder) if task.shard == (1, 1) else ():
                    Store(path).append(Store(each).values())
                runner = Runner(engine, task, path, self.batch_size, self.max_new_tokens, self.seed)
                advance = partial(bar.advance, bar.add_task(name, total=len(task.examples)))
                runner.run([*self.methods.values()], self.grounded, advance)
        return about


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


def describe_engine(engine: Engine | RemoteCoF) -> dict[str, Any]:
    """The model by name and fingerprint, its dtype and device, and the versions of all software;
    of servers the model's name, which is all that they tell, and the versions here."""
    remote = isinstance(engine, RemoteCoF)
    name = engine.model if isinstance(engine, RemoteCoF) else engine.name
    model = None if remote else getattr(engine, "model", None)
    packages = ("numpy", "pillow") if remote else ("torch", "transformers", "numpy", "pillow")
    versions = {"cof": cof.__version__, "python": platform.python_version()}
    return {
        "model": Path(name).name,
        "weights": None if model is None else weights_digest(model),
        "dtype": None if model is None else str(model.dtype).removeprefix("torch."),
        "device": "cof serve" if remote else None if model is None else str(model.device.type),
        "versions": versions | {each: version(each) for each in packages},
    }


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that differ where the text does."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def questions_digest(examples: Iterable[Example]) -> str:
    """A fingerprint of all that changes a figure: all fields of questions, and what images hold."""

    @cache
    def seen(image: Path | Embedded) -> Path:
        try:
            return Path(image_digest(image))
        except CofError:
            return Path("unreadable")

    return digest("\n".join(repr(replace(each, image=seen(each.image))) for each in examples))


def weights_digest(model: Any) -> str:
    """A fingerprint of a model from the beginning of each of its parameters."""
    parts = (
        name.encode() + parameter.detach().flatten()[:4096].float().cpu().numpy().tobytes()
        for name, parameter in model.named_parameters()
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def check_same_run(path: Path, about: dict[str, Any]) -> None:
    """Keep `about` in a file; refuse where the file has another.

    Raises:
        CofError: it has, and the message names what differs; or the file is damaged.
    """
    about = json.loads(json.dumps(about))  # tuples are lists there
    if path.exists():
        before = read_json_object(path)
        other = [name for name in about if about[name] != before.get(name)]
        if other:
            raise CofError(
                f"{path.parent} holds answers of another run ({', '.join(other)} differ): write "
                "to another folder with --out, or delete that one."
            )
    write_atomically(path, json.dumps(about, indent=1) + "\n")


def _locate_data(task: Benchmark, out: Path) -> str:
    """The paths of the data, relative to `out`, as JSON: for images in a report."""

    def relative(path: Path) -> str:
        # folders as they really lie, or ".." would lead elsewhere; a file's link keeps its name
        real = os.path.join(os.path.realpath(path.parent), path.name)
        return Path(os.path.relpath(real, os.path.realpath(out))).as_posix()

    images = task.images and relative(task.images)
    return json.dumps({"path": relative(task.path), "images": images}) + "\n"
