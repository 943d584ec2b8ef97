"""Named rule sets, on replies made by hand: the values are what the harnesses' own functions give
(docs/evaluation.md names them; `make check-peers` compares by the thousand)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cof.eval.data.scenes import Scenes
from cof.eval.examples import Example, Score
from cof.eval.rules import (
    HRBENCH,
    MME,
    OPTIONS,
    POPE,
    RULES,
    VSTAR,
    named_choice,
    vqa_accuracy,
    vqa_normalized,
)

OPTIONS_SHOWN = ("red", "light blue", "a dog", "none of these")


# a reply, and what is read from it: by official and llava rules, by lmms-eval's, by VLMEvalKit's
MME_REPLIES = [
    ("yes", "yes", "yes", "yes"),
    ("Yes.", "yes", "yes", "yes"),
    (" yes", "yes", "yes", "yes"),
    ("no, there isn't", "no", "no", "no"),
    ("I know", None, None, None),
    ("Know", "no", "no", None),  # the first four characters hold "no"
    ("Not at all", "no", "no", None),
    ("", None, None, None),
    ("y", None, "yes", None),
    ("N.", None, "no", None),
    ("yes and no", "yes", "yes", None),
    ("The answer is yes.", None, None, "yes"),
    ("... yes", None, "yes", "yes"),
]
POPE_REPLIES = [
    ("yes", "yes", "yes", "yes"),
    ("Yes.", "yes", None, "yes"),
    ("no", "no", "no", "no"),
    ("NO", "yes", "no", "no"),  # the official rule knows "No" and "no" only
    ("no, there isn't", "no", None, "no"),
    ("No, it does not. Yes.", "no", None, None),
    ("I know snow", "yes", None, None),
    ("", "yes", None, None),
    ("There is not", "no", None, None),
    ("Yes. There is no doubt.", "yes", None, None),
    ("yes or no", "no", None, None),
]
# by MMBench's script (and lmms-eval's copy), VLMEvalKit's, HR-Bench's, and lmms-eval's of V*Bench
OPTION_REPLIES = [
    ("B", "B", "B", "B", "B"),
    ("B.", "B", "B", "B", "B"),
    ("(B)", "B", "B", "B", "B"),
    ("B. light blue", "B", "B", "B", "B"),
    ("b", None, None, None, "B"),
    ("", None, None, None, None),
    ("E", "E", None, None, None),  # a letter there, whatever the options
    ("B or E", None, "B", "B", "B"),
    ("It is light blue.", "B", "B", "B", "B"),
    ("A dog", "A", "A", "A", "A"),  # the article, read as a letter by all of them
    ("Red or light blue", None, None, None, None),
    ("A or B.", "A", None, None, "A"),
    ("C is what A or B is not", None, None, None, "C"),
    ("It is A I think", None, "A", "A", "A"),
    ("The answer is [B]", None, "B", "B", "B"),
    ("The answer is A", None, "A", "A", "A"),
    ("answer: c", None, None, None, "A"),  # the first letter of "answer"
    ("B is the one that I would choose", "B", None, "B", "B"),  # far from the end
    ("Z", None, None, None, None),
    ("Cannot determine the answer, red", "A", None, None, "C"),
    ("green", None, None, None, None),
    ("red" + " and more than that" * 10, "A", None, "A", None),  # too long for an option's text
    # VLMEvalKit reads a letter after "answer is", in bold or not, whatever its case
    ("The correct answer is **b**.", None, "B", None, None),
    ("As A and C are far, I think that the answer is **B**" + ", no" * 9, None, "B", None, "A"),
    ("Not red: the answer is **c**", "A", "C", "A", None),
    ("The answer is **E**, or red", "A", "A", "A", None),
    ("The answer is **b", None, "B", None, None),
    ("Answer is blue, I think", None, "B", None, "A"),
    ("I see the dog (d)", None, None, None, "D"),
]


@pytest.mark.parametrize(
    ("readers", "reply"),
    [
        *((MME, reply) for reply in MME_REPLIES),
        *((POPE, reply) for reply in POPE_REPLIES),
    ],
)
def test_yes_or_no(readers: Any, reply: tuple[str, str | None, str | None, str | None]) -> None:
    text, official, lmms_eval, vlmevalkit = reply
    read = {rules: reader(text) for rules, reader in readers.items()}
    expected = {"official": official, "llava": official, "lmms-eval": lmms_eval}
    assert read == expected | {"vlmevalkit": vlmevalkit}


@pytest.mark.parametrize("reply", OPTION_REPLIES)
def test_options(reply: tuple[str, str | None, str | None, str | None, str | None]) -> None:
    text, mmbench, kit, hrbench, vstar = reply
    expected = dict.fromkeys(RULES, mmbench) | {"vlmevalkit": kit}
    for readers, others in (
        (OPTIONS, expected),
        (HRBENCH, dict.fromkeys(RULES, hrbench) | {"vlmevalkit": kit}),
        (VSTAR, expected | {"lmms-eval": vstar}),
    ):
        assert {name: read(text, OPTIONS_SHOWN) for name, read in readers.items()} == others


@pytest.mark.parametrize(
    ("text", "options", "mmbench", "lmms_eval", "kit"),
    [
        ("D", ("red", "blue", "", "cyan"), "D", "D", "D"),
        ("cyan", ("red", "blue", "", "cyan"), "D", "D", "D"),
        ("C", ("red", "blue", "", "cyan"), "C", "C", None),
        ("G", tuple("stuvwxy"), "G", "G", "G"),
        ("banana", ("banana", "apple"), "A", None, "A"),  # lmms-eval's data say "nan" of C and D
    ],
)
def test_options_at_other_letters(
    text: str, options: tuple[str, ...], mmbench: str, lmms_eval: str, kit: str
) -> None:
    expected = {"official": mmbench, "llava": mmbench, "lmms-eval": lmms_eval, "vlmevalkit": kit}
    assert {name: read(text, options) for name, read in OPTIONS.items()} == expected


@pytest.mark.parametrize(
    ("text", "normalized", "kit"),
    [
        ("The Stop-Sign", "stop sign", "stop sign"),
        ("1,000", "1000", "1000"),
        ("3.50", "3.50", "3.50"),
        ("3.", "3", "3."),
        ("Dr. No", "dr no", "dr no"),
        ("none", "0", "0"),
        ("Ten", "10", "10"),
        ("dont", "don't", "don't"),
        ("couldnt've", "couldn't've", "couldn't've"),
        ("Joe's", "joe 's", "joe's"),
        ("red,blue", "redblue", "red blue"),
        ("a\nb", "b", "b"),
        ("coca - cola!", "coca cola", "coca cola"),
        ("well-known, is it?", "well known is it", "well known is it"),
        ("", "", ""),
    ],
)
def test_vqa_normalized(text: str, normalized: str, kit: str) -> None:
    read = {rules: vqa_normalized(text, rules) for rules in RULES}
    assert read == dict.fromkeys(RULES, normalized) | {"vlmevalkit": kit}


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy(agreeing: int, accuracy: float) -> None:
    answers = ["go"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("Go.", answers) == pytest.approx(accuracy)
    assert vqa_accuracy("Go.", []) == 0


# Scenes: a short answer is read from a reply only if it names exactly one possible answer

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
