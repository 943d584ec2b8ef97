"""Settings chosen on validation questions: each candidate answers all, and the best is kept."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError, CofWarning
from cof.eval.data.base import Benchmark
from cof.eval.examples import Example, Subset
from cof.eval.json_files import parse_json, read_json_object, write_atomically
from cof.eval.methods import PLAIN, Method
from cof.eval.run_info import check_same_run, describe_engine, digest, progress_bar
from cof.eval.runner import Runner
from cof.settings import Settings

CHOSEN = "chosen.json"
RULE = "most validation questions answered rightly (the mean over the tasks); of equals the mildest"

Methods = Mapping[str, Method]
Round = Callable[[Methods], Mapping[str, Sequence[Method]]]
"""The choices so far -> the candidates for each name."""


@dataclass(frozen=True)
class Choice:
    """The decision of the validation questions.

    Attributes:
        chosen: one method for each name; of a file that of `cof`.
        questions: fingerprints of the questions that it was made on.
        share: of the data's images, on which it was made; 1: all of them.
        plain: the plain model's accuracy on them.
        tried: by name, key, accuracy and number of questions of every candidate.
        about: the model, the data, the versions and the date, for people.
    """

    chosen: Methods
    questions: frozenset[str]
    share: float = 1.0
    plain: float = 0.0
    tried: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Those of `cof`."""
        return self.chosen["cof"].settings

    @classmethod
    def read(cls, path: Path) -> Choice:
        """The choice in a file.

        Raises:
            CofError: there is no such file, or it is no choice.
        """
        if not path.is_file():
            raise CofError(f"There is no {path}: `cof sweep` writes it as {CHOSEN}.")
        try:
            record = parse_json(path.read_bytes())
            return cls(
                {"cof": Method(Settings.read(record["settings"]))},
                frozenset(map(str, record["questions"])),
                float(record["share"]),
                about=dict(record["about"]),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise CofError(f"{path} is no choice of `cof sweep` ({error!r}).") from error

    def write(self, path: Path) -> None:
        """Write the choice, all or nothing."""
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        record = {
            **self.as_dict(),
            "settings": self.settings.as_dict() if "cof" in self.chosen else None,
            "share": self.share,
            "about": {**self.about, "date": today},
            "questions": sorted(self.questions),
        }
        write_atomically(path, json.dumps(record, indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """What reports show of it, ready for JSON."""
        return {
            "rule": RULE,
            "questions": len(self.questions),
            "plain": self.plain,
            "chosen": {name: method.key for name, method in self.chosen.items()},
            "tried": {name: list(methods) for name, methods in self.tried.items()},
        }

    def seen(self, examples: Sequence[Example]) -> int:
        """How many of the questions the choice was made on."""
        return sum(fingerprint(example) in self.questions for example in examples)

    def check(self, examples: Sequence[Example], model_name: str) -> None:
        """Refuse questions that the choice was made on; warn of another model.

        Raises:
            CofError: some are among them; the message says how many.
        """
        if same := self.seen(examples):
            raise CofError(
                f"{same} of these questions are among those on which the settings were chosen: "
                "measure on other data."
            )
        own, other = str(self.about.get("model")), Path(model_name).name
        if own != other:
            warnings.warn(
                f"These settings were chosen with {own}, and this is {other}: lambda and alpha do "
                "not carry over from model to model.",
                CofWarning,
                stacklevel=2,
            )


def choose(
    engine: Engine,
    tasks: Mapping[str, Benchmark],
    rounds: Sequence[Round],
    out: Path,
    *,
    console: Console,
    kinds: tuple[str, ...] = (),
    batch_size: int = 48,
    max_new_tokens: int = 16,
) -> Choice:
    """Choose on validation tasks, and freeze the choice in `chosen.json`. A run that was
    interrupted goes on.

    Args:
        engine: the model.
        tasks: the tasks to choose on.
        rounds: each chooses one method for each of its names; later ones know the choice so far.
        out: folder of everything.
        console: for progress.
        kinds: of questions to choose by; empty: all. Questions that looking cannot help only add
            chance to the choice.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.

    Raises:
        CofError: the tasks have no answers, or `out` belongs to another choice.
    """
    frozen = out / CHOSEN
    if [*out.glob("answers*.jsonl"), *out.glob("*/answers*.jsonl")] and not frozen.exists():
        raise CofError(
            f"{out} holds answers to test questions, but its {CHOSEN} is gone: nothing can be "
            "chosen any more after that. Write to another folder."
        )
    asked = {name: Subset(task, _answered(task, kinds)) for name, task in tasks.items()}
    examples = list(itertools.chain.from_iterable(each.examples for each in asked.values()))
    first = next(iter(tasks.values()))
    about = {
        **describe_engine(engine),
        "prompt_style": first.prompt_style,
        "validation": digest("".join(e.id + e.prompt for e in examples)),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    check_same_run(out / "validation" / "run.json", about)

    def measure(methods: Sequence[Method]) -> dict[str, float]:
        """By key, the mean over the tasks of the share of right answers."""
        shares: dict[str, list[float]] = {}
        with progress_bar(console) as bar:
            for name, task in asked.items():
                path = out / "validation" / f"{name}.jsonl"
                runner = Runner(engine, task, path, batch_size, max_new_tokens)
                counter = bar.add_task(name, total=len(task.examples))
                store = runner.run(
                    [PLAIN, *methods, *(method.without_threshold for method in methods)],
                    advance=partial(bar.advance, counter),
                )
                for key in {PLAIN.key, *(method.key for method in methods)}:
                    right = [bool(record.right) for record in store.method(key).values()]
                    shares.setdefault(key, []).append(fmean(right))
        return {key: fmean(each) for key, each in shares.items()}

    chosen: dict[str, Method] = {}
    tried: dict[str, list[dict[str, Any]]] = {}
    accuracy: dict[str, float] = {}
    for candidates_of in rounds:
        candidates = candidates_of(chosen)
        accuracy |= measure([method for methods in candidates.values() for method in methods])
        for name, methods in candidates.items():
            chosen[name] = rank(methods, accuracy)[0]
            known = {each["key"] for each in tried.setdefault(name, [])}
            tried[name] += [
                {"key": key, "accuracy": round(accuracy[key], 6), "questions": len(examples)}
                for key in (method.key for method in methods)
                if key not in known
            ]
    share = first.share if first.part == "validation" else 1.0
    seen = frozenset(map(fingerprint, examples))
    choice = Choice(chosen, seen, share, round(accuracy[PLAIN.key], 6), tried, about)
    if not frozen.exists():
        choice.write(frozen)
    elif read_json_object(frozen).get("chosen") != choice.as_dict()["chosen"]:
        raise CofError(f"{frozen} holds another choice: write to another folder.")
    return choice


def make_candidates(settings: Settings, **values: Sequence[Any]) -> list[Method]:
    """Every combination of values, without those that differ in nothing that matters.

    Args:
        settings: everything else.
        values: by option, the values to try.

    >>> [each.key for each in make_candidates(Settings(focus="crop"), expand=(1, 2))]
    ['prompt x crop expand=1', 'prompt x crop expand=2']
    """
    methods = [
        Method(settings.changed(**dict(zip(values, combination, strict=True))))
        for combination in itertools.product(*values.values())
    ]
    return list({method.key: method for method in methods}.values())


def rank(methods: Sequence[Method], accuracy: Mapping[str, float]) -> list[Method]:
    """The most accurate first; of equals the mildest: lambda nearest to 1, then alpha nearest to 1,
    then the paper's scope and layers (all of them), then as they come.

    >>> methods = [Method(Settings(strength=s)) for s in (8, 2, 4)]
    >>> accuracy = {methods[0].key: 0.7, methods[1].key: 0.5, methods[2].key: 0.7}
    >>> [method.settings.option("strength") for method in rank(methods, accuracy)]
    [4.0, 8.0, 2.0]
    """

    def order(method: Method) -> tuple[float | bool, ...]:
        settings = method.settings
        return (
            -accuracy[method.key],
            round(abs(math.log(settings.option("strength") or 1)), 9),
            round(abs(math.log(settings.expand)), 9),
            settings.option("scope") != "all",
            settings.option("layers") is not None,
        )

    return sorted(methods, key=order)


def fingerprint(example: Example) -> str:
    """Tells a question from others, whatever its prompt style."""
    return digest("\t".join((example.id, example.question or example.prompt, example.answer)))


def _answered(task: Benchmark, kinds: Sequence[str]) -> list[Example]:
    """The questions with an answer, of these kinds; refused if there are none."""
    examples = [e for e in task.examples if e.answer and (not kinds or e.kind in kinds)]
    if not examples:
        there = ", ".join(dict.fromkeys(e.kind for e in task.examples if e.answer and e.kind))
        raise CofError(
            f"{task.path} has no answers to choose settings by"
            + (f" among the kinds asked for; it has {there}." if there else ".")
        )
    return examples
