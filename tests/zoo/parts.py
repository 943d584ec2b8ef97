"""What tiny models of all families are put together from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from models import SPECIAL, tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
CLIP = {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, **TOWER}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
    **TOWER,
}
SLIDING = ["sliding_attention", "full_attention"]
SQUARE = {"height": 56, "width": 56}

Made = tuple[Any, Any]
"""A config and a processor."""


def chat(image: str) -> str:
    """A chat template in which an image is written in this way."""
    return CHAT.replace("IMAGE", image)


def words(*special: str, **names: str) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with a family's own special tokens."""
    made = tokenizer("left")
    made.add_special_tokens({"additional_special_tokens": [*special, *names.values()]})
    if not names:
        return made
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        padding_side="left",
        extra_special_tokens=names,  # they become attributes
        **SPECIAL,
    )


def ids(tok: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    """Names in a config -> the numbers of their tokens."""
    return {name: tok.convert_tokens_to_ids(token) for name, token in tokens.items()}


def text(kind: str, tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """The config of a small language model."""
    return {
        "model_type": kind,
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        **deepcopy(more),  # transformers writes into the dictionaries that it is given
    }


def config(kind: str, **values: Any) -> Any:
    """A config by its `model_type`; those inside it may be dictionaries."""
    return CONFIG_MAPPING[kind](**values)
