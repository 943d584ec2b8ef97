"""Lambda, alpha, scope, layers and heads chosen on validation questions, and frozen.

Stage 1 is asked once for every question; all settings share its boxes. The choice is that of CoF
with its own boxes, by the share of right answers (`cof.eval.halving`). It is written down together
with what it was made on before any test question is read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.about import about_engine, asked_digest, check_same_run, digest, progress_bar
from cof.eval.chosen import Chosen
from cof.eval.data.base import Benchmark
from cof.eval.halving import Rung, Said, cumulative, cut, halve
from cof.eval.methods import PLAIN, Method
from cof.eval.run import Runner
from cof.eval.scoring import Score
from cof.eval.store import write_atomically
from cof.eval.tasks import Example, Task
from cof.settings import Settings
from cof.types import Scope

CHOSEN = "chosen.json"

Indices = tuple[int, ...] | None


@dataclass(frozen=True)
class Grid:
    """The settings to choose from: every combination.

    Attributes:
        strengths: lambdas.
        expands: alphas.
        scopes: of the bias.
        layers, heads: that carry it; None: all.
    """

    strengths: tuple[float, ...] = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
    expands: tuple[float, ...] = (1.0, 1.3, 1.6)
    scopes: tuple[Scope, ...] = ("all", "text")
    layers: tuple[Indices, ...] = (None,)
    heads: tuple[Indices, ...] = (None,)

    def methods(self, base: Settings) -> list[Method]:
        """CoF with each of them, all else as in `base`; the mildest first."""
        cells = itertools.product(
            self.strengths, self.expands, self.scopes, self.layers, self.heads
        )
        return [
            Method.of(
                "cof",
                base.changed(
                    strength=strength, expand=expand, scope=scope, layers=layers, heads=heads
                ),
            )
            for strength, expand, scope, layers, heads in cells
        ]


@dataclass(frozen=True)
class Sweep:
    """How settings are chosen.

    Attributes:
        settings: everything that is not swept, stage 1's among them.
        grid: what is.
        rungs: of the halving, at most; 1: every setting answers every question.
        keep: the share of settings that goes on from a rung.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.
        seed: of the order in which the questions are asked.
        kinds: of questions to choose by; none: all. Questions that looking cannot help only add
            chance to the choice.

    Raises:
        CofError: a number is out of range, or the settings leave nothing to choose.
    """

    settings: Settings
    grid: Grid = field(default_factory=Grid)
    rungs: int = 3
    keep: float = 1 / 3
    batch_size: int = 8
    max_new_tokens: int = 32
    seed: int = 0
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rungs < 1 or not 0 < self.keep < 1:
            raise CofError("A sweep has at least 1 rung and keeps a share in 0..1 of its settings.")
        if self.settings.adaptive is not None:
            raise CofError("A rule is fitted to settings that are chosen: sweep without it first.")

    def run(self, engine: Engine, task: Benchmark, out: Path, *, console: Console) -> Chosen:
        """Choose, unless `out` holds the choice, and freeze it in `chosen.json`.

        Args:
            engine: the model.
            task: the validation questions.
            out: `work/` in it holds the answers; a run that was killed goes on from there.
            console: for progress.

        Returns:
            The choice; `sweep.json` in `out` holds what every setting did.

        Raises:
            CofError: the questions have no answers, `out` belongs to another sweep, or the test
                part was read without a choice.
        """
        if (out / "test").exists() and not (out / CHOSEN).exists():
            raise CofError(
                f"{out / 'test'} holds answers to the test part, but {CHOSEN} is gone: nothing can "
                "be chosen any more after that. Sweep into another folder."
            )
        examples = shuffled([e for e in task.examples if e.answer and self._counts(e)], self.seed)
        if not examples:
            there = ", ".join(dict.fromkeys(e.kind for e in task.examples if e.answer and e.kind))
            raise CofError(
                f"{task.path} has no answers to choose settings by"
                + (f" among the kinds asked for; it has {there}." if there else ".")
            )
        methods = self.grid.methods(self.settings)
        ends = cumulative(len(examples), self.rungs, self.keep)
        about = self._about(engine, task, examples)
        check_same_run(out / "work" / "run.json", about)
        parts = [Questions(task, tuple(rows)) for rows in cut(examples, ends)]
        runners = [
            Runner.of(
                engine,
                part,
                out / "work" / f"rung-{number}.jsonl",
                self.settings,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
            )
            for number, part in enumerate(parts, start=1)
        ]
        plain: list[int] = []
        with progress_bar(console) as bar:

            def ask(number: int, alive: Sequence[Method]) -> Said:
                wanted = [PLAIN, *alive]
                title = f"rung {number + 1} of {len(runners)}: {len(alive)} settings"
                counter = bar.add_task(title, total=runners[number].replies(wanted))
                store = runners[number].run(wanted, lambda done: bar.advance(counter, done))
                plain.append(sum(bool(r.right) for r in store.method(PLAIN.key).values()))
                return {method.key: store.method(method.key) for method in alive}

            rungs = halve(methods, len(runners), self.keep, ask)
        best = rungs[-1].best[0]
        numbers = {
            "about": about,
            "settings": {method.key: settings_of(method) for method in methods},
            "rungs": _rungs(rungs, list(itertools.accumulate(plain))),
            "chosen": best.key,
        }
        write_atomically(out / "sweep.json", json.dumps(numbers, indent=1) + "\n")
        if not (out / CHOSEN).exists():
            share = task.share if task.part == "validation" else 1.0
            shown = {**about, "rule": RULE, "questions": len(examples), **_accuracies(numbers)}
            choice = Chosen.on(examples, best.settings, share=share, about=shown)
            choice.freeze(out / CHOSEN)
        return Chosen.read(out / CHOSEN)

    def _counts(self, example: Example) -> bool:
        return not self.kinds or example.kind in self.kinds

    def _about(
        self, engine: Engine, task: Benchmark, examples: Sequence[Example]
    ) -> dict[str, Any]:
        return {
            "benchmark": task.name,
            "part": task.part,
            "rules": task.rules,
            "prompt_style": task.prompt_style,
            "data": asked_digest(examples),
            **about_engine(engine),
            "base": self.settings.as_dict(),
            "grid": asdict(self.grid),
            "rungs": self.rungs,
            "keep": self.keep,
            "kinds": list(self.kinds),
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


RULE = (
    "most validation questions answered rightly by CoF with its own boxes; of equals the lambda "
    "nearest to 1"
)


@dataclass(frozen=True)
class Questions:
    """Some of a task's questions as a task of their own."""

    task: Task
    examples: tuple[Example, ...]

    @property
    def name(self) -> str:
        return self.task.name

    def num_examples(self) -> int:
        return len(self.examples)

    def get_example(self, index: int) -> Example:
        return self.examples[index]

    def score(self, example: Example, text: str) -> Score:
        return self.task.score(example, text)


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """In an order that depends on their ids alone, so that every rung has questions of all kinds
    about many pictures."""
    return sorted(examples, key=lambda e: digest(f"{seed}\t{e.id}"))


def settings_of(method: Method) -> dict[str, Any]:
    """What is swept, by name."""
    settings = method.settings
    swept = ("strength", "expand", "scope", "layers", "heads")
    return {name: getattr(settings, name) for name in swept}


def halves(layers: int) -> tuple[Indices, ...]:
    """All layers, the lower half of them, the upper half.

    >>> halves(3)
    (None, (0,), (1, 2))
    """
    middle = math.floor(layers / 2)
    return (None, tuple(range(middle)), tuple(range(middle, layers)))


def _rungs(rungs: Sequence[Rung], plain: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "questions": rung.questions,
            "plain": right,
            "right": dict(rung.right),
            "kept": [method.key for method in rung.kept],
        }
        for rung, right in zip(rungs, plain, strict=True)
    ]


def _accuracies(numbers: Mapping[str, Any]) -> dict[str, float]:
    last = numbers["rungs"][-1]
    n = last["questions"]
    return {
        "accuracy": round(last["right"][numbers["chosen"]] / n, 6),
        "plain_accuracy": round(last["plain"] / n, 6),
    }
