"""Families that cut an image into tiles, each a raster of tokens."""

from __future__ import annotations

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from cof.families.processors import images_only
from zoo.parts import CLIP, SIGLIP, SLIDING, SQUARE, TOWER, Made, chat, config, ids, text, words


def llava_next() -> Made:
    tok = words("<image>")
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    made = config(
        "llava_next",
        vision_config=CLIP,
        text_config=text("llama", tok),
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
        tie_word_embeddings=False,
        **ids(tok, image_token_index="<image>"),
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=pinpoints
        ),
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return made, processor


def llava_onevision() -> Made:
    tok = words("<image>", "<video>")
    pinpoints = [[56 * rows, 56 * columns] for rows in range(1, 4) for columns in range(1, 4)]
    made = config(
        "llava_onevision",
        vision_config=SIGLIP,
        text_config=text("qwen2", tok),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",  # so few that the third shape is interpolated
        tie_word_embeddings=False,
        **ids(tok, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = images_only(hf.LlavaOnevisionProcessor)(
        hf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=pinpoints),
        tok,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=chat("<image>"),
    )
    return made, processor


def internvl() -> Made:
    tok = words(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {"image_size": [56, 56], "patch_size": [14, 14], "layer_scale_init_value": 1.0}
    made = config(
        "internvl",
        vision_config={**TOWER, **vision},
        text_config=text("qwen2", tok),
        image_seq_length=4,
        tie_word_embeddings=False,
        **ids(tok, image_token_id="<IMG_CONTEXT>"),
    )
    processor = images_only(hf.InternVLProcessor)(
        hf.GotOcr2ImageProcessorPil(size=SQUARE, max_patches=4),
        tok,
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>"),
    )
    return made, processor


_AYA = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL")


def aya_vision() -> Made:
    tok = words("<image>", *_AYA)
    made = config(
        "aya_vision",
        vision_config=SIGLIP,
        text_config=text("cohere2", tok, sliding_window=24, layer_types=SLIDING),
        alignment_intermediate_size=64,
        **ids(tok, image_token_index="<|IMG_PATCH|>"),
    )
    processor = hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessorPil(size=SQUARE, max_patches=4),
        tok,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
        chat_template=chat("<image>"),
    )
    return made, processor


_SPLIT = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}
_PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_LONGEST = {"size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}}


def idefics3() -> Made:
    tok = words(*_SPLIT.values(), *_PLACES)
    made = config(
        "idefics3",
        vision_config={**TOWER, "image_size": 56, "patch_size": 14},
        text_config=text("llama", tok),
        scale_factor=2,
        pad_token_id=0,
        **ids(tok, image_token_id="<image>"),
    )
    images = hf.Idefics3ImageProcessorPil(**_LONGEST)
    return made, hf.Idefics3Processor(images, tok, image_seq_len=4, chat_template=chat("<image>"))


def smolvlm() -> Made:
    tok = words(*_PLACES, **_SPLIT)
    made = config(
        "smolvlm",
        vision_config={**TOWER, "image_size": 56, "patch_size": 14},
        text_config=text("llama", tok),
        scale_factor=2,
        pad_token_id=0,
        **ids(tok, image_token_id="<image>"),
    )
    images = hf.SmolVLMImageProcessorPil(**_LONGEST)
    processor = images_only(hf.SmolVLMProcessor)(
        images, tok, None, image_seq_len=4, chat_template=chat("<image>")
    )
    return made, processor


if "molmo2" in CONFIG_MAPPING and is_torchvision_available():
    _MOLMO = ("im_patch", "im_col", "im_start", "low_res_im_start", "im_end", "im_low")
    _FRAMES = ("frame_start", "frame_end")

    def molmo2() -> Made:
        tower = {**TOWER, "num_key_value_heads": 2, "head_dim": 16}
        tok = words(*(f"<{name}>" for name in (*_MOLMO, *_FRAMES)), image_token="<|image|>")
        made = config(
            "molmo2",
            vision_config={**tower, "image_size": [84, 84]},
            adapter_config={**tower, "vision_feature_layer": [1, 0], "text_hidden_size": 32},
            # the model never writes the tokens of images
            text_config=text("molmo2_text", tok, head_dim=8)
            | {"vocab_size": len(tok) - 9, "additional_vocab_size": 9},
            **ids(tok, image_patch_id="<im_patch>"),
        )
        square = {"height": 84, "width": 84}
        images = hf.Molmo2ImageProcessor(size=square, max_crops=4, overlap_margins=[1, 1])
        videos = hf.Molmo2VideoProcessor()
        return made, hf.Molmo2Processor(images, videos, tok, chat_template=chat("<|image|>"))


if "minicpm_ocr" in CONFIG_MAPPING and is_torchvision_available():

    def minicpm_ocr() -> Made:
        names = ("image", "video", "image_start", "image_end", "slice_start", "slice_end")
        names += ("image_id_start", "image_id_end")
        tok = words(**{f"{name}_token": f"<{name}>" for name in names})
        linear = {"layer_types": ["linear_attention", "full_attention"]}
        linear |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
        linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        made = config(
            "minicpm_ocr",
            vision_config={**TOWER, "image_size": 56, "patch_size": 14},
            text_config=text("qwen3_5_text", tok, head_dim=8) | linear,
            **ids(tok, image_token_id="<image>", video_token_id="<video>"),
        )
        images = hf.MiniCPMOcrImageProcessor(scale_resolution=84, max_slice_nums=4)
        videos = hf.MiniCPMOcrVideoProcessor()
        return made, hf.MiniCPMOcrProcessor(images, videos, tok, chat_template=chat("<image>"))
