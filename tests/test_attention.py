"""The registered functions on a raw model: what they leave alone, carry and refuse.

The formula itself is held for every family in `test_matrix`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import GRID, HEADS, LAYERS, checkpoint, picture, prompts_of
from test_matrix import BOX, HEAT, TALL, WIDE, by_transformers, furthest, ours
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, StaticCache
from zoo import BUILDERS, engine, folder, stock

from cof.attention import bias_mask, registry
from cof.attention.bias_mask import Bias, make_gates
from cof.attention.registry import attach, record_weights, reweight
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.prefix_cache import CACHE
from cof.errors import CofError
from cof.types import Highlight, Request

STRENGTH = 8.0
CELLS = [row * GRID + column for row in (2, 3, 4) for column in (1, 2)]
TEXTS = ["USER: <image>\nwhat digit is it? ASSISTANT:", "USER: <image>\nred? ASSISTANT:"]
CHOOSING = [name for name in ("hy_v4_vl", "qwen4_exp") if name in BUILDERS]
"""Queries choose their keys; Hy4-VL is not in every version of transformers."""


@pytest.fixture(scope="module")
def model() -> Any:
    return engine("llava").model


@pytest.fixture(scope="module")
def pair() -> dict[str, Tensor]:
    processor = AutoProcessor.from_pretrained(checkpoint("llava"), backend="pil")
    images = [picture((60, 40), 1), picture((40, 60), 2)]
    return dict(processor(images=images, text=TEXTS, padding=True, return_tensors="pt"))


def bias_for(
    model: Any, inputs: dict[str, Tensor], strengths: tuple[float, ...] = (STRENGTH, STRENGTH)
) -> Bias:
    is_image = inputs["input_ids"] == model.config.image_token_id
    values = torch.zeros(is_image.shape)
    for row, strength in enumerate(strengths):
        values[row, is_image[row].nonzero()[CELLS, 0]] = math.log(strength)
    return Bias(values)


def generate(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    return model.generate(
        **inputs, return_dict_in_generate=True, output_logits=True, **{**settings, **kwargs}
    )


@pytest.mark.parametrize("carrier", ["mask", "dimensions"])
@pytest.mark.parametrize("focus", ["all", "text", "some layers and heads", "no layer", "soft"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma4", *CHOOSING])
def test_carriers(name: str, focus: str, carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to carry the bias through the prompt, as if sequences were short or long."""
    look = {
        "all": Highlight(BOX, 12.0),
        "text": Highlight(BOX, 12.0, "text"),
        "some layers and heads": Highlight(BOX, 40.0, layers=(1,), heads=(0, 3)),
        "no layer": Highlight(BOX, 40.0, layers=()),
        "soft": Highlight(HEAT, 12.0, graded=True),
    }[focus]
    calls = []
    monkeypatch.setattr(bias_mask, "LONG", 2 if carrier == "dimensions" else 10**6)
    monkeypatch.setattr(
        registry, "widened", lambda *args: calls.append(1) or bias_mask.widened(*args)
    )
    asked = Request(WIDE, "which digit?", look)
    expected, is_image = by_transformers(name, asked)
    assert furthest(ours(name, asked), expected.logits) <= 3e-5
    attention = engine(name).image_attentions([asked])[0][0]
    theirs = expected.attentions[0][0][0, :, -1, is_image].numpy()
    assert attention.reshape(theirs.shape) == pytest.approx(theirs, abs=2e-5)
    if name not in ("gemma4", *CHOOSING):  # which always have a mask
        assert bool(calls) == (carrier == "dimensions" and focus != "no layer")


def test_idle_is_bitwise_stock(model: Any, pair: dict[str, Tensor]) -> None:
    expected = generate(stock("llava"), pair)
    assert furthest(generate(model, pair).logits, expected.logits) == 0
    with reweight(bias_for(model, pair, (1.0, 1.0))):  # lambda = 1
        assert furthest(generate(model, pair).logits, expected.logits) == 0
    with pytest.raises(KeyError), reweight(bias_for(model, pair)):
        raise KeyError
    assert furthest(generate(model, pair).logits, expected.logits) == 0  # nothing is left behind
    with reweight(bias_for(model, pair, (STRENGTH, 1.0))):
        beside = generate(model, pair).logits
    assert furthest([x[1:] for x in beside], [x[1:] for x in expected.logits]) <= 1e-5
    assert furthest([beside[0][:1]], [expected.logits[0][:1]]) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CHOOSING)
def test_keys_are_chosen_as_without_a_bias(name: str, dtype: str) -> None:
    made = TransformersEngine.from_pretrained(folder(name), dtype=dtype)
    model = made.model
    plain = prompts_of(made, [Request(WIDE, "which digit?"), Request(TALL, "red?")])
    inputs = made.adapter._new_inputs(plain)
    chosen: list[Tensor] = []
    for module in model.modules():
        if type(module).__name__.endswith("Indexer"):
            module.register_forward_hook(lambda *of: chosen.append(of[2]))

    def run(bias: Bias | None, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
        chosen.clear()
        given = made.adapter._new_inputs(plain)
        with torch.inference_mode(), reweight(bias):
            logits = generate(model, given, **kwargs).logits
        return logits, chosen[:2]  # of the first pass

    logits, keys = run(None)
    ids = inputs["input_ids"]
    look = Bias(ids.eq(model.config.image_token_id) * (torch.arange(ids.shape[1]) % 3 == 0) * 9.0)
    last = make_gates([(2,)] * 2, [None] * 2, (3, 4))
    late = torch.tensor([40, 50])
    for bias, layers in ((replace(look, gate=last), 2), (look, 1), (replace(look, q_from=late), 1)):
        biased, again = run(bias)
        assert all(map(torch.equal, again[:layers], keys)), "the bias was there before the choice"
        assert layers == 2 or not torch.equal(again[1], keys[1]), "there was no choice"
        assert furthest(biased[:1], logits[:1]) > 1e-3
        static = StaticCache(config=model.config.text_config, max_cache_len=128)
        for kwargs in ({"use_cache": False}, {CACHE: static}) if dtype == "float32" else ():
            assert furthest(run(bias, **kwargs)[0], biased) <= 1e-5
    own = stock(name).config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": own})
    assert furthest(run(None)[0], logits) == 0  # to the bit
    with pytest.raises(CofError, match="never read"):
        run(look)


def test_cache_and_no_cache_and_static_cache(model: Any, pair: dict[str, Tensor]) -> None:
    length = pair["input_ids"].shape[1] + 16
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=length)
    results = []
    for kwargs in ({}, {"use_cache": False}, {CACHE: static}):
        with reweight(bias_for(model, pair)):
            results.append(generate(model, pair, **kwargs))
    for other in results[1:]:
        assert other.sequences.tolist() == results[0].sequences.tolist()
        assert furthest(other.logits, results[0].logits) <= 1e-5


def test_beams_and_returned_sequences(model: Any, pair: dict[str, Tensor]) -> None:
    kwargs = {"num_beams": 3, "num_return_sequences": 2}
    bias = bias_for(model, pair, (3.0, 9.0))
    with reweight(bias):
        together = generate(model, pair, **kwargs)
    # The same search, every row written out by hand as many times as there are beams.
    with reweight(Bias(bias.values.repeat_interleave(3, 0))):
        expected = generate(model, pair, **kwargs)
    assert together.sequences.shape[0] == 4
    assert together.sequences.tolist() == expected.sequences.tolist()
    assert generate(model, pair, **kwargs).sequences.tolist() != expected.sequences.tolist()


def test_what_cannot_be_right_is_noticed(model: Any, pair: dict[str, Tensor]) -> None:
    bias = Bias(bias_for(model, pair).values.repeat(2, 1)[:3])
    with reweight(bias), pytest.raises(RuntimeError, match="3 rows does not fit a batch of 2"):
        generate(model, pair)
    with (
        pytest.raises(CofError, match="never read"),
        reweight(bias_for(model, pair)),
    ):
        generate(stock("llava"), pair)  # it was not attached
    with record_weights() as recorded, torch.inference_mode():
        model(**pair)
    assert [layer.shape[:2] for layer in recorded] == [(2, HEADS)] * LAYERS


def test_a_model_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(checkpoint("llava"))
    with monkeypatch.context() as patch:
        patch.setattr(type(loaded.model.language_model), "_supports_sdpa", False)
        with pytest.raises(CofError, match="does not let its attention be reweighted"):
            attach(loaded, "text_config")
    loaded.config.text_config.attn_logit_softcapping = 50.0
    with pytest.raises(CofError, match="does not let its attention be reweighted"):
        attach(loaded, "text_config")
    assert loaded.config.text_config._attn_implementation == "sdpa"
