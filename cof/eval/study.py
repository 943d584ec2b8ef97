"""A study: settings chosen on validation questions, frozen, and measured on test questions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.chosen import CHOSEN, Chosen
from cof.eval.data.base import Benchmark
from cof.eval.evaluate import Evaluation
from cof.eval.examples import Example, Subset
from cof.eval.halving import cumulative_sizes, rank
from cof.eval.json_files import read_json_object, write_atomically
from cof.eval.methods import PLAIN, Method
from cof.eval.run_info import check_same_run, describe_engine, digest, progress_bar
from cof.eval.runner import Runner
from cof.eval.store import Store
from cof.settings import Settings

RULE = "most validation questions answered rightly (the mean over the tasks); of equals the mildest"

Methods = Mapping[str, Method]
Round = Callable[[Methods], Mapping[str, Sequence[Method]]]
"""The choices so far -> the candidates for each name, the mildest first."""


@dataclass(frozen=True)
class Study:
    """Methods to choose among, and methods to compare then.

    Attributes:
        name: of the study, for its report.
        rounds: each chooses one method for each of its names; later ones know the choice so far.
        compare: the choice -> the methods that are measured on the test questions, by name.
        grounded: the choice -> settings whose stage 1 is measured.
        kinds: of validation questions to choose by; empty: all. Questions that looking cannot help
            only add chance to the choice.
        rungs: of the successive halving in each round, at most; 1: every candidate answers every
            question.
        keep: the share of candidates that goes on from a rung.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.
        seed: of the order of the questions, of the control's boxes and of the bootstrap.

    Raises:
        CofError: a number is out of range.
    """

    name: str
    rounds: Sequence[Round]
    compare: Callable[[Methods], Methods]
    grounded: Callable[[Methods], Sequence[Settings]] = lambda chosen: ()
    kinds: tuple[str, ...] = ()
    rungs: int = 1
    keep: float = 1 / 3
    batch_size: int = 48
    max_new_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rungs < 1 or not 0 < self.keep < 1:
            raise CofError("A study has at least 1 rung and keeps a share in 0..1 of its settings.")

    def run(
        self,
        engine: Engine,
        validation: Mapping[str, Benchmark],
        test: Mapping[str, Benchmark],
        out: Path,
        *,
        console: Console,
        **more: Any,
    ) -> dict[str, Any]:
        """Choose, freeze, and measure; a run that was interrupted goes on.

        Args:
            engine: the model.
            validation: the tasks to choose on.
            test: the tasks to measure on.
            out: folder of everything.
            console: for progress.
            more: goes into the results as it is.

        Returns:
            The content of `results.json`.

        Raises:
            CofError: `out` holds answers of another run, or test answers without their choice.
        """
        choice = self.choose(engine, validation, out, console=console)
        return self.measure(engine, test, choice, out, console=console, **more)

    def choose(
        self, engine: Engine, tasks: Mapping[str, Benchmark], out: Path, *, console: Console
    ) -> Choice:
        """Choose on the validation tasks, and freeze the choice in `choice.json`; the settings of
        `cof`, if that is among the names, in `chosen.json` too.

        Raises:
            CofError: the tasks have no answers, or `out` belongs to another study.
        """
        answered = [*out.glob("answers*.jsonl"), *out.glob("*/answers*.jsonl")]
        if answered and not (out / "choice.json").exists():
            raise CofError(
                f"{out} holds answers to test questions, but its choice.json is gone: nothing can "
                "be chosen any more after that. Write to another folder."
            )
        asked = {name: self._order(task) for name, task in tasks.items()}
        examples = list(itertools.chain.from_iterable(asked.values()))
        about = {
            "study": self.name,
            **describe_engine(engine),
            "prompt_style": next(iter(tasks.values())).prompt_style,
            "validation": digest("".join(e.id + e.prompt for e in examples)),
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        check_same_run(out / "validation" / "run.json", about)
        chosen: dict[str, Method] = {}
        tried: dict[str, dict[str, dict[str, Any]]] = {}
        plain = 0.0
        for make_candidates in self.rounds:
            candidates = make_candidates(chosen)
            best, accuracy, tally = self._halve(engine, tasks, asked, candidates, out, console)
            plain = accuracy[PLAIN.key]
            chosen |= best
            for name, methods in candidates.items():
                tried.setdefault(name, {}).update(
                    (
                        method.key,
                        {
                            "key": method.key,
                            "accuracy": round(accuracy[method.key], 6),
                            "questions": tally.count(method),
                        },
                    )
                    for method in methods
                )
        lists = {name: list(methods.values()) for name, methods in tried.items()}
        choice = Choice(chosen, lists, round(plain, 6), len(examples))
        choice.write(out / "choice.json")
        if "cof" in chosen and not (out / CHOSEN).exists():
            first = next(iter(tasks.values()))
            share = first.share if first.part == "validation" else 1.0
            settings = chosen["cof"].settings
            Chosen.make(examples, settings, share=share, about=about).write(out / CHOSEN)
        return choice

    def _halve(
        self,
        engine: Engine,
        tasks: Mapping[str, Benchmark],
        asked: Mapping[str, Sequence[Example]],
        candidates: Mapping[str, Sequence[Method]],
        out: Path,
        console: Console,
    ) -> tuple[dict[str, Method], dict[str, float], Tally]:
        """The best method for each name, the accuracy of each by key, and their answers."""
        alive = {name: list(methods) for name, methods in candidates.items()}
        sizes = {
            name: cumulative_sizes(len(examples), self.rungs, self.keep)
            for name, examples in asked.items()
        }
        rungs = max(map(len, sizes.values()))
        # tasks with few questions ask them in the last rungs
        ends = {name: [0] * (rungs - len(own) + 1) + own for name, own in sizes.items()}
        accuracy: dict[str, float] = {}
        tally = Tally()
        for rung in range(rungs):
            methods = list(itertools.chain.from_iterable(alive.values()))
            with progress_bar(console) as bar:
                for name, task in tasks.items():
                    start, end = ends[name][rung : rung + 2]
                    part = Subset(task, asked[name][start:end])
                    if part.examples:
                        path = out / "validation" / f"{name}-{rung + 1}.jsonl"
                        store = self._ask(engine, part, path, methods, bar)
                        tally.add(name, store)
            accuracy |= tally.accuracy([PLAIN, *methods])
            for name, methods in alive.items():
                keep = 1 if rung == rungs - 1 else max(1, math.ceil(self.keep * len(methods)))
                alive[name] = rank(methods, accuracy)[:keep]
        return {name: methods[0] for name, methods in alive.items()}, accuracy, tally

    def measure(
        self,
        engine: Engine,
        tasks: Mapping[str, Benchmark],
        choice: Choice,
        out: Path,
        *,
        console: Console,
        **more: Any,
    ) -> dict[str, Any]:
        """Measure the frozen choice on test tasks; see `run`."""
        evaluation = Evaluation(
            self.compare(choice.chosen),
            tuple(self.grounded(choice.chosen)),
            self.batch_size,
            self.max_new_tokens,
            self.seed,
        )
        choice_numbers = {"rule": RULE, **choice.as_dict()}
        return evaluation.run(
            engine, tasks, out, console=console, study=self.name, choice=choice_numbers, **more
        )

    def _order(self, task: Benchmark) -> list[Example]:
        """The validation questions in an order that depends on their ids alone, so that every rung
        has questions of all kinds about many images."""
        examples = [
            e for e in task.examples if e.answer and (not self.kinds or e.kind in self.kinds)
        ]
        if not examples:
            there = ", ".join(dict.fromkeys(e.kind for e in task.examples if e.answer and e.kind))
            raise CofError(
                f"{task.path} has no answers to choose settings by"
                + (f" among the kinds asked for; it has {there}." if there else ".")
            )
        if self.rungs == 1:
            return examples
        return sorted(examples, key=lambda e: digest(f"{self.seed}\t{e.id}"))

    def _ask(
        self, engine: Engine, part: Subset, path: Path, methods: Sequence[Method], bar: Progress
    ) -> Store:
        runner = Runner(
            engine,
            part,
            path,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )
        counter = bar.add_task(path.stem, total=len(part.examples))
        asked = [PLAIN, *methods, *(method.without_threshold for method in methods)]
        return runner.run(asked, advance=partial(bar.advance, counter))


class Tally:
    """Answers of methods to tasks, right or wrong, over all rungs so far."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[str, list[bool]]] = {}  # by method, then by task

    def add(self, task: str, store: Store) -> None:
        """Some more answers to a task."""
        for record in store.records():
            by_task = self._answers.setdefault(record.method, {})
            by_task.setdefault(task, []).append(bool(record.right))

    def accuracy(self, methods: Iterable[Method]) -> dict[str, float]:
        """By key, the mean over the tasks of the share of right answers."""
        return {
            method.key: fmean(map(fmean, self._answers[method.key].values())) for method in methods
        }

    def count(self, method: Method) -> int:
        """How many questions a method has answered."""
        return sum(map(len, self._answers[method.key].values()))


@dataclass(frozen=True)
class Choice:
    """The decision of the validation questions.

    Attributes:
        chosen: one method for each name.
        tried: by name, key, accuracy and number of questions of every candidate.
        plain: the plain model's accuracy on them.
        questions: how many there are.
    """

    chosen: Methods
    tried: Mapping[str, Sequence[Mapping[str, Any]]]
    plain: float
    questions: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "questions": self.questions,
            "plain": self.plain,
            "chosen": {name: method.key for name, method in self.chosen.items()},
            "tried": {name: list(methods) for name, methods in self.tried.items()},
        }

    def write(self, path: Path) -> None:
        """Freeze the choice.

        Raises:
            CofError: the file holds another choice.
        """
        record = self.as_dict()
        if path.exists() and read_json_object(path).get("chosen") != record["chosen"]:
            raise CofError(f"{path} holds another choice: write to another folder.")
        write_atomically(path, json.dumps(record, indent=1) + "\n")
