"""Scenes that `cof scenes` drew: the embedded benchmark, `images/*.png` and `questions.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark, read_annotation, split_by
from cof.eval.data.files import Row
from cof.eval.examples import Example
from cof.eval.figures import Figure
from cof.eval.rules import Rules, named_choice
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
    no difference: a reply's answer is the one possible answer that it names."""

    name = "scenes"
    headline = ("fine", "accuracy")
    patterns = ("questions.jsonl",)
    need = ("id", "image", "question", "answer", "kind", "region", "num_objects", "targets")

    def read(self, problems: list[str]) -> list[Example]:
        return self.collect(self._question, problems)

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        # whether a count or an object is as stated is a yes/no question whatever its kind
        choices = YES_NO if example.answer in YES_NO else _CHOICES.get(example.kind, ())
        return named_choice(text, choices)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """In percent: accuracy on the `fine` kinds, all, and each kind, and `unparsed` replies."""
        examples = answers.examples
        fine = [e for e in examples if e.kind in FINE]
        return {
            **({"fine": answers.share(fine)} if fine else {}),
            "accuracy": answers.share(examples),
            **{kind: answers.share(asked) for kind, asked in split_by("kind", examples).items()},
            "unparsed": answers.unparsed(examples),
        }

    def groups(self, examples: Sequence[Example]) -> dict[str, list[Example]]:
        """Those about fine details come first, also by the number of objects."""
        fine = [e for e in examples if e.kind in FINE]
        numbers = sorted(split_by("num_objects", fine).items())
        groups = {"fine": fine} if fine else {}
        groups |= {f"fine, {n} objects": asked for n, asked in numbers}
        return groups | super().groups(examples)

    def _question(self, row: Row) -> Iterator[Example]:
        targets, kind, answer = row.fields["targets"], row.text("kind"), row.text("answer")
        if (kind not in _CHOICES and answer not in YES_NO) or not isinstance(targets, list):
            raise CofError(f"It is of no known kind ({kind!r}), or has no list of targets.")
        yield Example(
            id=row.text("id"),
            image=self.image_of(row, row.text("image"), "."),
            prompt=row.text("question"),
            answer=answer,
            kind=kind,
            **read_annotation({**row.fields, "single": len(targets) == 1}),
        )
