"""Multiple-choice questions: prompts, rotations of the options, and accuracy over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from cof.eval.data.base import Answers, Benchmark, PromptStyle, split_by
from cof.eval.examples import Example
from cof.eval.figures import Figure
from cof.eval.rules import OPTIONS, Rules
from cof.prompting.dialects import OPTION_LETTER

ROTATION = 10**6
"""Index of a question's k-th rotation: its own plus k times this (MMBench's files)."""


@dataclass(frozen=True)
class ChoiceBenchmark(Benchmark):
    """Every question in several orders of its options, which share its group. Answers are letters;
    the figure counts each order by itself."""

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        if not example.likelihood:
            return OPTIONS[rules](text, example.options)
        # the text is that of the most probable option
        letters = zip(ascii_uppercase, example.options, strict=False)
        return next((letter for letter, option in letters if option == text), None)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """In percent: `average` over all orders, the same by kind, `circular` (all orders of a
        question right), `unparsed`."""
        examples = answers.examples
        kinds = sorted(split_by("kind", examples).items())
        return {
            "average": answers.share(examples),
            **{kind: answers.share(asked) for kind, asked in kinds},
            "circular": answers.share_of_groups(examples),
            "unparsed": answers.unparsed(examples),
        }


def rotate_options(options: Sequence[str], answer: str, turns: int) -> tuple[tuple[str, ...], str]:
    """The options moved up by `turns` places, the first ones to the end, with the answer's letter.

    >>> rotate_options(("red", "blue", "green"), "A", 1)
    (('blue', 'green', 'red'), 'C')
    >>> rotate_options(("red", "blue"), "", 1)
    (('blue', 'red'), '')
    """
    place = (ascii_uppercase.index(answer or "A") - turns) % len(options)
    return (*options[turns:], *options[:turns]), answer and ascii_uppercase[place]


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
