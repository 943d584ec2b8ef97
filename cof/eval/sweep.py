"""Settings chosen on validation questions: each candidate answers all, and the best is kept."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError, CofWarning
from cof.eval.data.base import Benchmark
from cof.eval.evaluate import Evaluation, digest, task_folder
from cof.eval.examples import Example, image_digest
from cof.eval.gate import SURE, choose_threshold, right_answers
from cof.eval.json_files import parse_json, write_atomically
from cof.eval.methods import PLAIN, Method
from cof.eval.store import Record, Replies
from cof.settings import Settings

CHOSEN = "chosen.json"
RULE = "most validation questions answered rightly (the mean over the tasks); of equals the mildest"


@dataclass(frozen=True)
class Choice:
    """The decision of the validation questions.

    Attributes:
        settings: the chosen ones.
        questions: fingerprints of the questions that it was made on.
        share: of the data's images, on which it was made; 1: all of them.
        plain: the plain model's accuracy on them.
        tried: the accuracy of every candidate, by its key; empty: no answer was asked for, and
            `questions` has the digests of their images.
        about: the model, the data, the versions and the date, for people; as `asked` the first and
            the last question of each task, as `count` how many chose the method.
    """

    settings: Settings
    questions: frozenset[str]
    share: float = 1.0
    plain: float = 0.0
    tried: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the chosen method."""
        return Method(self.settings).key

    @property
    def best(self) -> str:
        """Names it among those that were tried, to which a gate adds a threshold."""
        return self.key if self.key in self.tried else Method(self.settings).without_threshold.key

    @classmethod
    def read(cls, path: Path) -> Choice:
        """The choice in a file.

        Raises:
            CofError: there is no such file, or it is no choice.
        """
        if not path.is_file():
            raise CofError(f"There is no {path}: `cof sweep` and `cof calibrate` write choices.")
        try:
            record = parse_json(path.read_bytes())
            return cls(
                Settings(**record["settings"]),
                frozenset(map(str, record["questions"])),
                float(record["share"]),
                float(record.get("plain", 0.0)),
                dict(record.get("tried", {})),
                dict(record["about"]),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise CofError(f"{path} is no choice of settings ({error!r}).") from error

    def write(self, path: Path) -> None:
        """Write the choice, all or nothing."""
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        answers = {"rule": RULE, "plain": self.plain, "tried": self.tried} if self.tried else {}
        record = {
            "chosen": self.key,
            **answers,
            "settings": self.settings.as_dict(),
            "share": self.share,
            "about": {**self.about, "date": today},
            "questions": sorted(self.questions),
        }
        write_atomically(path, json.dumps(record, indent=1) + "\n")

    def seen(self, examples: Sequence[Example]) -> int:
        """How many of the questions the choice was made on, or on their images."""
        known = fingerprint if self.tried else lambda example: image_digest(example.image)
        return sum(known(example) in self.questions for example in examples)

    def check(self, examples: Sequence[Example], model_name: str) -> None:
        """Refuse questions that the choice was made on; warn of another model.

        Raises:
            CofError: some are among them; the message says how many.
        """
        if same := self.seen(examples):
            raise CofError(
                f"{same} of these questions or their images are among those on which the settings "
                "were chosen: measure on other data."
            )
        own, other = str(self.about.get("model")), Path(model_name).name
        if own != other:
            warnings.warn(
                f"These settings were chosen with {own}, and this is {other}: lambda, alpha and "
                "heads do not carry over from model to model.",
                CofWarning,
                stacklevel=2,
            )


def choose(
    engine: Engine,
    tasks: Mapping[str, Benchmark],
    methods: Sequence[Method],
    path: Path,
    *,
    console: Console,
    at_most: float | None = None,
    **how: Any,
) -> Choice:
    """Choose one of several methods on validation tasks, and freeze the choice in a file. A run
    that was interrupted goes on, and choices in one folder ask nothing twice.

    Args:
        engine, tasks, console: of `Evaluation.ask`.
        methods: the candidates.
        path: of the choice; the answers go to `validation/` beside it.
        at_most: the share of right answers that looking may break, 0..1: half of the images choose
            the method, and the others when it looks; None: it always does.
        how: `batch_size` and `max_new_tokens` of `Evaluation`.

    Raises:
        CofError: tasks without answers, or too few for the share; the files are another choice's.
    """
    whole = tasks
    if at_most is not None:
        tasks = {name: replace(task, share=task.share / 2) for name, task in tasks.items()}
    answered = {name: [e for e in task.examples if e.answer] for name, task in tasks.items()}
    for name, task in tasks.items():
        if not answered[name]:
            raise CofError(f"{task.path} has no answers to choose settings by.")
    examples = list(itertools.chain.from_iterable(answered.values()))
    asked = [PLAIN, *(method.without_threshold for method in methods), *methods]
    evaluation = Evaluation({method.key: method for method in asked}, **how)
    folder = path.parent / "validation"
    about = evaluation.ask(engine, tasks, folder, console=console)
    shares: dict[str, list[float]] = {}  # of right answers, by key, one for each task
    for name, task in tasks.items():
        replies = _read(task, task_folder(folder, name, tasks), evaluation)
        for key, records in replies.items():
            right = [bool(records[example.id].right) for example in answered[name]]
            shares.setdefault(key, []).append(fmean(right))
    accuracy = {key: round(fmean(each), 6) for key, each in shares.items()}
    first = next(iter(tasks.values()))
    choice = Choice(
        rank(methods, accuracy)[0].settings,
        frozenset(map(fingerprint, examples)),
        first.share if first.part == "validation" else 1.0,
        accuracy[PLAIN.key],
        {method.key: accuracy[method.key] for method in methods},
        {
            **about,
            "asked": {name: f"{a[0].id} to {a[-1].id}" for name, a in answered.items()},
            "count": len(examples),
        },
    )
    if at_most is not None:
        ((_, task),) = whole.items()
        folder, chosen = path.parent / "calibration", Method(choice.settings)
        evaluation = replace(evaluation, methods={PLAIN.key: PLAIN, chosen.key: chosen})
        evaluation.ask(engine, whole, folder, console=console)
        choice = _choose_threshold(choice, task, _read(task, folder, evaluation), at_most)
    if not path.exists():
        choice.write(path)
    elif Choice.read(path).key != choice.key:
        raise CofError(f"{path} holds another choice: write to another folder.")
    return choice


def _read(task: Benchmark, folder: Path, asked: Evaluation) -> dict[str, Mapping[str, Record]]:
    """The answers to a task, read by its rules, by key."""
    return Replies.read(folder, task.shard).score(task.score).answers({k: k for k in asked.methods})


def _choose_threshold(
    choice: Choice, task: Benchmark, replies: Mapping[str, Mapping[str, Record]], at_most: float
) -> Choice:
    """The choice with a threshold (`cof.eval.gate`), by the questions that did not choose."""
    asked = [e for e in task.examples if e.answer and not choice.seen([e])]
    right = right_answers(asked, replies[PLAIN.key], replies[choice.key])
    limit = choose_threshold(right, at_most)
    broken = sum(each.broken and each.confidence <= limit for each in right)
    promise = (
        f"Looking where the plain answer is at most {limit:g} sure breaks at most {at_most:.1%} of "
        f"right answers (mean over images), with {SURE:.0%} confidence, on other questions like "
        f"these: {broken} of {len(right)} right answers about "
        f"{len({each.cluster for each in right})} images were broken"
    )
    return replace(
        choice,
        settings=choice.settings.changed(max_plain_confidence=limit),
        questions=choice.questions | set(map(fingerprint, asked)),
        share=task.share,
        about={**choice.about, "promise": promise},
    )


def tabulate_choices(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """Which settings were tried on which questions, by what they are for: a table of a report."""
    first = next(iter(choices.values()))
    promised = [choice.about["promise"] for choice in choices.values() if "promise" in choice.about]
    n = first.about.get("count", len(first.questions))
    asked = "; ".join(map(" ".join, first.about.get("asked", {}).items()))
    rows = [["", "plain", n, f"{first.plain:.3f}"]]
    for name, each in choices.items():
        chosen = {k: f"{k} (chosen)" if k == each.best else k for k in each.tried}
        rows += [[name, chosen[key], n, f"{share:.3f}"] for key, share in each.tried.items()]
    return {
        "name": "tried",
        "title": "Settings tried",
        "text": f"Chosen on {n} questions ({asked}): {RULE}. None of them is among those "
        f"of the figures above. {'. '.join(promised)}".rstrip(),
        "head": ["for", "settings", "n", "accuracy"],
        "rows": rows,
    }


def make_candidates(settings: Settings, **values: Sequence[Any]) -> list[Method]:
    """Every combination of the values of options, all else as in `settings`; each key once.

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
    """Tells a question from others, whatever its prompt style and wherever its image lies."""
    asked = (example.question or example.prompt, example.answer, image_digest(example.image))
    return digest("\t".join((example.id, *asked)))
