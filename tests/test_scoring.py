"""A short answer is read from a reply only if it names exactly one possible answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from cof.eval.data.scenes import Scenes
from cof.eval.examples import Example, Score
from cof.eval.rules import named_choice

YES_NO = ("yes", "no")
LETTERS = tuple("ABCD")
DIGITS = tuple("0123456789")
COUNTS = tuple(str(n) for n in range(21))
COLORS = ("red", "green", "orange")


@pytest.mark.parametrize(
    ("text", "choices", "parsed"),
    [
        ("yes", YES_NO, "yes"),
        ("Yes.", YES_NO, "yes"),
        (" NO\n", YES_NO, "no"),
        ("no, there isn't", YES_NO, "no"),
        ("I know", YES_NO, None),
        ("nothing", YES_NO, None),
        ("yes and no", YES_NO, None),
        ("yes yes", YES_NO, "yes"),
        ("", YES_NO, None),
        ("B", LETTERS, "B"),
        ("b", LETTERS, "B"),
        ("(b).", LETTERS, "B"),
        ("B. red", LETTERS, "B"),
        ("The answer is a bit unclear", LETTERS, None),
        ("It is a B", LETTERS, "B"),
        ("A or B", LETTERS, None),
        ("red", LETTERS, None),
        ("E", LETTERS, None),
        ("7", DIGITS, "7"),
        ("[7]", DIGITS, "7"),
        ("07", DIGITS, "7"),
        ("Seven.", DIGITS, "7"),
        ("17", DIGITS, None),
        ("7 or 8", DIGITS, None),
        ("9" * 5000, DIGITS, None),
        ("There are 12 of them", COUNTS, "12"),
        ("twelve", COUNTS, "12"),
        ("0", COUNTS, "0"),
        ("zero", COUNTS, "0"),
        ("Orange", COLORS, "orange"),
        ("the red one", COLORS, "red"),
        ("reddish", COLORS, None),
    ],
)
def test_named_choice(text: str, choices: tuple[str, ...], parsed: str | None) -> None:
    assert named_choice(text, choices) == parsed


@pytest.mark.parametrize(
    ("kind", "answer", "right", "unparsed"),
    [
        ("digit", "3", "It is 3.", "A"),
        ("letter", "K", "K", "3"),
        ("color", "cyan", "Cyan", "pink"),
        ("shape", "cross", "a cross", "plus"),
        ("size", "small", "Small", "tiny"),
        ("choice", "C", "C.", "cyan"),
        ("count", "2", "two", "yes"),
        ("count", "yes", "Yes", "2"),
        ("existence", "no", "No", "star"),
    ],
)
def test_the_task_knows_what_its_answers_can_be(
    tmp_path: Path, kind: str, answer: str, right: str, unparsed: str
) -> None:
    example = Example("id", tmp_path / "a.png", "?", answer, kind=kind)
    assert Scenes(tmp_path).score(example, right) == Score(answer, True)
    assert Scenes(tmp_path).score(example, unparsed) == Score(None, False)
