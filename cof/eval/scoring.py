"""Reading a short answer out of a reply, and comparing it. Nothing is ever guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass

# fmt: off
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
)
# fmt: on


@dataclass(frozen=True)
class Score:
    """How a reply did.

    Attributes:
        parsed: the answer read from it; None: none of the possible ones, or more than one.
        right: whether that is the true one. An unparsed reply is wrong.
    """

    parsed: str | None
    right: bool


def exact_match(text: str, answer: str, choices: tuple[str, ...]) -> Score:
    """Score a reply against the answer; `choices` lists all possible answers.

    The one member of `choices` that occurs as a whole word is the reply's answer; case, full
    stops, brackets and prose around it do not matter. Two different ones make the reply unparsed.
    A single capital letter counts only as a capital within prose ("a" is an article). Numbers may
    be digits or words.

    Args:
        text: the reply.
        answer: the true answer, one of `choices`.
        choices: lower-case words, single capital letters, or numbers as digits.

    Examples:
        >>> exact_match("Yes, there is.", "yes", ("yes", "no"))
        Score(parsed='yes', right=True)
        >>> exact_match("(B)", "B", ("A", "B", "C", "D")).right
        True
        >>> exact_match("There are seven.", "7", ("6", "7")).right
        True
        >>> exact_match("I know it.", "no", ("yes", "no"))
        Score(parsed=None, right=False)
    """
    words = re.findall(r"[A-Za-z]+|[0-9]+", text)
    if len(words) == 1 and len(words[0]) == 1:
        words = [words[0].upper(), words[0]]
    named = [choice for choice in choices if any(_same(word, choice) for word in words)]
    parsed = named[0] if len(named) == 1 else None
    return Score(parsed, parsed == answer)


def _same(word: str, choice: str) -> bool:
    if choice.isdigit():
        as_word = NUMBER_WORDS[int(choice)] if int(choice) < len(NUMBER_WORDS) else None
        return (word.lstrip("0") or "0") == choice or word.lower() == as_word
    return word == choice if len(choice) == 1 else word.lower() == choice
