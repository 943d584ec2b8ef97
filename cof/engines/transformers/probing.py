"""Models of an unknown type: what is assumed about them, and how it is checked as they load.

Most models with a vision encoder and a projector have image tokens that are the squares of a raster
over the processed pixels, tile by tile. `probe` assumes that, finds the size of the squares from
the number of tokens, then changes the pixels of boxes in test images and sees which image features
change. If these are not the ones of the raster, the model is refused.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from cof.engines.transformers.adapter import Adapter
from cof.engines.transformers.decoder_adapter import DecoderAdapter
from cof.errors import CofWarning
from cof.families.chat import Chat, adds_special_tokens
from cof.families.image_tokens import ImageTokens
from cof.families.table import Family, unknown_tokens, unsupported
from cof.families.token_coverage import INSIDE, merged_means, tile_means
from cof.geometry.regions import Region, coverage_image
from cof.types import Request

_LOCAL = "cof_local"
_SIZES = ((300, 200), (170, 340))  # width, height of the test images
_BOXES = ((0.1, 0.15, 0.4, 0.5), (0.55, 0.6, 0.95, 0.9))
_CHANGED = 1e-3  # of the largest change; below it is rounding


def probe(family: Family, model: Any, processor: Any) -> Family:
    """An assumed family with the raster of its model; a known family is returned unchanged.

    Warns:
        CofWarning: what is assumed, and what of it was checked.

    Raises:
        CofError: there is no such raster, or it cannot be checked.
    """
    if family.token_means is not unknown_tokens:
        return family
    config = model.config
    takes = inspect.signature(model.forward).parameters
    if not ("mm_encoder_outputs" in takes and hasattr(model.base_model, "get_image_features")):
        raise unsupported(config, "its image features cannot be computed on their own")
    if not (hasattr(processor, "image_token") and hasattr(processor, "replace_image_token")):
        raise unsupported(config, "its processor does not say which tokens stand for an image")
    tokens = ImageTokens(family, family.dialect, config, processor)
    pixels = tokens.pixels(Image.new("RGB", _SIZES[0]))
    text = processor.replace_image_token(dict(pixels), 0)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    raster, described = _raster(config, pixels, ids.count(config.image_token_id))
    # `prompt` is for processors without a chat template
    family = replace(family, token_means=raster, prompt=f"{processor.image_token}\n{{prompt}}")
    adapter = DecoderAdapter(model, processor, family)
    _compare_inputs(adapter, pixels)
    tokens = ImageTokens(family, family.dialect, config, processor)
    for wh, box in product(_SIZES, _BOXES):
        _check(tokens, adapter, wh, Region(boxes=(box,)))
    warnings.warn(
        f"Models of type {config.model_type!r} are not known. Assumed, and checked with test "
        f"images: its image tokens are {described}. Assumed and not checked: a bias on them in "
        "every layer of the decoder makes it look there, and it writes boxes as fractions of the "
        "whole image.",
        CofWarning,
        stacklevel=2,
    )
    return family


def _compare_inputs(adapter: DecoderAdapter, pixels: Mapping[str, Any]) -> None:
    """Compare the text inputs of a prompt with those that the processor itself makes."""
    model, processor, token = adapter.model, adapter.processor, str(adapter.processor.image_token)
    chat = Chat(adapter.family, adapter.family.dialect, processor)
    image = Image.new("RGB", _SIZES[0])
    text = chat.text(Request(image, "Which?"))
    if token not in text:
        raise unsupported(model.config, f"its chat template does not write an image as {token}")
    special = adds_special_tokens(processor, text)
    theirs = processor(images=image, text=text, return_tensors="np", add_special_tokens=special)
    ours = adapter.tokenize([text], [[pixels]])
    used = {*ours, *inspect.signature(model.base_model.get_image_features).parameters}
    takes = inspect.signature(model.forward).parameters
    missing = [name for name in takes if name in theirs and name not in used]
    if missing:
        raise unsupported(model.config, f"it takes {', '.join(missing)} beside text and image")
    if not np.array_equal(theirs["input_ids"], ours["input_ids"].numpy()):
        raise unsupported(model.config, "its processor makes other prompts")


def _raster(
    config: Any, pixels: Mapping[str, Any], count: int
) -> tuple[Callable[[Mapping[str, Any], Any], NDArray[np.float64]], str]:
    """The raster that has so many tokens for these pixels, and its description."""
    shape = np.shape(pixels["pixel_values"])
    if count and "image_grid_thw" in pixels and len(shape) == 2:
        merge = math.sqrt(int(np.prod(pixels["image_grid_thw"])) / count)
        if merge == int(merge):
            return lambda pixels, _: merged_means(
                pixels["pixel_values"], pixels["image_grid_thw"], int(merge)
            ), f"squares of {int(merge)} x {int(merge)} patches"
    if count and len(shape) >= 4:
        side = math.sqrt(math.prod(shape[:-3]) * shape[-2] * shape[-1] / count)
        if side == int(side) and not shape[-2] % side and not shape[-1] % side:

            def tiles(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
                means = tile_means(pixels["pixel_values"], int(side))
                return means[0] if len(means) == 1 else means.ravel()

            return tiles, f"squares of {int(side)} processed pixels, tile by tile"
    raise unsupported(
        config, f"{count} image tokens for pixel values of shape {shape} are no raster of squares"
    )


def _check(
    tokens: ImageTokens, adapter: DecoderAdapter, wh: tuple[int, int], region: Region
) -> None:
    """Change a box's pixels: the features of its tokens must change, and no others."""
    config = tokens.config
    share = np.nan_to_num(tokens.visibility(wh).coverage(region)).ravel()
    changed = changed_tokens(tokens, adapter, wh, region)
    if len(changed) != len(share):
        raise unsupported(
            config, f"it has {len(changed)} image features where the raster has {len(share)}"
        )
    wrong = int((changed != (share > 0))[(share == 0) | (share >= INSIDE)].sum())
    if wrong:
        raise unsupported(
            config,
            "the places of its image tokens could not be confirmed: changing a box in a test image "
            f"changed the wrong ones ({wrong} of {len(share)})",
        )


def changed_tokens(
    tokens: ImageTokens, adapter: Adapter, wh: tuple[int, int], region: Region
) -> NDArray[np.bool_]:
    """Which image features the pixels of a region change, in a black image of this size."""
    images = (Image.new("RGB", wh), coverage_image(region, wh).convert("RGB"))
    pixels = [tokens.pixels(image) for image in images]
    with use_attention(adapter.model, "vision_config", _LOCAL), torch.inference_mode():
        before, after = (each[adapter.first_feature :] for each in adapter.encode(pixels))
    changes = (before - after).float().flatten(1).norm(dim=1).cpu().numpy()
    return np.asarray(changes > _CHANGED * changes.max())


@contextmanager
def use_attention(model: Any, part: str, name: str) -> Iterator[None]:
    """Another attention inside, in the part of a model with this config."""
    before = getattr(model.config, part)._attn_implementation
    model.set_attn_implementation({part: name})
    try:
        yield
    finally:
        model.set_attn_implementation({part: before})


def _attend_locally(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attention that mixes nothing, so that an image feature depends on its own patches alone."""
    return repeat_kv(value, query.shape[1] // value.shape[1]).transpose(1, 2), None


AttentionInterface.register(_LOCAL, _attend_locally)
