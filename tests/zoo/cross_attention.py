"""Families that look at the image through cross-attention."""

from __future__ import annotations

import transformers as hf

from zoo.parts import SQUARE, TOWER, Made, chat, config, ids, text, words


def mllama() -> Made:
    tok = words("<|image|>", "<|python_tag|>")
    tower = {name: TOWER[name] for name in TOWER if name != "num_attention_heads"}
    made = config(
        "mllama",
        vision_config={
            **tower,
            "attention_heads": 2,
            "num_global_layers": 1,
            "vision_output_dim": 96,
            "image_size": 56,
            "patch_size": 14,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0, 1],
        },
        text_config=text("mllama_text_model", tok, num_hidden_layers=4)
        | {"cross_attention_layers": [1, 3], "rope_parameters": {"rope_type": "default"}},
        **ids(tok, image_token_index="<|image|>"),
    )
    made.text_config.rope_parameters["rope_theta"] = 1e4
    images = hf.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4)
    return made, hf.MllamaProcessor(images, tok, chat_template=chat("<|image|>"))


def kosmos2() -> Made:
    tok = words()
    tok.add_special_tokens({"unk_token": "<unk>"})
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE)
    images.do_center_crop = False
    images.size = SQUARE
    processor = hf.Kosmos2Processor(images, tok)
    made = config(
        "kosmos-2",
        vision_config={
            **{name: TOWER[name] for name in TOWER},
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={
            "vocab_size": len(processor.tokenizer),
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 48,
            "attention_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "init_std": 0.2,
        },
        latent_query_num=64,
    )
    return made, processor
