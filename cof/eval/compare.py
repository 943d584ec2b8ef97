"""Methods compared on a benchmark: one pass over its questions, figures under every rule set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.eval.about import about_engine, asked_digest, check_same_run, progress_bar
from cof.eval.compared import answers_path, gathered, shard_answers, where
from cof.eval.data.base import Benchmark
from cof.eval.methods import PLAIN, Method
from cof.eval.run import Runner
from cof.eval.saved import Replies, asked, portable
from cof.eval.store import Store, write_atomically
from cof.eval.tasks import Example
from cof.settings import Settings


@dataclass(frozen=True)
class Comparison:
    """What is run on a benchmark, and how.

    Attributes:
        settings: the pipeline's: stage 1's prompt, and lambda, alpha and all else of `methods`
            unless those say otherwise.
        methods: by the names under which they are reported; `plain` is among them.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.
        seed: of the control's boxes and of the bootstrap.
    """

    settings: Settings
    methods: Mapping[str, Method]
    batch_size: int = 8
    max_new_tokens: int = 32
    seed: int = 0

    @classmethod
    def usual(cls, settings: Settings, task: Benchmark, **options: Any) -> Comparison:
        """The plain model, every image token, the model's own boxes; and where the data has true
        regions, those and random boxes as a control."""
        sources = ["whole", "cof"]
        if any(example.region for example in task.examples):
            sources += ["oracle", "random"]
        methods = {} if task.stage_one else {"plain": PLAIN}
        if not task.stage_one:
            methods |= {where: Method.of(where, settings) for where in sources}  # type: ignore[arg-type]
        return cls(settings, methods, **options)

    def run(
        self, engine: Engine, task: Benchmark, out: Path, *, console: Console
    ) -> dict[str, Any]:
        """Ask what `out` does not hold yet, and gather all figures.

        A shard's answers have a file of their own; a run without shards begins with those of all
        shards that `out` holds.

        Args:
            engine: the model.
            task: the benchmark.
            out: folder of the answers; a run that was killed goes on from there.
            console: for progress.

        Returns:
            What `results.json` holds.

        Raises:
            CofError: the data has problems, or `out` holds answers of another run.
        """
        examples = task.examples
        about = self._about(engine, task)
        check_same_run(out / "run.json", about)
        write_atomically(out / "questions.jsonl", asked(_unsharded(task)))
        write_atomically(out / "data.json", json.dumps(where(task, out)) + "\n")
        runner = self._runner(engine, task, out)
        shards = [] if task.shard[1] > 1 else shard_answers(out)
        if shards:
            store = Store(runner.path)
            for path in shards:
                store.append(Store(path).records())
        methods = list(self.methods.values())
        with progress_bar(console) as bar:
            counter = bar.add_task(task.name, total=runner.replies(methods))
            store = runner.run(methods, lambda done: bar.advance(counter, done))
        keys = {name: method.key for name, method in self.methods.items()}
        replies = Replies.read(portable(examples), [*shards, runner.path])
        return gathered(task, about, keys, replies, out)

    def _runner(self, engine: Engine, task: Benchmark, out: Path) -> Runner:
        return Runner.of(
            engine,
            task,
            answers_path(out, task.shard),
            self.settings,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )

    def _about(self, engine: Engine, task: Benchmark) -> dict[str, Any]:
        return {
            "benchmark": task.name,
            "prompt_style": task.prompt_style,
            "limit": task.limit,
            "data": asked_digest(_unsharded(task)),
            **about_engine(engine),
            "grounding_prompt": self.settings.grounding_template or engine.dialect.template,
            "grounding_max_new_tokens": self.settings.grounding_max_new_tokens,
            "boxes": self.settings.boxes,
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


def _unsharded(task: Benchmark) -> list[Example]:
    """The questions of all shards; those of the task itself are not read again."""
    return task.examples if task.shard == (1, 1) else replace(task, shard=(1, 1)).examples
