"""The mean of each image token's pixels, from a family's processed pixels.

Every function takes the processor's output for one image and the model's config, and returns
`(grid_h, grid_w)`, or `(tokens,)` where the tokens are no single raster, in the order in which they
stand in the prompt. See `token_coverage`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from cof.families.token_coverage import merged_means, tile_means


def patch_grid(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Each patch is one token (LLaVA-1.5, PaliGemma, the Q-Formers), or each square of patches that
    the model merges (Mistral 3)."""
    merge = getattr(config, "spatial_merge_size", 1)
    means = tile_means(pixels["pixel_values"], config.vision_config.patch_size * merge)
    return np.asarray(means[0])


def merged_grid(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Flat patches with their grid; each token is a square of patches (Qwen-VL, GLM-V)."""
    if "image_merge_sizes" in pixels:  # VideoLLaMA 3's processor says how many
        merge = int(pixels["image_merge_sizes"][0])
    else:
        merge = config.vision_config.spatial_merge_size
    return merged_means(pixels["pixel_values"], pixels["image_grid_thw"], merge)


def hy_v4_vl(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Flat patches, row by row; each token is a square of them. Each row of tokens ends in a
    newline, which shows no pixels: 0."""
    patches = merged_means(pixels["pixel_values"], pixels["image_grid_thw"], 1)
    (tokens,) = tile_means(patches[None], config.vision_config.spatial_merge_size)
    return np.pad(tokens, ((0, 0), (0, 1)))


def molmo2(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """`(crops, N, patch * patch * C)` patches, and which of them each token pools: `(tokens, 4)`
    numbers in all crops, -1 for none. The whole image, then its overlapping crops."""
    means = np.asarray(pixels["pixel_values"], dtype=np.float64)[..., ::3].mean(-1).ravel()
    pooled = np.asarray(pixels["image_token_pooling"])
    used = pooled >= 0
    return np.asarray((means[pooled.clip(0)] * used).sum(1) / used.sum(1))


def minicpm_ocr(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """The whole image, then its slices: `(1, C, patch, patches * patch)`, each of its own size."""
    columns = np.asarray(pixels["pixel_values"], dtype=np.float64)[0, 0]
    patch, side = len(columns), 2 if config.downsample_mode == "4x" else 4
    means = columns.reshape(patch, -1, patch).mean((0, 2))
    sizes = np.asarray(pixels["target_sizes"])  # (slices, 2): rows and columns of patches
    slices = np.split(means, sizes.prod(1).cumsum()[:-1])
    shapes = [(rows // side, side, columns // side, side) for rows, columns in sizes]
    pairs = zip(slices, shapes, strict=True)
    return np.concatenate([each.reshape(shape).mean((1, 3)).ravel() for each, shape in pairs])


def gemma4(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Flat patches, `(1, N, patch * patch * C)`, and their places; the model pools them."""
    patches = np.asarray(pixels["pixel_values"], dtype=np.float64)[0]
    places = np.asarray(pixels["image_position_ids"])[0]  # (N, 2): x, y; -1 for padding
    columns, rows = places.max(0) + 1
    pool = config.vision_config.pooling_kernel_size
    means = patches[: rows * columns, ::3].mean(1)
    return np.asarray(means.reshape(rows // pool, pool, columns // pool, pool).mean((1, 3)))


def tiles(merge: Callable[[Any], int]) -> Callable[[Mapping[str, Any], Any], NDArray[np.float64]]:
    """Tiles in order, each a raster of tokens of `merge(config)` by as many patches."""

    def token_means(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
        patch = np.ravel(config.vision_config.patch_size)[0]  # InternVL has one for each axis
        return tile_means(pixels["pixel_values"], patch * merge(config)).ravel()

    return token_means


def mllama(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Tiles, each with its CLS token first; a CLS token shows no pixels: 0."""
    means = tile_means(pixels["pixel_values"], config.vision_config.patch_size)
    return np.pad(means.reshape(len(means), -1), ((0, 0), (1, 0))).ravel()


def gemma3(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """The whole image, and where it is panned over its tiles after it."""
    side = math.isqrt(config.mm_tokens_per_image)
    means = tile_means(pixels["pixel_values"], config.vision_config.image_size // side)
    return means[0] if len(means) == 1 else means.ravel()


def _packed(
    pixels: Mapping[str, Any], config: Any, pack: Callable[..., Any], *options: Any, **named: Any
) -> NDArray[np.float64]:
    """The base tile, then the tiles of the large image as the model itself joins and unpads them.

    The newline tokens at the ends of rows show no pixels: 0 for any image.
    """
    means = tile_means(pixels["pixel_values"], config.vision_config.patch_size)
    tiles = torch.from_numpy(means).flatten(1)[..., None]  # (tiles, patches, 1)
    sizes = torch.as_tensor(pixels["image_sizes"])
    newline = torch.zeros(1, dtype=tiles.dtype)
    model = SimpleNamespace(config=config)  # it reads nothing but the config
    (tokens,), _ = pack(model, [tiles], sizes, *options, image_newline=newline, **named)
    return np.asarray(tokens.numpy()[:, 0])


def llava_next(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    pack = LlavaNextModel.pack_image_features
    return _packed(pixels, config, pack, config.vision_feature_select_strategy)


def llava_onevision(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    pack = LlavaOnevisionModel.pack_image_features
    return _packed(pixels, config, pack, vision_aspect_ratio=config.vision_aspect_ratio)
