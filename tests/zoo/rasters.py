"""Families whose image is one raster of tokens."""

from __future__ import annotations

import transformers as hf

from cof.families.processors import Gemma4Processor, PixtralProcessor
from zoo.parts import CLIP, SIGLIP, SLIDING, SQUARE, TOWER, Made, chat, config, ids, text, words


def gemma3() -> Made:
    tok = words(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    made = config(
        "gemma3",
        vision_config={**SIGLIP, "image_size": 112},
        text_config=text("gemma3_text", tok, head_dim=8)
        | {"query_pre_attn_scalar": 8, "sliding_window": 24, "layer_types": SLIDING},
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        image_token_index=tok.image_token_id,
        mm_tokens_per_image=16,
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 112, "width": 112}),
        tok,
        chat_template=chat("<start_of_image>"),
        image_seq_length=16,
    )
    return made, processor


def paligemma() -> Made:
    images = hf.SiglipImageProcessorPil(size={"height": 112, "width": 112})
    images.image_seq_length = 64
    processor = hf.PaliGemmaProcessor(images, words("<image>"))
    tok = processor.tokenizer
    made = config(
        "paligemma",
        vision_config={**SIGLIP, "image_size": 112, "projection_dim": 32},
        text_config=text("gemma", tok, head_dim=8),
        projection_dim=32,
        hidden_size=32,
        **ids(tok, image_token_index="<image>"),
    )
    return made, processor


def gemma4() -> Made:
    tok = words(boi_token="<|image>", eoi_token="<image|>", image_token="<|image|>")
    made = config(
        "gemma4",
        vision_config={
            **TOWER,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "position_embedding_size": 256,
        },
        text_config=text("gemma4_text", tok, head_dim=8, global_head_dim=16)
        | {"sliding_window": 24, "layer_types": SLIDING, "use_bidirectional_attention": "vision"}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tok)}
        | {"final_logit_softcapping": 5.0},
        video_token_id=None,
        audio_token_id=None,
        **ids(tok, boi_token_id="<|image>", eoi_token_id="<image|>", image_token_id="<|image|>"),
    )
    images = hf.Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70)
    return made, Gemma4Processor(images, tok, chat_template=chat("<|image|>"))


_PIXTRAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def pixtral() -> Made:
    """Pixtral-12B: a LLaVA with a vision encoder for images of any shape."""
    tok = words(*_PIXTRAL)
    made = config(
        "llava",
        vision_config={**TOWER, "model_type": "pixtral", "image_size": 112, "patch_size": 14},
        text_config=text("mistral", tok, sliding_window=None),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        **ids(tok, image_token_index="[IMG]"),
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=SQUARE)
    return made, PixtralProcessor(images, tok, patch_size=14, chat_template=chat("[IMG]"))


def mistral3() -> Made:
    tok = words(*_PIXTRAL)
    made = config(
        "mistral3",
        vision_config={**TOWER, "model_type": "pixtral", "image_size": 128, "patch_size": 4},
        text_config=text("mistral", tok, sliding_window=None),
        spatial_merge_size=2,
        tie_word_embeddings=False,
        **ids(tok, image_token_index="[IMG]"),
    )
    # Tokens of 8 pixels: transformers fails on images of a single one. Bilinear, because a bicubic
    # kernel's lobes would reach over tokens as small as these.
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 128}, resample=2)
    processor = PixtralProcessor(
        images, tok, patch_size=4, spatial_merge_size=2, chat_template=chat("[IMG]")
    )
    return made, processor


def vipllava() -> Made:
    tok = words("<image>")
    made = config(
        "vipllava",
        vision_config=CLIP,
        text_config=text("llama", tok),
        vision_feature_layers=[-2, -1],
        image_seq_length=16,
        tie_word_embeddings=False,
        **ids(tok, image_token_index="<image>"),
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE),
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return made, processor


def janus() -> Made:
    tok = words(boi_token="<begin_of_image>", eoi_token="<end_of_image>", image_token="<image>")
    made = config(
        "janus",
        vision_config={
            **{name: TOWER[name] for name in TOWER if name != "intermediate_size"},
            "mlp_ratio": 2.0,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
            "num_image_tokens": 16,
        },
        text_config=text("llama", tok),
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 8,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "num_patches": 4,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        **ids(tok, image_token_id="<image>"),
    )
    processor = hf.JanusProcessor(
        hf.JanusImageProcessorPil(size=SQUARE),
        tok,
        num_image_tokens=16,
        chat_template=chat("<image>"),
    )
    return made, processor


def deepseek_vl() -> Made:
    tok = words(image_token="<image_placeholder>")
    made = config(
        "deepseek_vl",
        vision_config=SIGLIP,
        text_config=text("llama", tok),
        **ids(tok, image_token_id="<image_placeholder>"),
    )
    processor = hf.DeepseekVLProcessor(
        hf.DeepseekVLImageProcessorPil(size=SQUARE),
        tok,
        num_image_tokens=16,
        chat_template=chat("<image_placeholder>"),
    )
    return made, processor
