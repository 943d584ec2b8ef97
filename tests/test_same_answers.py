"""Answers of the embedded models, token by token, are those that are written down.

A change that alters answers is at least a minor version (CONTRIBUTING.md): it writes them anew with
`python tests/test_same_answers.py`, and the difference is read before it is committed.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from cof import Answer, CoF, Decoding, Query, preset

HERE = Path(__file__).parent
WRITTEN = HERE / "same_answers.json"
DEMO = HERE.parent / "cof" / "demo"

WAYS: dict[str, dict[str, Any]] = {
    "usual": {},
    "plain": {"grounder": "none"},
    "whole": {"grounder": "whole"},
    "attention": {"grounder": "attention", "scope": "all"},
    "relevance": {"grounder": "relevance"},
    "logits": {"grounder": "logits"},
    "two looks": {"grounder": "prompt+attention"},
    "paper's prompt": {"grounding_prompt": "paper"},
    "template": {"boxes": "template", "min_box": 0.2},
    "soft": {"boxes": "template", "focus": "soft", "strength": 8.0, "scope": "all"},
    "contrast": {"focus": "contrast", "strength": 4.0},
    "crop": {"focus": "crop"},
    "beside": {"focus": "beside"},
    "overlay": {"focus": "overlay", "overlay": "dim"},
    "some layers and heads": {"layers": (2, 3, 4), "heads": (0, 1), "strength": 30.0},
    "only if unsure": {"max_plain_confidence": 0.5},
    "only sure boxes": {"min_confidence": 0.5},
    "strong": {"strength": 200.0, "expand": 1.0, "scope": "all"},
}
PARITY = "paper-parity:llava-1.5-7b"


@functools.cache
def cof(model: str) -> CoF:
    return CoF.from_pretrained(model, dtype="float32")


def questions() -> list[dict[str, str]]:
    return json.loads((DEMO / "questions.json").read_text("utf-8"))


def shown(answer: Answer) -> dict[str, Any]:
    sure = answer.answer_confidence
    return {
        "text": answer.text,
        "boxes": [[round(side, 4) for side in box] for box in answer.boxes],
        "grounder": answer.grounder,
        "grounding_text": answer.grounding_text,
        "num_tokens": answer.num_tokens,
        "sure": None if sure is None else round(sure, 3),
    }


def ask(model: str) -> dict[str, list[dict[str, Any]]]:
    """The answers of a model by way of asking: each way over all questions, as one batch."""
    loaded, asked = cof(model), questions()
    given = {
        "boxes": {"boxes": [(0.1, 0.2, 0.5, 0.6), (0.7, 0.7, 0.9, 0.9)]},
        "polygon": {"polygon": [(0.1, 0.1), (0.6, 0.2), (0.3, 0.7)]},
        "mask": {"mask": [[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]},
    }
    ways = {
        name: [
            Query(DEMO / each["image"], each["question"], settings=loaded.settings.changed(**way))
            for each in asked
        ]
        for name, way in WAYS.items()
    }
    ways |= {
        f"own {name}": [
            Query(DEMO / each["image"], each["question"], strength=9.0, **own) for each in asked
        ]
        for name, own in given.items()
    }
    answers = {name: list(map(shown, loaded.batch(queries))) for name, queries in ways.items()}
    first = [(DEMO / each["image"], each["question"]) for each in asked]
    answers["beams"] = list(map(shown, loaded.batch(first, decoding=Decoding(num_beams=3))))
    sampled = Decoding(temperature=1.0, top_p=0.9, seed=3)
    answers["sampled"] = [shown(loaded(*each, decoding=sampled)) for each in first[:2]]
    parity = CoF(loaded.engine, preset(PARITY).changed(system=""))
    answers["parity"] = list(map(shown, parity.batch(first)))
    return answers


@pytest.mark.filterwarnings("ignore:No box template")
@pytest.mark.parametrize("model", ["tiny", "tiny-early"])
def test_answers_are_the_same(model: str) -> None:
    written = json.loads(WRITTEN.read_text("utf-8"))[model]
    answers = ask(model)
    assert answers.keys() == written.keys()
    for way, expected in written.items():
        for got, want in zip(answers[way], expected, strict=True):
            sure = want.pop("sure")
            assert got.pop("sure") == (None if sure is None else pytest.approx(sure, abs=2e-3)), way
            assert got == want, way


if __name__ == "__main__":
    WRITTEN.write_text(json.dumps({m: ask(m) for m in ("tiny", "tiny-early")}) + "\n")
