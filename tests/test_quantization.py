"""Weights of 4 and 8 bits, by transformers and bitsandbytes, on a CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers import quantizer_bnb_4bit, quantizer_bnb_8bit

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.tiny import checkpoint_path
from cof.tiny.benchmark import questions, scene_seed
from cof.tiny.scenes import make_scene, render
from cof.types import Decoding, Highlight, Request

pytest.importorskip("bitsandbytes")

SCENE = make_scene(scene_seed("test", 8, 0), 8)
ASKED = [Request(render(SCENE), question.text) for question in questions(SCENE)]
LOOK = Highlight(Region(boxes=((0.1, 0.2, 0.6, 0.7),)), 4.0)


@cache
def engine(bits: str, dtype: str | None = None) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint_path(), quantization=bits, dtype=dtype)


@pytest.mark.parametrize(
    ("bits", "layer", "dtype"),
    [("8bit", "Linear8bitLt", torch.float16), ("4bit", "Linear4bit", torch.bfloat16)],
)
def test_it_is_the_model_with_small_weights(bits: str, layer: str, dtype: torch.dtype) -> None:
    made, whole = engine(bits), TransformersEngine.from_pretrained(checkpoint_path())
    assert layer in {type(module).__name__ for module in made.model.modules()}
    assert made.model.dtype == dtype
    assert made.model.get_memory_footprint() < 0.3 * whole.model.get_memory_footprint()

    expected, found = (of.generate(ASKED, Decoding(max_new_tokens=8)) for of in (whole, made))
    same = sum(a.text == b.text for a, b in zip(found, expected, strict=True))
    assert len(ASKED) >= 8
    assert same >= len(ASKED) - 2  # rounded weights may turn a close call

    request = ASKED[0]  # they are reweighted too
    looking = Request(request.image, request.prompt, LOOK)
    plain, looked = (made.image_attentions([of])[0].mean((0, 1)) for of in (request, looking))
    inside = made.token_mask(request.image.size, LOOK)
    assert looked[inside].sum() > 1.2 * plain[inside].sum()


def test_a_dtype_of_ones_own_is_kept() -> None:
    assert engine("4bit", "float32").model.dtype == torch.float32


def test_a_config_of_transformers_is_taken_as_it_is() -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    made = TransformersEngine.from_pretrained(checkpoint_path(), quantization=config)
    assert made.model.config.quantization_config.bnb_4bit_quant_type == "fp4"


@pytest.mark.parametrize("missing", ["accelerate", "bitsandbytes"])
@pytest.mark.parametrize(
    ("bits", "module"), [("4bit", quantizer_bnb_4bit), ("8bit", quantizer_bnb_8bit)]
)
def test_a_missing_package_is_named(
    bits: str, module: Any, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, f"is_{missing}_available", lambda: False)
    with pytest.raises(CofError, match=rf"needs the package {missing}: pip install 'cof\[big\]'"):
        TransformersEngine.from_pretrained(checkpoint_path(), quantization=bits)
