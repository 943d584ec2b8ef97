"""The tiny random models of the other tests, with the smallest heads that vLLM's kernels take."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import models
import torch
import transformers
import zoo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.models.auto.auto_mappings import VIDEO_PROCESSOR_MAPPING_NAMES

HEAD = 32


def _made(name: str) -> tuple[Any, Any]:
    if name == "llava":
        model, processor = models.BUILDERS[name](models.tokenizer("left"))
        return model.config, processor
    return zoo.BUILDERS[name]()


@functools.cache
def checkpoint(name: str) -> Path:
    """A folder in hub layout, once per test run; `name` is one of the zoo's, or `llava`."""
    torch.manual_seed(0)
    config, processor = _made(name)
    text, vision = config.get_text_config(), config.vision_config
    text.head_dim, text.hidden_size = HEAD, HEAD * text.num_attention_heads
    text.initializer_range = 0.1  # scores as large as those of smaller heads
    for width in ("projection_dim", "out_hidden_size"):
        if hasattr(vision, width):
            setattr(vision, width, text.hidden_size)
    if name == "qwen2_vl":
        vision.hidden_size = text.hidden_size  # of its output
    if name == "gemma3":  # a block of the prefix cache ends inside its image
        template = processor.chat_template.replace("<start_of_image>\n", "<start_of_image>")
        processor.chat_template = f"In a few words. {template}"
        processor.tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # vLLM wants them
        text.vocab_size = len(processor.tokenizer)
        text.initializer_range = 0.07
    rope = text.rope_parameters
    if "mrope_section" in rope:
        rope["mrope_section"] = [HEAD // 8, HEAD // 8, HEAD // 4]
        rope["mrope_interleaved"] = name.startswith("qwen3")  # as in their checkpoints
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    folder = Path(tempfile.mkdtemp(prefix="cof-vllm-")) / name
    model.save_pretrained(folder)
    if vision.model_type in ("clip_vision_model", "siglip_vision_model"):
        _name_as_on_the_hub(folder / "model.safetensors")
    processor.save_pretrained(folder)
    if video := VIDEO_PROCESSOR_MAPPING_NAMES.get(config.model_type):  # vLLM wants all there is
        getattr(transformers, video["torchvision"])().save_pretrained(folder)
    return folder


def _name_as_on_the_hub(weights: Path) -> None:
    """transformers saves shorter names than checkpoints have; vLLM knows the latter."""
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        if name.startswith("vision_tower.") and ".vision_model." not in name
        else name: tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
