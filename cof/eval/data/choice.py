"""Multiple-choice questions: prompts, rotations of the options, and circular accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from cof.eval.data.base import Benchmark, PromptStyle, percent
from cof.eval.rules import OPTIONS, Rules
from cof.eval.tasks import Example
from cof.prompting.dialects import OPTION_LETTER

ROTATION = 10**6
"""Index of a question's k-th rotation: its own plus k times this (MMBench's files)."""


@dataclass(frozen=True)
class ChoiceBenchmark(Benchmark):
    """Answers are letters; the rotations of a question share its group."""

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        if example.likelihood:  # the text is that of the most probable option
            return ascii_uppercase[example.options.index(text)]
        return OPTIONS[rules](text, example.options)

    def circular(
        self, examples: Sequence[Example], replies: Mapping[str, str], rules: Rules
    ) -> dict[str, tuple[Example, bool]]:
        """Each question's first rotation, and whether all of its rotations are answered rightly."""
        found: dict[str, tuple[Example, bool]] = {}
        for e in examples:
            right = self.parse(e, replies[e.id], rules) == e.answer
            first, before = found.get(e.group, (e, True))
            found[e.group] = first, before and right
        return found

    def accuracy(
        self, examples: Sequence[Example], replies: Mapping[str, str], rules: Rules
    ) -> float:
        """Share of right replies, every rotation counted by itself, in percent."""
        right = [self.parse(e, replies[e.id], rules) == e.answer for e in examples]
        return percent(sum(right), len(right))

    def unparsed(
        self, examples: Sequence[Example], replies: Mapping[str, str], rules: Rules
    ) -> float:
        """Share of replies without an answer in them, in percent."""
        none = [self.parse(e, replies[e.id], rules) is None for e in examples]
        return percent(sum(none), len(none))


class CycleBenchmark(ChoiceBenchmark):
    """Every question in several orders of its options; the figure counts each of them by itself."""

    def metrics(
        self, examples: Sequence[Example], replies: Mapping[str, str], rules: Rules
    ) -> dict[str, float]:
        """In percent: `average` over all orders, the same by kind, `circular` (all orders of a
        question right), `unparsed`."""
        all_right = [right for _, right in self.circular(examples, replies, rules).values()]
        kinds = {
            kind: self.accuracy([e for e in examples if e.kind == kind], replies, rules)
            for kind in sorted({e.kind for e in examples})
        }
        return {
            "average": self.accuracy(examples, replies, rules),
            **kinds,
            "circular": percent(sum(all_right), len(all_right)),
            "unparsed": self.unparsed(examples, replies, rules),
        }


def rotated(options: Sequence[str], answer: str, turns: int) -> tuple[tuple[str, ...], str]:
    """The options moved up by `turns` places, the first ones to the end, with the answer's letter.

    >>> rotated(("red", "blue", "green"), "A", 1)
    (('blue', 'green', 'red'), 'C')
    >>> rotated(("red", "blue"), "", 1)
    (('blue', 'red'), '')
    """
    moved = (*options[turns:], *options[:turns])
    if not answer:
        return moved, ""
    return moved, ascii_uppercase[(ascii_uppercase.index(answer) - turns) % len(options)]


def choice_prompt(
    prompt_style: PromptStyle, question: str, options: Sequence[str], hint: str = ""
) -> str:
    """A multiple-choice prompt in one of the field's wordings.

    >>> print(choice_prompt("llava", "What is it?", ["a cat", "a dog"]))
    What is it?
    A. a cat
    B. a dog
    Answer with the option's letter from the given choices directly.
    """
    lines = "\n".join(f"{ascii_uppercase[i]}. {option}" for i, option in enumerate(options))
    if prompt_style == "vlmevalkit":
        told = f"Hint: {hint}\n" if hint else ""
        choose = "Please select the correct answer from the options above."
        return f"{told}Question: {question}\nOptions:\n{lines}\n{choose}"
    if prompt_style in ("official", "lmms-eval"):
        told = f"{hint} " if hint else ""
        several = f"{told}{question} There are several options:\n{lines}"
        # the harness's suffix begins with a line break of its own
        return f"{several}\n{OPTION_LETTER}" if prompt_style == "lmms-eval" else several
    told = f"{hint}\n" if hint else ""
    return f"{told}{question}\n{lines}{OPTION_LETTER}"
