"""Families with cross-attention to the image: the bias is the formula's, and idle is the model."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from models import checkpoint, picture, prompts_of
from test_families import STEPS, engine, gap, request
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    GenerationConfig,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask
from zoo import CROSS_ATTENTION, zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.types import Decoding, Request

_hand: dict[str, Any] = {}


def _by_hand(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """softmax(A + log(lambda) M) in the cross-attention, every query."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    if any(module is looking for looking in _hand["looking"]):
        scores[..., _hand["keys"]] += math.log(_hand["strength"])
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("test_crossing_by_hand", _by_hand)
AttentionMaskInterface.register("test_crossing_by_hand", eager_mask)
DECODING = {
    "num_beams": 1,
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "do_sample": False,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
PROMPT = {"mllama": "USER: <|image|>\n{} ASSISTANT:", "kosmos2": "Question: {} Answer:"}
# On SDPA, transformers makes Kosmos-2's resampler causal, which it is not.
STOCK = {"mllama": "sdpa", "kosmos2": "eager"}


@functools.cache
def stock(name: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(zoo(name)).eval()


def looking(name: str, model: Any) -> list[Any]:
    if name == "kosmos2":
        return [model.image_to_text_projection.x_attn]
    layers = model.model.language_model.layers
    return [layers[number].cross_attn for number in model.config.text_config.cross_attention_layers]


def by_transformers(name: str, asked: Request, attention: str) -> list[Tensor]:
    """Logits of transformers' own processor and model."""
    made, model = engine(name), stock(name)
    keys = torch.from_numpy(made.token_mask(asked.image.size, asked.highlight).ravel())
    lead = made.family.num_prefix_features(model.config)
    _hand.update(
        looking=looking(name, model),
        keys=keys.nonzero().ravel() + lead,
        strength=asked.highlight.strength,
    )
    options = {"add_special_tokens": False} if name == "mllama" else {}
    inputs = made.processor(
        images=asked.image,
        text=PROMPT[name].format(asked.prompt),
        return_tensors="pt",
        **options,
    )
    model.set_attn_implementation({"text_config": attention})
    with torch.inference_mode():
        return model.generate(**inputs, **DECODING).logits


def ours(name: str, asked: Request) -> list[Tensor]:
    made = engine(name)
    with torch.inference_mode():
        prompts = prompts_of(made, [asked])
        return made.adapter.generate(prompts, generation_config=GenerationConfig(**DECODING)).logits


@pytest.mark.parametrize("name", CROSS_ATTENTION)
@pytest.mark.parametrize("size", ["wide", "tall", "tiny"])
def test_idle_is_stock(name: str, size: str) -> None:
    asked = request(size, 1.0)
    assert gap(ours(name, asked), by_transformers(name, asked, STOCK[name])) <= 1e-5


@pytest.mark.parametrize("name", CROSS_ATTENTION)
@pytest.mark.parametrize("size", ["wide", "tall"])
def test_bias_is_the_formula(name: str, size: str) -> None:
    asked = request(size, 12.0)
    result = ours(name, asked)
    assert gap(result, by_transformers(name, asked, "test_crossing_by_hand")) <= 3e-5
    plain = by_transformers(name, request(size, 1.0), STOCK[name])
    assert float((result[0] - plain[0]).abs().max()) > 0.01


def test_kosmos2_reads_every_patch() -> None:
    """Idle, too: a patch far behind the first queries changes the first image token."""
    made = engine("kosmos2")
    features = made.encode([request("wide", 1.0).image])[0].features[None]
    changed = features.clone()
    changed[:, -1] += 1
    project = made.model.image_to_text_projection
    with torch.inference_mode():
        assert float((project(features)[0] - project(changed)[0])[:, 0].abs().max()) > 1e-6


def test_a_q_former_reads_the_beginning_of_a_long_question() -> None:
    """It has 256 places for text (512 in InstructBLIP); the decoder reads it whole."""
    made = TransformersEngine.from_pretrained(checkpoint("instructblip"))
    start = "x" * 300
    asked = [Request(picture((60, 40)), prompt) for prompt in (start, start + "y", "short")]
    inputs = made.adapter.tokenize([request.prompt for request in asked], [[{}]] * 3)
    assert inputs["qformer_input_ids"].shape == (3, 256)
    first, second, _ = inputs["attention_mask"].sum(1).tolist()
    assert second == first + 1
    assert len(made.generate(asked, Decoding(max_new_tokens=2))) == 3
