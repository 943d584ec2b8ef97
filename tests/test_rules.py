"""Named rule sets: where they agree and where they do not, on replies made by hand."""

from __future__ import annotations

import pytest

from cof.eval.rules import MME, OPTIONS, POPE, RULES, SOURCES, vqa_accuracy, vqa_normalized

OPTIONS_SHOWN = ("red", "light blue", "a dog", "none of these")


def test_every_rule_set_has_every_scorer() -> None:
    assert set(MME) == set(POPE) == set(OPTIONS) == set(RULES) == set(SOURCES)


@pytest.mark.parametrize(
    ("text", "official", "lmms_eval", "vlmevalkit"),
    [
        ("yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no"),
        ("Yes.", "yes", "yes", "yes"),
        (" yes", "yes", "yes", "yes"),
        ("no, there isn't", "no", "no", "no"),
        ("I know", None, None, None),
        ("Know", "no", "no", None),  # the first four characters hold "no"
        ("Not at all", "no", "no", None),
        ("", None, None, None),
        ("y", None, "yes", None),
        ("N.", None, "no", None),
        ("x", None, None, None),
        ("yes and no", "yes", "yes", None),
        ("no or yes", "no", "no", None),
        ("The answer is yes.", None, None, "yes"),
        ("... yes", None, "yes", "yes"),
    ],
)
def test_mme(
    text: str, official: str | None, lmms_eval: str | None, vlmevalkit: str | None
) -> None:
    assert MME["official"](text) == MME["llava"](text) == official
    assert MME["lmms-eval"](text) == lmms_eval
    assert MME["vlmevalkit"](text) == vlmevalkit


@pytest.mark.parametrize(
    ("text", "official", "lmms_eval", "vlmevalkit"),
    [
        ("yes", "yes", "yes", "yes"),
        ("Yes", "yes", "yes", "yes"),
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
    ],
)
def test_pope(
    text: str, official: str | None, lmms_eval: str | None, vlmevalkit: str | None
) -> None:
    assert POPE["official"](text) == POPE["llava"](text) == official
    assert POPE["lmms-eval"](text) == lmms_eval
    assert POPE["vlmevalkit"](text) == vlmevalkit


@pytest.mark.parametrize(
    ("text", "official", "lmms_eval", "vlmevalkit"),
    [
        ("B", "B", "B", "B"),
        ("B.", "B", "B", "B"),
        ("(B)", "B", "B", "B"),
        ("(B).", "B", "B", "B"),
        ("B. light blue", "B", "B", "B"),
        ("b", None, None, None),
        ("", None, None, None),
        ("E", None, "E", None),  # a letter there, whatever the options
        ("It is light blue.", "B", "B", "B"),
        ("A dog", "A", "A", "A"),  # the article, read as a letter by all of them
        ("Red or light blue", None, None, None),
        ("A or B", None, None, None),
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
        ("The answer is b", None, None, None),
    ],
)
def test_options(
    text: str, official: str | None, lmms_eval: str | None, vlmevalkit: str | None
) -> None:
    assert OPTIONS["official"](text, OPTIONS_SHOWN) == official
    assert OPTIONS["llava"](text, OPTIONS_SHOWN) == official
    assert OPTIONS["lmms-eval"](text, OPTIONS_SHOWN) == lmms_eval
    assert OPTIONS["vlmevalkit"](text, OPTIONS_SHOWN) == vlmevalkit


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
