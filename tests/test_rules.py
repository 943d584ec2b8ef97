"""Named rule sets: where they agree and where they do not, on replies made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cof.eval.rules import MME, OPTIONS, POPE, vqa_accuracy, vqa_normalized

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
OPTION_REPLIES = [
    ("B", "B", "B", "B"),
    ("B.", "B", "B", "B"),
    ("(B)", "B", "B", "B"),
    ("B. light blue", "B", "B", "B"),
    ("b", None, None, None),
    ("", None, None, None),
    ("E", None, "E", None),  # a letter there, whatever the options
    ("It is light blue.", "B", "B", "B"),
    ("A dog", "A", "A", "A"),  # the article, read as a letter by all of them
    ("Red or light blue", None, None, None),
    ("A or B.", "A", "A", None),
    ("C is what A or B is not", None, None, None),
    ("It is A I think", None, None, "A"),
    ("The answer is [B]", None, None, "B"),
    ("B is the one that I would choose", "B", "B", None),  # far from the end
    ("Z", None, None, None),
    ("Cannot determine the answer, red", "A", "A", None),
    ("green", None, None, None),
    ("red" + " and more than that" * 10, "A", "A", None),  # too long to be an option's text
    # VLMEvalKit reads a letter in bold, whatever its case and however long the prose
    ("The correct answer is **b**.", None, None, "B"),
    ("As A and C are far, I think that the answer is **B**" + ", surely" * 20, None, None, "B"),
    ("Not red: the answer is **c**", "A", "A", "C"),
    ("The answer is **E**, or red", "A", "A", "A"),
    ("The answer is **b", None, None, None),
]


@pytest.mark.parametrize(
    ("readers", "reply"),
    [
        *((MME, reply) for reply in MME_REPLIES),
        *((POPE, reply) for reply in POPE_REPLIES),
        *((OPTIONS, reply) for reply in OPTION_REPLIES),
    ],
)
def test_replies(readers: Any, reply: tuple[str, str | None, str | None, str | None]) -> None:
    text, official, lmms_eval, vlmevalkit = reply
    asked = (text, OPTIONS_SHOWN) if readers is OPTIONS else (text,)
    read = {rules: reader(*asked) for rules, reader in readers.items()}
    expected = {"official": official, "llava": official, "lmms-eval": lmms_eval}
    assert read == expected | {"vlmevalkit": vlmevalkit}


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Stop-Sign", "stop sign"),
        ("1,000", "1000"),
        ("3.50", "3.50"),
        ("Dr. No", "dr no"),
        ("none", "0"),
        ("Ten", "10"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("Joe's", "joe 's"),
        ("a\nb", "b"),
        ("coca - cola!", "coca cola"),
        ("well-known, is it?", "well known is it"),
        ("", ""),
    ],
)
def test_vqa_normalized(text: str, normalized: str) -> None:
    assert vqa_normalized(text) == normalized


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy(agreeing: int, accuracy: float) -> None:
    answers = ["go"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("Go.", answers) == pytest.approx(accuracy)
    assert vqa_accuracy("Go.", []) == 0
