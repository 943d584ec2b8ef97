"""Scores of replies: against the formula, greedy decoding, single requests and highlights."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from models import checkpoint, picture

from cof.engines.transformers.engine import TransformersEngine
from cof.geometry.regions import EVERYTHING, Region
from cof.types import Decoding, Highlight, Request

NAMES = ["llava", "blip-2", "blip-2 with T5", "instructblip"]
BOX = Highlight(Region(boxes=((0.0, 0.0, 0.5, 0.5),)), 30.0)


@cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name))


def summed(scored: Any) -> float:
    return math.fsum(scored.logprobs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("highlight", [None, BOX], ids=["plain", "box"])
def test_tokens_are_as_likely_as_decoding_says(
    monkeypatch: pytest.MonkeyPatch, name: str, highlight: Highlight | None
) -> None:
    model = engine(name)
    requests = [
        Request(picture((90, 60)), prompt, highlight) for prompt in ("What?", "How many, then?")
    ]
    given = model.generate(requests, Decoding(max_new_tokens=6))
    written = [[*reply.token_ids, 2] for reply in given]
    monkeypatch.setattr(
        "cof.engines.transformers.engine.tokenize_replies", lambda *_, **__: written
    )
    scored = model.score_replies(requests, ["as decoded"] * 2)
    for reply, as_decoded in zip(scored, given, strict=True):
        assert len(reply.token_ids) > 2
        assert reply.token_ids == (*as_decoded.token_ids, 2)
        assert reply.logprobs[:-1] == pytest.approx(as_decoded.logprobs, abs=1e-5)


def test_equals_the_formula_written_out() -> None:
    """`log softmax` of the stock model's own forward pass over prompt and reply."""
    model = engine("llava")
    stock = type(model.model).from_pretrained(checkpoint("llava")).eval()
    image = picture((112, 112))
    scored = model.score_replies([Request(image, "What?")], ["red"])[0]
    text = model.chat.render("What?") + " red"
    inputs = model.processor(images=image, text=text, return_tensors="pt")
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[2]])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logprobs = stock(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    n = len(scored.token_ids)
    assert list(scored.token_ids) == ids[-n:].tolist()
    expected = [float(logprobs[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids))]
    assert scored.logprobs == pytest.approx(expected, abs=1e-5)


def test_a_reply_may_end_with_any_of_the_models_end_tokens() -> None:
    """Chat models have several (Llama 3, Gemma 3), and the first is not the one they write."""
    model = TransformersEngine.from_pretrained(checkpoint("llava"))
    request = Request(picture((90, 60)), "What?")

    def ending(*ids: int) -> float:
        model.model.generation_config.eos_token_id = list(ids)
        return math.exp(model.score_replies([request], ["red"])[0].logprobs[-1])

    assert ending(2, 30) == pytest.approx(ending(2) + ending(30))


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_single_and_encoded_equals_plain(name: str) -> None:
    model = engine(name)
    images = [picture((90, 60)), picture((60, 90), 1)]
    encoded = model.encode(images, prefill=True)
    cases = [
        (0, "What?", "red", None),
        (0, "What?", "a longer one", BOX),
        (1, "And how many are there?", "", Highlight(EVERYTHING, 5.0)),
        (1, "What?", "red", Highlight(BOX.region, 7.0, "text")),
    ]
    replies = [reply for _, _, reply, _ in cases]
    batch = model.score_replies(
        [Request(encoded[i], prompt, highlight) for i, prompt, _, highlight in cases], replies
    )
    for (i, prompt, reply, highlight), scored in zip(cases, batch, strict=True):
        single = model.score_replies([Request(images[i], prompt, highlight)], [reply])[0]
        assert scored.token_ids == single.token_ids
        assert scored.logprobs == pytest.approx(single.logprobs, abs=1e-4)
        assert scored.text == reply
    plain = model.score_replies([Request(images[0], "What?")], ["a longer one"])[0]
    assert abs(summed(plain) - summed(batch[1])) > 1e-3  # the highlight reaches it


def test_more_than_the_budget_is_done_in_parts() -> None:
    small = TransformersEngine.from_pretrained(checkpoint("llava"), max_batch_tokens=100)
    image = picture((90, 60))
    requests, replies = [Request(image, "What?")] * 3, ["red", "a longer one", "x"]
    whole = engine("llava").score_replies(requests, replies)
    for part, scored in zip(small.score_replies(requests, replies), whole, strict=True):
        assert part.token_ids == scored.token_ids
        assert part.logprobs == pytest.approx(scored.logprobs, abs=1e-5)
    assert small.score_replies([], []) == []
