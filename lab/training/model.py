"""The embedded model's architecture: an untrained `LlavaForConditionalGeneration`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from cof.tiny.scenes import SIDE
from lab.training.tokenizer import BOS, EOS, IMAGE, PAD

PATCH = 16
GRID = SIDE // PATCH  # 10 x 10 image tokens
VISION_DIM = 192


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """LLaVA-1.5's architecture, small: about 3 M parameters of vision tower, 5 M of decoder.

    As in LLaVA-1.5 the features come from before the last vision layer, so that all
    implementations (some add a final layer norm after the last layer) use the same features.
    """
    vision = CLIPVisionConfig(
        hidden_size=VISION_DIM,
        intermediate_size=4 * VISION_DIM,
        num_hidden_layers=7,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=VISION_DIM,
        hidden_act="gelu",
    )
    pad, bos, eos, image = tokenizer.convert_tokens_to_ids([PAD, BOS, EOS, IMAGE])
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
    )


def full_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attention without a mask as two matrix products.

    It trains three times faster than SDPA here, whose backward pass is slow on CPUs at this size.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("cof_tiny_full", full_attention)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A model with random weights, in bf16.

    Its position embeddings start as sines of large amplitude, without which it learns no boxes.
    """
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(make_config(tokenizer))
    model.set_attn_implementation({"vision_config": "cof_tiny_full"})
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] = sincos_positions(GRID, VISION_DIM)
        embeddings.position_embedding.weight[0] = 0
        torch.nn.init.normal_(embeddings.patch_embedding.weight, std=(3 * PATCH * PATCH) ** -0.5)
    return model.bfloat16()


def sincos_positions(grid: int, dim: int) -> Tensor:
    """`(grid * grid, dim)` two-dimensional sine-cosine positions in raster order, RMS 0.7."""
    frequency = math.pi * torch.logspace(-0.5, 1.0, dim // 4) / grid
    angles = torch.arange(grid)[:, None] * frequency  # (grid, dim / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, dim / 2)
    rows = axis[:, None].expand(grid, grid, -1)
    columns = axis[None, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, dim)


def normalize(pixels: Tensor) -> Tensor:
    """`(B, H, W, 3)` uint8 -> `(B, 3, H, W)` float, with CLIP's mean and standard deviation."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=pixels.device)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def image_features(model: Any, pixel_values: Tensor) -> Tensor:
    """`(B, GRID * GRID, VISION_DIM)`: the projector's input; the unused last layer is not run."""
    tower = model.model.vision_tower
    hidden: Tensor = tower.pre_layrnorm(tower.embeddings(pixel_values.to(tower.dtype)))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden[:, 1:]


def is_used(name: str) -> bool:
    """Whether the features depend on a weight of the vision tower."""
    return "layers.6." not in name and "post_layernorm" not in name


def cover(xyxy: Sequence[float]) -> NDArray[np.float64]:
    """`(GRID, GRID)`: the share of each patch that a box in pixels covers."""
    edges = np.arange(GRID + 1) * PATCH
    across, down = (
        np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None)
        for start, end in ((xyxy[0], xyxy[2]), (xyxy[1], xyxy[3]))
    )
    return down[:, None] * across[None, :] / PATCH**2
