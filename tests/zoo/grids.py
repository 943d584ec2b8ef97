"""Families whose vision encoder takes flat patches with their grid: Qwen-VL, GLM-V and kin."""

from __future__ import annotations

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cof.families.processors import images_only
from zoo.parts import SLIDING, TOWER, Made, chat, config, ids, text, words

_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "initializer_range": 0.2,
}
_QWEN = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
_GLM = (
    *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    *("<|video|>", "<|begin_of_video|>", "<|end_of_video|>"),
)


def _qwen_ids(tok: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    return ids(tok, **dict(zip(names, _QWEN, strict=True)))


def _qwen_processor(cls: Any, tok: hf.PreTrainedTokenizerFast, patch: int) -> Any:
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": 16 * patch**2, "longest_edge": 240 * patch**2}
    )
    template = chat("<|vision_start|><|image_pad|><|vision_end|>")
    return images_only(cls)(images, tok, chat_template=template)


def qwen2_vl() -> Made:
    tok = words(*_QWEN)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    made = config(
        "qwen2_vl",
        vision_config={**vision, "patch_size": 14, "initializer_range": 0.2},
        text_config=text("qwen2_vl_text", tok, rope_parameters=_ROPE),
        **_qwen_ids(tok),
    )
    return made, _qwen_processor(hf.Qwen2VLProcessor, tok, 14)


def qwen2_5_vl() -> Made:
    tok = words(*_QWEN)
    windows = {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    made = config(
        "qwen2_5_vl",
        vision_config={**_TOWER, **windows},
        text_config=text("qwen2_5_vl_text", tok, rope_parameters=_ROPE),
        **_qwen_ids(tok),
    )
    return made, _qwen_processor(hf.Qwen2_5_VLProcessor, tok, 14)


def _qwen3(kind: str, vision: dict[str, Any], **decoder: Any) -> Made:
    tok = words(*_QWEN)
    tower = {**_TOWER, "patch_size": 16, "num_position_embeddings": 64, **vision}
    made = config(
        kind,
        vision_config=tower,
        text_config=text(f"{kind}_text", tok, head_dim=8, rope_parameters=_ROPE) | decoder,
        **_qwen_ids(tok),
    )
    return made, _qwen_processor(hf.Qwen3VLProcessor, tok, 16)


_DEEPSTACK = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def qwen3_vl() -> Made:
    return _qwen3("qwen3_vl", _DEEPSTACK)


def qwen3_vl_moe() -> Made:
    return _qwen3("qwen3_vl_moe", _DEEPSTACK, **_EXPERTS)


_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def qwen3_5() -> Made:
    return _qwen3("qwen3_5", {}, **_LINEAR)


def qwen3_5_moe() -> Made:
    return _qwen3("qwen3_5_moe", {}, **_LINEAR, **_EXPERTS, shared_expert_intermediate_size=16)


def qwen4_exp() -> Made:
    """Queries choose 8 pairs of keys, fewer than any prompt has."""
    indexer = {"indexer_n_heads": 24, "indexer_kv_heads": 1, "indexer_head_dim": 8}
    indexer |= {"indexer_budget": 16, "indexer_compress_ratio": 2}
    layers = [*_LINEAR["layer_types"], "full_attention"]
    decoder = {**_LINEAR, **_EXPERTS, **indexer, "num_hidden_layers": 3, "layer_types": layers}
    return _qwen3("qwen4_exp", {}, **decoder, shared_expert_intermediate_size=16, hc_lowrank=8)


if "lfm3_vl" in CONFIG_MAPPING:

    def lfm3_vl() -> Made:
        """Its vision encoder without convolutions, which mix what neighbouring patches show."""
        tok = words(*_QWEN)
        layers = ["conv", *SLIDING]
        made = config(
            "lfm3_vl",
            vision_config={**TOWER, "num_key_value_heads": 1, "layer_types": layers[-1:] * 2},
            text_config=text("lfm3", tok, num_hidden_layers=3, head_dim=8, sliding_window=24)
            | {"layer_types": layers},
            projector_hidden_size=48,
            **_qwen_ids(tok),
        )
        return made, _qwen_processor(hf.Lfm3VlProcessor, tok, 16)


def _glm(kind: str, text_kind: str, processor: Any, images: Any, **decoder: Any) -> Made:
    tok = words(*_GLM)
    names = ("image_start_token_id", "image_token_id", "image_end_token_id", "video_token_id")
    names += ("video_start_token_id", "video_end_token_id")
    rope = {**_ROPE, "partial_rotary_factor": 1.0}
    made = config(
        kind,
        vision_config={**_TOWER, "image_size": 56, "patch_size": 14},
        text_config=text(text_kind, tok, rope_parameters=rope, **decoder),
        **ids(tok, **dict(zip(names, _GLM, strict=True))),
    )
    template = chat("<|begin_of_image|><|image|><|end_of_image|>")
    size = {"shortest_edge": 16 * 14**2, "longest_edge": 480 * 14**2}
    return made, images_only(processor)(images(size=size), tok, chat_template=template)


def glm4v() -> Made:
    return _glm("glm4v", "glm4v_text", hf.Glm4vProcessor, hf.Glm4vImageProcessorPil)


def glm46v() -> Made:
    return _glm("glm46v", "glm4v_text", hf.Glm46VProcessor, hf.Glm46VImageProcessorPil)


def glm4v_moe() -> Made:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    family = ("glm4v_moe", "glm4v_moe_text", hf.Glm4vProcessor, hf.Glm4vImageProcessorPil)
    return _glm(*family, head_dim=8, **experts)


def exaone4_5() -> Made:
    tok = words(*_QWEN)
    windows = {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    made = config(
        "exaone4_5",
        vision_config={**_TOWER, **windows, "num_key_value_heads": 1},
        text_config=text("exaone4", tok, head_dim=8, layer_types=SLIDING, sliding_window=24),
        **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    return made, _qwen_processor(hf.Exaone4_5_Processor, tok, 14)


def video_llama_3() -> Made:
    tok = words(*_QWEN)
    made = config(
        "video_llama_3",
        vision_config={**TOWER, "patch_size": 14},
        text_config=text("qwen2", tok),
        **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    images = hf.VideoLlama3ImageProcessorPil(
        merge_size=1, size={"shortest_edge": 16 * 14**2, "longest_edge": 120 * 14**2}
    )
    processor = images_only(hf.VideoLlama3Processor)(
        images, tok, chat_template=chat("<|image_pad|>")
    )
    return made, processor


if "hy_v4_vl" in CONFIG_MAPPING:

    def hy_v4_vl() -> Made:
        """Queries choose 16 keys, fewer than any prompt has. With fewer heads to choose them some
        keys would tie at 0, and padding would decide."""
        tok = words(*_QWEN)
        tower = {**TOWER, "patch_size": 16, "out_hidden_size": 32, "max_image_size": 128}
        latents = {"q_lora_rank": 16, "kv_lora_rank": 24, "qk_nope_head_dim": 8}
        heads = {**latents, "qk_rope_head_dim": 8, "v_head_dim": 12, "num_hidden_layers": 3}
        indexer = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 24}
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        made = config(
            "hy_v4_vl",
            vision_config=tower,
            text_config=text("hy_v4_vl_text", tok, rope_parameters=_ROPE)
            | {**heads, **indexer, **experts},
            **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        )
        images = hf.HYV4VLImageProcessorPil(
            size={"shortest_edge": 16 * 16**2, "longest_edge": 240 * 16**2}
        )
        processor = images_only(hf.HYV4VLProcessor)(
            images, tok, chat_template=chat("<|image_pad|>")
        )
        return made, processor
