"""Tiny random models in hub layout, with real tokenizers and processors: no download, no training.

`checkpoint(name)` saves one in a temporary folder, once per test run, and returns its path.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SIDE, PATCH = 112, 14
GRID = SIDE // PATCH  # 8 x 8 image tokens
LAYERS, HEADS = 3, 4
QUERIES = 5
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer(padding_side: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer that begins every text with <s>, as LLaMA's does."""
    words = [*SPECIAL.values(), "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=padding_side,
        additional_special_tokens=["<image>"],
        **SPECIAL,
    )


def _text(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.2,
}


def _llava(words: hf.PreTrainedTokenizerFast) -> tuple[Any, Any]:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(projection_dim=32, **_VISION),
        text_config=hf.LlamaConfig(
            intermediate_size=48, num_key_value_heads=2, initializer_range=0.2, **_text(len(words))
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _qformer(words: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "encoder_hidden_size": 32,
        "cross_attention_frequency": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }


def _opt(vocab_size: int) -> hf.OPTConfig:
    return hf.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, init_std=0.12, **_text(vocab_size))


def _t5(vocab_size: int) -> hf.T5Config:
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": HEADS}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    return hf.T5Config(vocab_size=vocab_size, **shape, **tokens)


def _blip(
    words: hf.PreTrainedTokenizerFast, config_class: Any, model_class: Any, text_config: Any = _opt
) -> Any:
    text = text_config(len(words))
    config = config_class(
        vision_config=_VISION,
        qformer_config=_qformer(words),
        text_config={**text.to_dict(), "model_type": text.model_type},
        num_query_tokens=QUERIES,
        initializer_range=0.3,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    model = model_class(config)
    torch.nn.init.normal_(model.query_tokens)  # they start as zeros
    return model


def _blip2(words: hf.PreTrainedTokenizerFast, text_config: Any = _opt) -> tuple[Any, Any]:
    model = _blip(words, hf.Blip2Config, hf.Blip2ForConditionalGeneration, text_config)
    return model, hf.Blip2Processor(hf.BlipImageProcessorPil(**SQUARE), words, QUERIES)


def _instructblip(words: hf.PreTrainedTokenizerFast) -> tuple[Any, Any]:
    model = _blip(words, hf.InstructBlipConfig, hf.InstructBlipForConditionalGeneration)
    images = hf.BlipImageProcessorPil(**SQUARE)
    return model, hf.InstructBlipProcessor(images, words, tokenizer("right"), QUERIES)


BUILDERS = {
    "llava": _llava,
    "blip-2": _blip2,
    "blip-2 with T5": functools.partial(_blip2, text_config=_t5),
    "instructblip": _instructblip,
}


@functools.cache
def checkpoint(name: str) -> Path:
    """A folder in hub layout: config, weights, tokenizer and processor of a random model."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name](tokenizer("left"))
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    folder = Path(tempfile.mkdtemp(prefix="cof-test-")) / name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(wh: tuple[int, int], seed: int = 0) -> Image.Image:
    """RGB noise of a given `(width, height)`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (wh[1], wh[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompts_of(engine: Any, requests: Sequence[Any]) -> Any:
    """An engine's `Prompts` of requests, in one batch and from their beginnings."""
    ((_, batch),) = engine.plan(requests, [0] * len(requests))
    return engine.prompts(batch)
