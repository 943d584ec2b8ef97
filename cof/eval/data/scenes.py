"""Scenes that `cof scenes` drew: the embedded benchmark, `images/*.png` and `questions.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cof.errors import CofError
from cof.eval.data.base import Benchmark, Replies, unparsed
from cof.eval.examples import Example
from cof.eval.figures import Figure, find_clusters, share
from cof.eval.rules import Rules
from cof.eval.scoring import exact_match
from cof.tiny.benchmark import FINE
from cof.tiny.scenes import COLORS, LETTERS, SHAPES

YES_NO = ("yes", "no")
_CHOICES: dict[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "letter": tuple(LETTERS),
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": ("small", "large"),
    "choice": tuple("ABCD"),
    "count": tuple(str(n) for n in range(21)),
}


@dataclass(frozen=True)
class Scenes(Benchmark):
    """`fine` is the accuracy on questions about one small detail. Rule sets and prompt styles make
    no difference: a reply's answer is the one possible answer that it names.

    Attributes:
        kinds: only questions of these kinds; empty: all.
    """

    kinds: tuple[str, ...] = ()

    name: ClassVar[str] = "scenes"
    headline: ClassVar[tuple[str, ...]] = ("fine", "accuracy")

    def read(self, problems: list[str]) -> list[Example]:
        path = self.path / "questions.jsonl"
        if not path.is_file():
            if self.path.is_file():
                raise CofError(f"{self.path} is a file: give the folder that `cof scenes` made.")
            raise CofError(f"There is no {path}: make it with `cof scenes {self.path}`.")
        examples = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            try:
                examples.append(self._example(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"{path.name}, line {number} is no question ({error})")
        return [e for e in examples if not self.kinds or e.kind in self.kinds]

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        # whether a count or an object is as stated is a yes/no question whatever its kind
        choices = YES_NO if example.answer in YES_NO else _CHOICES[example.kind]
        return exact_match(text, example.answer, choices).parsed

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """In percent: accuracy on the `fine` kinds, all, and each kind, and `unparsed` replies."""
        answers = self.read_answers(examples, replies, rules)
        clusters = find_clusters(examples)

        def accuracy(kinds: Sequence[str]) -> Figure:
            chosen = {e.id: answers[e.id] == e.answer for e in examples if e.kind in kinds}
            return share(chosen, clusters)

        kinds = list(dict.fromkeys(e.kind for e in examples))
        fine = {"fine": accuracy(FINE)} if any(kind in FINE for kind in kinds) else {}
        return {
            **fine,
            "accuracy": accuracy(kinds),
            **{kind: accuracy([kind]) for kind in kinds},
            "unparsed": unparsed(answers, clusters),
        }

    def groups(self, examples: Sequence[Example]) -> dict[str, list[Example]]:
        """Those about fine details come first, also by the number of objects."""
        fine = [e for e in examples if e.kind in FINE]
        groups = {"fine": fine} if fine else {}
        for n in sorted({e.num_objects for e in fine if e.num_objects}):
            groups[f"fine, {n} objects"] = [e for e in fine if e.num_objects == n]
        return groups | super().groups(examples)

    def _example(self, record: dict[str, Any]) -> Example:
        region = record["region"]
        if record["kind"] not in _CHOICES and record["answer"] not in YES_NO:
            raise ValueError(f"it is of no known kind: {record['kind']!r}")
        return Example(
            id=record["id"],
            image=Path(self.path / record["image"]),
            prompt=record["question"],
            answer=record["answer"],
            region=None if region is None else tuple(region),
            kind=record["kind"],
            num_objects=record["num_objects"],
            single=len(record["targets"]) == 1,
        )
