"""Tiny random models of every family, with their real processors, in hub layout.

`zoo(name)` saves one in a temporary folder, once per test run, and returns its path. `tests/models`
has those of the paper.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from zoo import cross_attention, grids, rasters, tiles
from zoo.parts import Made

_MADE_BY: tuple[Callable[[], Made], ...] = (
    tiles.llava_next,
    tiles.llava_onevision,
    grids.qwen2_vl,
    grids.qwen2_5_vl,
    grids.qwen3_vl,
    grids.qwen3_vl_moe,
    grids.qwen3_5,
    grids.qwen3_5_moe,
    tiles.internvl,
    rasters.gemma3,
    tiles.smolvlm,
    tiles.idefics3,
    rasters.paligemma,
    grids.glm4v,
    grids.glm4v_moe,
    grids.glm46v,
    tiles.aya_vision,
    rasters.vipllava,
    rasters.pixtral,
    rasters.mistral3,
    rasters.gemma4,
    rasters.janus,
    rasters.deepseek_vl,
    grids.exaone4_5,
    grids.video_llama_3,
)
_CROSS_ATTENTION_BY: tuple[Callable[[], Made], ...] = (
    cross_attention.mllama,
    cross_attention.kosmos2,
)

BUILDERS: dict[str, Callable[[], Made]] = {make.__name__: make for make in _MADE_BY}
"""Models whose image tokens stand in the decoder."""

CROSS_ATTENTION: dict[str, Callable[[], Made]] = {
    make.__name__: make for make in _CROSS_ATTENTION_BY
}
"""Models that read the image through cross-attention."""


@functools.cache
def zoo(name: str) -> Path:
    """A folder in hub layout: config, weights, tokenizer and processor of a random model."""
    torch.manual_seed(0)
    config, processor = (BUILDERS | CROSS_ATTENTION)[name]()
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if not parameter.any():  # some start as zeros, and with them whole layers do nothing
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    folder = Path(tempfile.mkdtemp(prefix="cof-zoo-")) / name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
