"""Models of an unknown type: taken with a warning, or refused with the reason."""

from __future__ import annotations

import copy
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_matrix import BOX, LOWER, TALL, TINY, WIDE
from transformers import AutoConfig, AutoModelForImageTextToText
from zoo import assert_same, engine, zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError, CofWarning
from cof.types import Decoding, Highlight, Request

SHORT = Decoding(max_new_tokens=4)


@functools.cache
def made_up(name: str) -> Path:
    """A family of the zoo under a `model_type` that nobody knows."""
    known = AutoModelForImageTextToText.from_pretrained(zoo(name))
    kind = f"made_up_{name}"
    config = type("MadeUpConfig", (type(known.config),), {"model_type": kind})
    made = type("MadeUpModel", (type(known),), {"config_class": config})
    AutoConfig.register(kind, config)
    AutoModelForImageTextToText.register(config, made)
    folder = Path(tempfile.mkdtemp(prefix="cof-made-up-")) / name
    shutil.copytree(zoo(name), folder)
    model = made(config.from_pretrained(zoo(name)))
    model.load_state_dict(known.state_dict())
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "assumption"),
    [
        ("deepseek_vl", "squares of 14 processed pixels"),
        ("internvl", "squares of 28 processed pixels, tile by tile"),
        ("gemma3", "squares of 28 processed pixels"),
        ("qwen2_vl", "squares of 2 x 2 patches"),
    ],
)
def test_unknown_is_as_good_as_known(name: str, assumption: str) -> None:
    with pytest.warns(CofWarning, match=f"made_up_{name}' are not known.*{assumption}"):
        made = TransformersEngine.from_pretrained(made_up(name))
    known = engine(name)
    for image in (WIDE, TALL, TINY):
        for highlight in (Highlight(BOX, 12.0), Highlight(LOWER, 12.0)):
            ours, theirs = (of.token_mask(image.size, highlight).ravel() for of in (made, known))
            np.testing.assert_array_equal(ours, theirs)
        asked = [Request(image, "which digit?", look) for look in (None, highlight)]
        assert_same(made.generate(asked, SHORT), known.generate(asked, SHORT))
        features = [of.encode([image])[0].features for of in (made, known)]
        assert torch.equal(*features)  # the vision tower is unchanged after the check


def test_no_raster_is_refused() -> None:
    with pytest.raises(CofError, match=r"image tokens for pixel values of shape .* no raster"):
        TransformersEngine.from_pretrained(made_up("llava_onevision"))


def test_tokens_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForImageTextToText.from_pretrained(made_up("deepseek_vl"))
    features_of = model.base_model.get_image_features

    def backwards(pixel_values: Any, **kwargs: Any) -> Any:
        output = features_of(pixel_values, **kwargs)
        output.pooler_output = output.pooler_output.flip(1)
        return output

    monkeypatch.setattr(model.base_model, "get_image_features", backwards)
    with pytest.raises(CofError, match=r"could not be confirmed: changing a box .* wrong ones"):
        TransformersEngine(model, engine("deepseek_vl").processor)


def test_no_image_token_is_refused() -> None:
    with pytest.raises(CofError, match=r"config\.json has no image_token_id; `cof models` lists"):
        TransformersEngine.from_pretrained(made_up("kosmos2"))


def with_inputs(**extra: Any) -> Any:
    """A processor that makes these inputs too, or others."""

    def change(model: Any, processor: Any) -> None:
        known = type(processor)

        def call(self: Any, **kwargs: Any) -> dict[str, Any]:
            return {**known.__call__(self, **kwargs), **extra}

        processor.__class__ = type(known.__name__, (known,), {"__call__": call})

    return change


def without_image_token(model: Any, processor: Any) -> None:
    processor.chat_template = processor.chat_template.replace("<IMG_CONTEXT>", "<picture>")


def capped(model: Any, processor: Any) -> None:
    model.config.text_config.attn_logit_softcapping = 50.0


@pytest.mark.filterwarnings("ignore:Models of type")
@pytest.mark.parametrize(
    ("change", "like", "reason"),
    [
        (lambda *_: None, "kosmos2", "its processor does not say which tokens stand"),
        (with_inputs(position_ids=np.zeros((1, 1))), "internvl", "it takes position_ids beside"),
        (with_inputs(input_ids=np.zeros((1, 1))), "internvl", "its processor makes other prompts"),
        (without_image_token, "internvl", "chat template does not write an image as <IMG_CONTEXT>"),
        (capped, "internvl", "does not let its attention be reweighted"),
    ],
)
def test_what_is_refused(change: Any, like: str, reason: str) -> None:
    """An unknown model, or its processor, that is not what it would have to be."""
    model = AutoModelForImageTextToText.from_pretrained(made_up("internvl"))
    processor = copy.copy(engine(like).processor)
    change(model, processor)
    with pytest.raises(CofError, match=reason):
        TransformersEngine(model, processor)
