"""A study: settings chosen on validation questions, frozen, and measured on test questions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.chosen import CHOSEN, Chosen
from cof.eval.data.base import Benchmark
from cof.eval.evaluate import Evaluation
from cof.eval.examples import Example, Subset
from cof.eval.halving import cumulative_sizes, rank
from cof.eval.methods import PLAIN, Method
from cof.eval.run_info import check_same_run, describe_engine, digest, progress_bar
from cof.eval.runner import Runner
from cof.settings import Settings

RULE = "most validation questions answered rightly (the mean over the tasks); of equals the mildest"

Methods = Mapping[str, Method]
Round = Callable[[Methods], Mapping[str, Sequence[Method]]]
"""What was chosen before -> the candidates for each name, the mildest first."""


@dataclass(frozen=True)
class Study:
    """What is chosen, and what is compared then.

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
            What `results.json` holds.

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
        if (out / "answers.jsonl").exists() and not (out / "choice.json").exists():
            raise CofError(
                f"{out} holds answers to test questions, but its choice.json is gone: nothing can "
                "be chosen any more after that. Write to another folder."
            )
        asked = {name: self._order(task) for name, task in tasks.items()}
        about = {
            "study": self.name,
            **describe_engine(engine),
            "prompt_style": next(iter(tasks.values())).prompt_style,
            "validation": digest("".join(e.id + e.prompt for of in asked.values() for e in of)),
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        work = out / "validation"
        check_same_run(work / "run.json", about)
        chosen: dict[str, Method] = {}
        tried: dict[str, list[dict[str, Any]]] = {}
        plain = 0.0
        for number, make_candidates in enumerate(self.rounds):
            candidates = make_candidates(chosen)
            accuracy: dict[str, float] = {}
            alive = {name: list(methods) for name, methods in candidates.items()}
            ends = {
                name: cumulative_sizes(len(examples), self.rungs, self.keep)
                for name, examples in asked.items()
            }
            rungs = max(map(len, ends.values()))
            cuts = {name: [0] * (rungs - len(of) + 1) + of for name, of in ends.items()}
            tally = Tally()
            for rung in range(rungs):
                methods = list(itertools.chain.from_iterable(alive.values()))
                with progress_bar(console) as bar:
                    for name, task in tasks.items():
                        start, end = cuts[name][rung : rung + 2]
                        part = Subset(task, asked[name][start:end])
                        path = work / f"{name}-{number + 1}-{rung + 1}.jsonl"
                        self._ask(engine, part, path, methods, tally, bar)
                accuracy |= tally.accuracy([PLAIN, *methods])
                for name, methods in alive.items():
                    best = rank(methods, accuracy)
                    last = rung == rungs - 1
                    kept = 1 if last else max(1, math.ceil(self.keep * len(best)))
                    alive[name] = best[:kept]
            plain = accuracy[PLAIN.key]
            chosen |= {name: methods[0] for name, methods in alive.items()}
            tried |= {
                name: [
                    {
                        "key": of.key,
                        "accuracy": round(accuracy[of.key], 6),
                        "questions": tally.asked(of),
                    }
                    for of in methods
                ]
                for name, methods in candidates.items()
            }
        examples = [e for of in asked.values() for e in of]
        choice = Choice(chosen, tried, round(plain, 6), len(examples))
        choice.write(out / "choice.json")
        if "cof" in chosen:
            first = next(iter(tasks.values()))
            share = first.share if first.part == "validation" else 1.0
            settings = chosen["cof"].settings
            Chosen.make(examples, settings, share=share, about=about).write(out / CHOSEN)
        return choice

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
        self,
        engine: Engine,
        part: Subset,
        path: Path,
        methods: Sequence[Method],
        tally: Tally,
        bar: Any,
    ) -> None:
        if not part.examples:
            return
        runner = Runner(
            engine,
            part,
            path,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )
        wanted = {of.key: of for of in (PLAIN, *methods, *(m.always_looks for m in methods))}
        counter = bar.add_task(path.stem, total=runner.count_answers(list(wanted.values())))
        store = runner.run(list(wanted.values()), progress=partial(bar.advance, counter))
        for key in wanted:
            tally.add(part.name, key, [bool(r.right) for r in store.method(key).values()])


class Tally:
    """Right answers by task and method, over all rungs so far."""

    def __init__(self) -> None:
        self._right: dict[tuple[str, str], list[bool]] = {}

    def add(self, task: str, key: str, right: Sequence[bool]) -> None:
        """Some more answers of a method to a task."""
        self._right.setdefault((task, key), []).extend(right)

    def accuracy(self, methods: Sequence[Method]) -> dict[str, float]:
        """By key, the mean over the tasks of the share of right answers."""
        return {
            method.key: sum(shares) / len(shares)
            for method in methods
            for shares in ([sum(of) / len(of) for of in self._of(method)],)
        }

    def asked(self, method: Method) -> int:
        """How many questions a method has answered."""
        return sum(map(len, self._of(method)))

    def _of(self, method: Method) -> list[list[bool]]:
        return [of for (_, key), of in self._right.items() if key == method.key]


@dataclass(frozen=True)
class Choice:
    """What validation questions decided.

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
            "tried": {name: list(of) for name, of in self.tried.items()},
        }

    def write(self, path: Path) -> None:
        """Freeze the choice.

        Raises:
            CofError: the file holds another choice.
        """
        record = self.as_dict()
        if path.exists() and json.loads(path.read_text("utf-8"))["chosen"] != record["chosen"]:
            raise CofError(f"{path} holds another choice: write to another folder.")
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
