"""Contrastive guidance against its formula, branch by branch, each forced along the same tokens."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import checkpoint, picture, prompts_of
from transformers import LogitsProcessorList
from zoo import zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.generation import Forced
from cof.errors import CofError
from cof.focuses import Attention, Contrast
from cof.geometry.regions import Region
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import Decoding, Generation, Request

NAMES = ["llava", "instructblip", "qwen2_5_vl", "gemma3", "mllama"]
REGION = Region(boxes=((0.1, 0.2, 0.6, 0.7),))
SHORT = Decoding(max_new_tokens=5)


def folder(name: str) -> Any:
    return checkpoint(name) if name in ("llava", "instructblip") else zoo(name)


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(folder(name))


def asked(scale: float = 3.0, strength: float = 6.0, seed: int = 0, **focus: Any) -> Request:
    request = Request(picture((60, 40), seed), "which digit?")
    return Contrast(strength, guidance=scale, **focus).apply(request, REGION)


def along(made: TransformersEngine, request: Request, tokens: tuple[int, ...]) -> torch.Tensor:
    """`(steps, V)` log-probabilities of one branch that is forced along given tokens."""
    highlight = request.highlight
    assert highlight is not None
    config = made._generation_config(Decoding(max_new_tokens=len(tokens)))
    forced = LogitsProcessorList([Forced([tokens], 0)])
    with torch.inference_mode():
        prompts = prompts_of(made, [request])
        output = made.adapter.generate(prompts, generation_config=config, logits_processor=forced)
    return torch.cat([step.float().log_softmax(-1) for step in output.logits])


def assert_same(one: list[Generation], other: list[Generation]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["all", "text"])
def test_every_token_is_the_formulas(name: str, scope: str) -> None:
    made, request = engine(name), asked(scope=scope)
    (reply,) = made.generate([request], SHORT)
    assert reply.token_ids
    highlight = request.highlight
    assert highlight is not None
    one = replace(request, highlight=replace(highlight, guidance=1.0))
    two = replace(request, highlight=replace(highlight, guidance=1.0, strength=1 / 6.0))
    looking, other = (along(made, branch, reply.token_ids) for branch in (one, two))
    led = other + 3.0 * (looking - other)
    assert led.argmax(-1).tolist() == list(reply.token_ids)
    own = [float(row[token]) for row, token in zip(looking, reply.token_ids, strict=True)]
    assert reply.logprobs == pytest.approx(own, abs=1e-4)


def test_what_a_checkpoint_forbids_stays_forbidden() -> None:
    made = TransformersEngine.from_pretrained(checkpoint("llava"))
    (free,) = made.generate([asked()], SHORT)
    made.model.generation_config.suppress_tokens = [free.token_ids[0]]
    (reply,) = made.generate([asked()], SHORT)
    assert reply.token_ids
    assert free.token_ids[0] not in reply.token_ids


def test_guidance_changes_the_answer() -> None:
    replies = engine("llava").generate([asked(scale) for scale in (1.001, 3.0, 30.0)], SHORT)
    assert len({reply.token_ids for reply in replies}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_batch_is_single_beside_rows_of_other_kinds(name: str) -> None:
    plain = Request(picture((90, 40), 3), "a longer question about it?")
    rows = [asked(), plain, Attention(6.0).apply(plain, REGION), asked(1.7, 0.5, seed=4)]
    together = engine(name).generate(rows, SHORT)
    assert_same(together, [engine(name).generate([row], SHORT)[0] for row in rows])


def test_guidance_of_1_is_the_attention_focus() -> None:
    request = Request(picture((60, 40)), "which digit?")
    looking = Attention(6.0).apply(request, REGION)
    assert Contrast(6.0, guidance=1.0).apply(request, REGION) == looking
    beside = engine("llava").generate([asked(1.0), asked(3.0)], SHORT)
    assert_same(beside[:1], engine("llava").generate([looking], SHORT))


def test_encoded_images_and_a_small_budget_change_nothing() -> None:
    rows = [asked(seed=seed) for seed in (0, 0, 1)]
    expected = engine("llava").generate(rows, SHORT)
    images = engine("llava").encode([row.image for row in rows], prefill=True)
    kept = [replace(row, image=image) for row, image in zip(rows, images, strict=True)]
    assert_same(engine("llava").generate(kept, SHORT), expected)
    small = TransformersEngine.from_pretrained(checkpoint("llava"), max_batch_tokens=1)
    assert_same(small.generate(rows, SHORT), expected)


@pytest.mark.parametrize("decoding", [Decoding(num_beams=2), Decoding(temperature=0.7, seed=1)])
def test_greedily_only(decoding: Decoding) -> None:
    with pytest.raises(CofError, match="answers greedily"):
        engine("llava").generate([asked()], decoding)


def test_in_the_pipeline() -> None:
    cof = CoF(engine("llava"), Settings(focus="contrast", grounder="given", guidance=2.0))
    answer = cof(picture((60, 40)), "which digit?", boxes=[(0.1, 0.2, 0.6, 0.7)], decoding=SHORT)
    assert answer.region is not None
    request = Request(picture((60, 40)), "which digit?")
    focus = Contrast(cof.settings.option("strength"), guidance=2.0)
    (direct,) = engine("llava").generate([focus.apply(request, answer.region)], SHORT)
    assert answer.text == direct.text
    with pytest.raises(CofError, match="guidance must be a finite number above 0"):
        Settings(focus="contrast", guidance=0.0)
