"""What is known of a model family; every supported one, and the lookup by a model's config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from cof.errors import CofError
from cof.families import token_means
from cof.geometry.boxes import Frame
from cof.prompting import dialects
from cof.prompting.dialects import LLAVA, Dialect


@dataclass(frozen=True)
class Family:
    """What the engine has to know of a model family.

    Attributes:
        name: for people.
        model_types: the `model_type` of the config.json files that it covers.
        token_means: `(the processor's output for one image, config)` -> the mean of the pixels of
            each image token, `(grid_h, grid_w)`, or `(tokens,)` where the tokens are no single
            raster.
        adapter: where the bias goes, a key of `decoder_adapter.ADAPTERS`.
        dialect: how it is asked for a box and writes it.
        frame: `(image_wh, image processor)` -> where the original lies in the native coordinates
            of the boxes that the model writes; None: it fills the dialect's scale. Where these are
            fractions, it is also the frame of the token grid.
        prompt: the prompt around `{prompt}` when the processor has no chat template; `{bos}` is
            the start token, where the tokenizer does not add it.
        chat_template: in its place, in Jinja, for whole chats.
        num_prefix_features: config -> how many image features stand before the first token of
            `token_means` (CLS).
        pads_to_square: whether its reference evaluation pads images to a square, unlike the
            processor on the hub; None: the processor on the hub is the reference.
        image_type: the value of image tokens in `token_type_ids`, where the model takes them: 1 in
            Gemma 3, which marks images alone; 0 in PaliGemma, which marks answers alone.
        prefill: whether the decoder's state after the image depends on nothing that follows it
            (causal attention, positions without memory), so that it can be cached and reused.
        bidirectional: config -> whether image tokens attend to later tokens of their image. A bias
            on one of them changes the states of all then.
        second: whether a second image may follow the first.
        stacks: whether images whose pixels have the same shapes can be encoded in one call.
        stand_in: `(image_wh, image processor)`, of a large image -> a size at which the same
            image gives each token the same part of it; None: not known.
        starts: whether its processor puts the start token before every prompt, or the end token
            where the tokenizer has no start token.
    """

    name: str
    model_types: tuple[str, ...]
    token_means: Callable[[Mapping[str, Any], Any], NDArray[np.float64]]
    adapter: Literal["decoder", "qformer", "mllama", "kosmos2"] = "decoder"
    dialect: Dialect = LLAVA
    frame: Callable[[tuple[int, int], Any], Frame] | None = None
    prompt: str = "{prompt}"
    chat_template: str = ""
    num_prefix_features: Callable[[Any], int] = lambda config: 0
    pads_to_square: bool | None = None
    image_type: int = 1
    prefill: bool = True
    bidirectional: Callable[[Any], bool] = lambda config: False
    second: bool = True
    stacks: bool = True
    stand_in: Callable[[tuple[int, int], Any], tuple[int, int]] | None = None
    starts: bool = False

    @property
    def takes_two(self) -> bool:
        """Whether it can be shown two images at once."""
        return self.adapter == "decoder" and self.second


DIALECTS = {"tiny": dialects.TINY}
"""Dialects a checkpoint may name in its config.json as `cof_dialect`, against its family's."""

_VICUNA = """\
{%- for turn in messages %}
{%- if turn.role != 'system' %}{{ turn.role | upper + ': ' }}{% endif %}
{%- for part in turn.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}
{%- for part in turn.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}
{%- endfor %}{{ 'ASSISTANT:' }}"""
"""As in the checkpoints on the hub."""

_VIP = """\
{%- for turn in messages %}
{%- if turn.role == 'user' %}{{ '###Human: ' }}{% endif %}
{%- if turn.role == 'assistant' %}{{ '###Assistant: ' }}{% endif %}
{%- for part in turn.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}
{%- for part in turn.content if part.type == 'text' %}{{ part.text }}{% endfor %}
{%- endfor %}{{ '###Assistant:' }}"""


def clip_frame(image_wh: tuple[int, int], image_processor: Any) -> Frame:
    """Padded square, centre crop or whole image, as the processor's options say."""
    if getattr(image_processor, "do_pad", False):
        return Frame.padded_square(image_wh)
    crops = getattr(image_processor, "do_center_crop", False)
    if crops and image_processor.size.get("shortest_edge"):
        return Frame.centre_crop(image_wh)
    return Frame.of_image()


LARGE = 768
"""Pixels of an image's shorter side, of which rounding is less than a tenth of a percent."""


def any_size(image_wh: tuple[int, int], _: object) -> tuple[int, int]:
    """`LARGE` for the shorter side."""
    scale = min(image_wh) / LARGE
    return round(image_wh[0] / scale), round(image_wh[1] / scale)


def qwen_size(image_wh: tuple[int, int], image_processor: Any) -> tuple[int, int]:
    """That of the image which the processor has resized."""
    width, height = image_wh
    factor = image_processor.patch_size * image_processor.merge_size
    least, most = (image_processor.size[name] for name in ("shortest_edge", "longest_edge"))
    height, width = smart_resize(height, width, factor, min_pixels=least, max_pixels=most)
    return width, height


def qwen_frame(image_wh: tuple[int, int], image_processor: Any) -> Frame:
    """Pixels of the image that the processor has resized."""
    return Frame.pixels(qwen_size(image_wh, image_processor))


_LLAVA = Family(
    "LLaVA-1.5",
    ("llava",),
    token_means.patch_grid,
    chat_template=_VICUNA,
    num_prefix_features=lambda config: int(config.vision_feature_select_strategy != "default"),
    frame=clip_frame,
    pads_to_square=True,
    stand_in=any_size,
)
_MISTRAL3 = Family(
    "Mistral 3", ("mistral3",), token_means.patch_grid, prompt="<s>[INST]{prompt}\n[IMG][/INST]"
)
_QWEN3 = Family(
    "Qwen3-VL",
    ("qwen3_vl", "qwen3_vl_moe"),
    token_means.merged_grid,
    dialect=dialects.QWEN3,
    stand_in=qwen_size,
)
_IDEFICS3 = Family(
    "Idefics3",
    ("idefics3",),
    token_means.tiles(lambda config: config.scale_factor),
    dialect=dialects.PAPER,
)
_BLIP = Family(
    "InstructBLIP",
    ("instructblip",),
    token_means.patch_grid,
    adapter="qformer",
    dialect=dialects.PAPER,
    num_prefix_features=lambda config: 1,
    prefill=False,
    stand_in=any_size,
)

FAMILIES: tuple[Family, ...] = (
    _LLAVA,
    Family("LLaVA-NeXT", ("llava_next",), token_means.llava_next, chat_template=_VICUNA),
    # cuts each of several images into tiles, as its processor does for a flat list of them
    Family(
        "LLaVA-OneVision",
        ("llava_onevision",),
        token_means.llava_onevision,
        prompt="<|im_start|>user <image>\n{prompt}<|im_end|><|im_start|>assistant\n",
    ),
    replace(
        _LLAVA,
        name="ViP-LLaVA",
        model_types=("vipllava",),
        chat_template=_VIP,
        num_prefix_features=lambda config: 0,
    ),
    # its config.json says LLaVA; the type is that of its vision encoder (`family_of`)
    replace(_MISTRAL3, name="Pixtral", model_types=("pixtral",)),
    _MISTRAL3,
    replace(_QWEN3, name="Qwen2-VL", model_types=("qwen2_vl",), dialect=dialects.QWEN2),
    Family(
        "Qwen2.5-VL",
        ("qwen2_5_vl",),
        token_means.merged_grid,
        dialect=dialects.QWEN2_5,
        frame=qwen_frame,
        stand_in=qwen_size,
    ),
    _QWEN3,
    # linear-attention layers have no KV cache, so the state after the image cannot be cropped
    replace(_QWEN3, name="Qwen3.5", model_types=("qwen3_5", "qwen3_5_moe"), prefill=False),
    replace(_QWEN3, name="Qwen4-Exp", model_types=("qwen4_exp",), prefill=False),  # the same
    Family("LFM3-VL", ("lfm3_vl",), token_means.merged_grid, prefill=False),  # the same
    Family("Hy4-VL", ("hy_v4_vl",), token_means.hy_v4_vl, prefill=False),  # its keys are chosen
    Family("MiniCPM-OCR", ("minicpm_ocr",), token_means.minicpm_ocr, prefill=False, stacks=False),
    Family(
        "Molmo 2",
        ("molmo2",),
        token_means.molmo2,
        prefill=False,  # the tokens of all images, and those around them, attend to one another
        bidirectional=lambda config: True,
        stacks=False,
        starts=True,
    ),
    Family(
        "InternVL",
        ("internvl",),
        token_means.tiles(lambda config: round(1 / config.downsample_ratio)),
        dialect=dialects.INTERNVL,
    ),
    Family(
        "GLM-4V", ("glm4v", "glm4v_moe", "glm46v"), token_means.merged_grid, dialect=dialects.GLM
    ),
    Family(
        "Gemma 3",
        ("gemma3",),
        token_means.gemma3,
        dialect=dialects.PAPER,
        bidirectional=lambda config: True,
        stand_in=any_size,
    ),
    Family(
        "Gemma 4",
        ("gemma4",),
        token_means.gemma4,
        dialect=dialects.GEMMA4,
        # the larger models, in their sliding-window layers
        bidirectional=lambda config: config.text_config.use_bidirectional_attention == "vision",
    ),
    # its `generate` counts positions in the cache, padding included
    Family("EXAONE 4.5", ("exaone4_5",), token_means.merged_grid, prefill=False),
    Family("VideoLLaMA 3", ("video_llama_3",), token_means.merged_grid),
    Family("Janus", ("janus",), token_means.patch_grid, frame=clip_frame, stand_in=any_size),
    Family(
        "DeepSeek-VL", ("deepseek_vl",), token_means.patch_grid, frame=clip_frame, stand_in=any_size
    ),
    _IDEFICS3,
    replace(_IDEFICS3, name="SmolVLM", model_types=("smolvlm",)),
    Family(
        "Aya Vision",
        ("aya_vision",),
        token_means.tiles(lambda config: config.downsample_factor),
        dialect=dialects.PAPER,
    ),
    Family(
        "PaliGemma",
        ("paligemma",),
        token_means.patch_grid,
        dialect=dialects.PALIGEMMA,
        prompt="<image>{bos}{prompt}\n",
        prefill=False,  # its image tokens attend to the question
        image_type=0,  # 0 marks the prompt, whose tokens attend both ways; 1 marks the answer
        second=False,  # its checkpoints were trained on one
        stand_in=any_size,
    ),
    _BLIP,
    replace(_BLIP, name="BLIP-2", model_types=("blip-2",)),
    Family(
        "Llama 3.2 Vision",
        ("mllama",),
        token_means.mllama,
        adapter="mllama",
        prompt="<|image|>{bos}{prompt}",
        prefill=False,
    ),
    replace(
        _BLIP,
        name="Kosmos-2",
        model_types=("kosmos-2",),
        adapter="kosmos2",
        dialect=dialects.KOSMOS2,
    ),
)


def family_of(config: Any) -> Family:
    """The family of a model's config.

    A model of an unknown type gets what is assumed for it, to be probed once it is loaded
    (`probing.probe`).

    Raises:
        CofError: its type is unknown, and it lacks what is needed to assume anything.
    """
    kind = config.model_type
    if kind == "llava" and config.vision_config.model_type == "pixtral":
        kind = "pixtral"  # its image tokens are laid out in another way
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    parts = ("image_token_id", "vision_config", "text_config")
    if missing := [f"no {name}" for name in parts if getattr(config, name, None) is None]:
        raise unsupported(config, f"its config.json has {' and '.join(missing)}")
    return Family(f"unknown ({kind})", (kind,), unknown_tokens, prefill=False)


def unknown_tokens(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Marks a family that is not probed yet."""
    raise RuntimeError("an assumed family has no raster of image tokens before it is probed")


def unsupported(config: Any, reason: str) -> CofError:
    """The error that refuses a model of an unknown type."""
    return CofError(
        f"Models of type {config.model_type!r} are not supported, and the fallback for unknown "
        f"models cannot take this one: {reason}; `cof models` lists those that are supported."
    )


def dialect_of(config: Any, family: Family) -> Dialect:
    """The dialect a checkpoint names as `cof_dialect` in its config.json, else its family's.

    Raises:
        CofError: it names one that does not exist.
    """
    name = getattr(config, "cof_dialect", None)
    if name not in (None, *DIALECTS):
        raise CofError(
            f"config.json asks for cof_dialect {name!r}; known are: {', '.join(DIALECTS)}."
        )
    return DIALECTS.get(str(name), family.dialect)
