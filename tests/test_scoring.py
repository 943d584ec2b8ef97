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
    ("choices", "parsed", "texts"),
    [
        (YES_NO, "yes", ("yes", "Yes.", "yes yes")),
        (YES_NO, "no", (" NO\n", "no, there isn't")),
        (YES_NO, None, ("I know", "nothing", "yes and no", "")),
        (LETTERS, "B", ("B", "b", "(b).", "B. red", "It is a B")),
        (LETTERS, None, ("The answer is a bit unclear", "A or B", "red", "E")),
        (DIGITS, "7", ("7", "[7]", "07", "Seven.")),
        (DIGITS, None, ("17", "7 or 8", "9" * 5000)),
        (COUNTS, "12", ("There are 12 of them", "twelve")),
        (COUNTS, "0", ("0", "zero")),
        (COLORS, "orange", ("Orange",)),
        (COLORS, "red", ("the red one",)),
        (COLORS, None, ("reddish",)),
    ],
)
def test_named_choice(choices: tuple[str, ...], parsed: str | None, texts: tuple[str, ...]) -> None:
    assert {text: named_choice(text, choices) for text in texts} == dict.fromkeys(texts, parsed)


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
