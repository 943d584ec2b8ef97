"""The embedded model, and models of LLaVA-1.5's shape in several sizes.

The latter have random weights: costs do not depend on weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from cof.engines.transformers.engine import TransformersEngine
from cof.prompting.dialects import LLAVA_PROMPT, SHORT_ANSWER
from cof.tiny import checkpoint_path
from lab.training.tokenizer import make_processor, train_bpe, wrap

COLORS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "brown", "grey")
QUESTION = "What digit is on the small {} star to the left of the {} house?"
TINY_TOKENS = 100  # the embedded model's tokens of an image
PATCH = 14


@dataclass(frozen=True)
class Shape:
    """Widths and depths of a decoder, and of the vision encoder before it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int = 32064
    vision_hidden: int = 1024  # CLIP ViT-L/14
    vision_layers: int = 24


SHAPES = {
    "smoke": Shape(64, 128, 2, 4, vocabulary=512, vision_hidden=32, vision_layers=2),
    "0.3b": Shape(1024, 2816, 22, 16),
    "1b": Shape(2048, 5504, 22, 16),
    "7b": Shape(4096, 11008, 32, 32),
}


def question(number: int) -> str:
    """One of 90 questions of 15 words and as many tokens.

    >>> question(0)
    'What digit is on the small red star to the left of the blue house?'
    """
    first, second = number % 10, 1 + number // 10 % 9
    return QUESTION.format(COLORS[first], COLORS[(first + second) % 10])


def engine_of(
    name: str, image_tokens: int, dtype: str, device: str, cuda_graphs: bool = False
) -> TransformersEngine:
    """The embedded model as it is used, or one of `SHAPES`, made on the device."""
    options = {"cuda_graphs": cuda_graphs}
    if name == "tiny":
        return TransformersEngine.from_pretrained(checkpoint_path(), device_map=device, **options)
    return make_engine(SHAPES[name], image_tokens, dtype, device, **options)


def make_engine(
    shape: Shape, image_tokens: int, dtype: str, device: str, **options: Any
) -> TransformersEngine:
    """An engine that never stops early: it has no end token."""
    side = math.isqrt(image_tokens) * PATCH
    asked = [question(number) for number in range(10)]
    corpus = [LLAVA_PROMPT, SHORT_ANSWER, *asked, "USER: ASSISTANT:", " [0. , 0."]
    words: Any = wrap(train_bpe(corpus * 2, 480))
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=max(2, shape.vision_hidden // 64),
        image_size=side,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=8192,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=image_tokens,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model: Any = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = shape.vocabulary + 1
    model.generation_config.pad_token_id = 0
    processor = make_processor(words, PATCH, side)
    options |= {"name": "llava-1.5 shape", "max_batch_tokens": 1 << 20}
    return TransformersEngine(model, processor, **options)
