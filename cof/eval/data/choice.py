"""Multiple-choice questions: prompts, rotations of the options, and accuracy over all of them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark, PromptStyle, split_by
from cof.eval.data.files import Row, collect, only_one
from cof.eval.examples import Example
from cof.eval.figures import Figure
from cof.eval.rules import OPTIONS, OptionReaders, Rules
from cof.prompting.dialects import OPTION_LETTER

ROTATION = 10**6
"""Index of a question's k-th rotation: its own plus k times this (MMBench's files)."""


@dataclass(frozen=True)
class ChoiceBenchmark(Benchmark):
    """Every question in several orders of its options, which share its group. Answers are letters;
    the figure counts each order by itself."""

    readers: ClassVar[OptionReaders] = OPTIONS

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        if not example.likelihood:
            return self.readers[rules](text, example.options)
        # the text is that of the most probable option
        letters = zip(ascii_uppercase, example.options, strict=False)
        return next((letter for letter, option in letters if option == text), None)

    def ask(self, question: str, options: Sequence[str], hint: str = "") -> str:
        return choice_prompt(self.prompt_style, question, options, hint)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """In percent: `average` over orders, by kind, `circular` (all orders right), `unparsed`."""
        examples = answers.examples
        kinds = sorted(split_by("kind", examples).items())
        return {
            "average": answers.share(examples),
            **{kind: answers.share(asked) for kind, asked in kinds},
            "circular": answers.share_of_groups(examples),
            "unparsed": answers.unparsed(examples),
        }


@dataclass(frozen=True)
class ChoiceTable(ChoiceBenchmark):
    """Multiple choice in VLMEvalKit's columns: index, question, options under their letters (any of
    A to Z may be empty), answer, hint, category, l2-category, split, and the image: as base64, as
    the index of the row that has it, or as a file's path (`image_path`)."""

    need = ("index", "question", "A", "B")
    answered: ClassVar[bool] = True  # whether every question must have an answer
    rotated: ClassVar[bool] = False  # whether all rotations are asked, of a file without them too

    @abstractmethod
    def group_of(self, row: Row, options: Sequence[str], answer: str) -> str:
        """The name that all orders of a question share."""

    def read(self, problems: list[str]) -> list[Example]:
        rows = self.collect(lambda row: [row], problems)
        by_index = {index_of(row): row for row in rows}
        rotate = self.rotated and all(len(index) < len(str(ROTATION)) for index in by_index)
        return collect(lambda row: self._questions(row, by_index, rotate), problems, rows)

    def _questions(self, row: Row, by_index: Mapping[str, Row], rotate: bool) -> Iterator[Example]:
        index, question, answer = index_of(row), row.text("question"), row.text("answer")
        filled = {letter: text for letter in ascii_uppercase if (text := row.text(letter))}
        last = max(filled, default="")
        options = tuple(filled.get(letter, "") for letter in ascii_uppercase if letter <= last)
        if not re.fullmatch(r"[0-9]{1,12}", index):
            raise CofError(f"the index {index!r} is no number")
        if not question or len(filled) < 2:
            raise CofError("no question with two options or more")
        if answer not in filled and (answer or self.answered):
            raise CofError(f"the answer {answer!r} is no option")
        elsewhere = _whole(str(only_one(row.fields.get("image"))))
        holder = row if row.image else by_index.get(elsewhere, row)
        path = only_one(holder.fields.get("image_path"))
        if holder.image is None and not path:
            raise CofError("no image")
        group = self.group_of(row, options, answer)
        for turns in range(len(filled) if rotate else 1):
            shown, letter = rotate_options(options, answer, turns)
            yield Example(
                id=str(int(index) + turns * ROTATION),
                image=self.image_of(holder, path or f"question {group}", ".", "images"),
                prompt=self.ask(question, shown, row.text("hint")),
                answer=letter,
                kind=row.text("category"),
                question=question,
                options=shown,
                group=group,
                area=row.text("l2-category", "L2-category"),
                split=row.text("split"),
            )


def index_of(row: Row) -> str:
    """A row's index; `1.0`, as pandas writes one beside an empty cell, is `1`."""
    return _whole(row.text("index"))


def _whole(number: str) -> str:
    return re.sub(r"\.0*$", "", number)


def rotate_options(options: Sequence[str], answer: str, turns: int) -> tuple[tuple[str, ...], str]:
    """The options moved up by `turns` places in a circle, empty ones not, and the answer's letter.

    >>> rotate_options(("red", "blue", "green"), "A", 1)
    (('blue', 'green', 'red'), 'C')
    >>> rotate_options(("red", "", "blue"), "", 1)
    (('blue', '', 'red'), '')
    """
    places = [place for place, option in enumerate(options) if option]
    moved = dict(zip(places, (*places[turns:], *places[:turns]), strict=True))
    letters = {ascii_uppercase[old]: ascii_uppercase[new] for new, old in moved.items()}
    shown = tuple(options[moved.get(place, place)] for place in range(len(options)))
    return shown, letters.get(answer, "")


def list_options(options: Sequence[str]) -> str:
    """A line for each option, with its letter."""
    lettered = zip(ascii_uppercase, options, strict=False)
    return "\n".join(f"{letter}. {option}" for letter, option in lettered if option)


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
    lines = list_options(options)
    if prompt_style == "vlmevalkit":
        told = f"Hint: {hint}\n" if hint else ""
        choose = "Please select the correct answer from the options above. \n"
        return f"{told}Question: {question}\nOptions:\n{lines}\n{choose}"
    if prompt_style in ("official", "lmms-eval"):
        told = f"{hint} " if hint else ""
        several = f"{told}{question} There are several options:\n{lines}"
        # the harness's suffix begins with a line break of its own
        return f"{several}\n{OPTION_LETTER}" if prompt_style == "lmms-eval" else several
    told = f"{hint}\n" if hint else ""
    return f"{told}{question}\n{lines}{OPTION_LETTER}"
