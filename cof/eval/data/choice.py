"""Multiple-choice questions: prompts, rotations of the options, and circular accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from cof.eval.data.base import Benchmark, PromptStyle, Replies, unparsed
from cof.eval.examples import Example
from cof.eval.figures import Clusters, Figure, find_clusters, group_right, share
from cof.eval.rules import OPTIONS, Rules
from cof.prompting.dialects import OPTION_LETTER

ROTATION = 10**6
"""Index of a question's k-th rotation: its own plus k times this (MMBench's files)."""


@dataclass(frozen=True)
class ChoiceBenchmark(Benchmark):
    """Answers are letters; the rotations of a question share its group."""

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        if not example.likelihood:
            return OPTIONS[rules](text, example.options)
        # the text is that of the most probable option
        letters = zip(ascii_uppercase, example.options, strict=False)
        return next((letter for letter, option in letters if option == text), None)

    def choice_figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> ChoiceFigures:
        """The answers, ready for shares over questions and over groups."""
        answers = self.read_answers(examples, replies, rules)
        right = {e.id: answers[e.id] == e.answer for e in examples}
        return ChoiceFigures(answers, right, find_clusters(examples))


@dataclass(frozen=True)
class ChoiceFigures:
    """Answers to multiple-choice questions as figures.

    Attributes:
        answers: the letter in each reply; None: unparsed.
        right: whether it is the true one.
        clusters: questions and groups that belong together.
    """

    answers: Mapping[str, str | None]
    right: Mapping[str, bool]
    clusters: Clusters

    def accuracy(self, examples: Sequence[Example]) -> Figure:
        """The share of right replies, every rotation counted by itself."""
        return share({e.id: self.right[e.id] for e in examples}, self.clusters)

    def circular(self, examples: Sequence[Example]) -> Figure:
        """The share of questions that are right in all of their rotations."""
        return share(group_right(examples, self.right), self.clusters)

    def asked_once(self, examples: Sequence[Example]) -> Figure:
        """The share of right replies to the first rotation of each question."""
        first = {example.group: example for example in reversed(examples)}
        return self.accuracy([e for e in examples if first[e.group] is e])

    @property
    def unparsed(self) -> Figure:
        """The share of replies without an answer in them."""
        return unparsed(self.answers, self.clusters)


class CycleBenchmark(ChoiceBenchmark):
    """Every question in several orders of its options; the figure counts each of them by itself."""

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """In percent: `average` over all orders, the same by kind, `circular` (all orders of a
        question right), `unparsed`."""
        choices = self.choice_figures(examples, replies, rules)
        return {
            "average": choices.accuracy(examples),
            **{
                kind: choices.accuracy([e for e in examples if e.kind == kind])
                for kind in sorted({e.kind for e in examples})
            },
            "circular": choices.circular(examples),
            "unparsed": choices.unparsed,
        }


def rotate_options(options: Sequence[str], answer: str, turns: int) -> tuple[tuple[str, ...], str]:
    """The options moved up by `turns` places, the first ones to the end, with the answer's letter.

    >>> rotate_options(("red", "blue", "green"), "A", 1)
    (('blue', 'green', 'red'), 'C')
    >>> rotate_options(("red", "blue"), "", 1)
    (('blue', 'red'), '')
    """
    moved = (*options[turns:], *options[:turns])
    if not answer:
        return moved, ""
    return moved, ascii_uppercase[(ascii_uppercase.index(answer) - turns) % len(options)]


def choice_prompt(
    prompt_style: PromptStyle, question: str, options: Sequence[str], hint: str = ""
) -> str:
    """A multiple-choice prompt in one of the field's prompt styles.

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
