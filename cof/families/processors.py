"""Loading a checkpoint's processor: PIL for images, and nothing for videos.

transformers' video processors and its faster image processors need torchvision. The PIL image
processors need only Pillow and compute the same on every machine. A few families have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import transformers
from transformers import AutoProcessor
from transformers.models.auto.auto_mappings import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    PROCESSOR_MAPPING_NAMES,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.pixtral import image_processing_pil_pixtral as stock_pixtral
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils.import_utils import is_torchvision_available

from cof.errors import CofError

TORCHVISION = ("molmo2", "minicpm_ocr")
"""The models whose images transformers processes with torchvision alone and that we support."""

_VIDEO = "video_processor"
_NO_VIDEOS = SimpleNamespace(num_frames=None, fps=None)  # SmolVLM's chats ask even without videos


class PixtralImageProcessorPil(stock_pixtral.PixtralImageProcessorPil):
    """transformers' class of this name, for images of any shape.

    transformers shrinks the shorter side of a long and thin image to no pixel at all, and Mistral 3
    fails on an image of one token. The pixels of such images are repeated first.

    Attributes:
        least_tokens: the fewest tokens of an image, 1 or 2.
    """

    least_tokens = 1

    def resize(  # type: ignore[override]
        self, image: Any, size: Any, patch_size: Any, resample: Any = None, **kwargs: Any
    ) -> Any:
        longest = size.longest_edge or min(size.height or 1, size.width or 1)
        for axis in (-2, -1):
            times = math.ceil(max(image.shape[-2:]) / longest / image.shape[axis])
            image = np.repeat(image, times, axis)
        height, width = image.shape[-2:]
        if self.least_tokens > 1 and height <= patch_size.height and width <= patch_size.width:
            image = np.repeat(image, patch_size.width // width + 1, axis=-1)
        return super().resize(image, size, patch_size, resample, **kwargs)


class PixtralProcessor(ProcessorMixin):
    """transformers' class of this name, which cannot be imported without torchvision.

    Each row of image tokens ends in a break token, the last one in an end token. For images and
    text only.
    """

    valid_processor_kwargs = ProcessingKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **kwargs: Any,
    ) -> None:
        image_processor = PixtralImageProcessorPil.from_dict(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_break_token, self.image_end_token = image_break_token, image_end_token
        # images are resized to whole tokens, not only to whole patches
        side = patch_size * spatial_merge_size
        image_processor.patch_size = {"height": side, "width": side}
        image_processor.least_tokens = 1 if spatial_merge_size == 1 else 2

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **_: Any) -> str:
        side = self.patch_size * self.spatial_merge_size
        height, width = (int(pixels) // side for pixels in image_inputs["image_sizes"][image_idx])
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token


class _Gemma4Kwargs(ProcessingKwargs, total=False):
    _defaults = {  # type: ignore[misc]  # noqa: RUF012
        "text_kwargs": {"return_mm_token_type_ids": True},  # image tokens attend both ways
        "images_kwargs": {"do_convert_rgb": True},
    }


class Gemma4Processor(ProcessorMixin):
    """transformers' class of this name, which cannot be imported without torchvision.

    For images and text only, not for audio and videos.
    """

    valid_processor_kwargs = _Gemma4Kwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **_: Any) -> str:
        count = int(image_inputs["num_soft_tokens_per_image"][image_idx])
        return f"{self.boi_token}{self.image_token * count}{self.eoi_token}"

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_soft_tokens_per_image"]


_OURS: dict[str, Any] = {each.__name__: each for each in (PixtralProcessor, Gemma4Processor)}


def images_only(cls: type[Any]) -> type[Any]:
    """A processor class without its video processor; a class without one is returned unchanged."""
    if _VIDEO not in cls.get_attributes():
        return cls

    attributes: list[str] = cls.get_attributes()

    def get_attributes(_: type[Any]) -> list[str]:
        return [name for name in attributes if name != _VIDEO]

    def get_arguments(made: type[Any], *args: Any, **kwargs: Any) -> list[Any]:
        loaded: list[Any] = super(made, made)._get_arguments_from_pretrained(*args, **kwargs)
        loaded.insert(attributes.index(_VIDEO), None)  # some classes have no default for it
        return loaded

    members = {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(get_arguments),
        _VIDEO: _NO_VIDEOS,
    }
    # The same name: transformers reads it, and saves it.
    return type(cls.__name__, (cls,), members)


def load_processor(name: str, config: Any) -> Any:
    """The processor of a checkpoint, from a folder or the hub, for a model of this config.

    Raises:
        CofError: transformers processes this model's images with torchvision alone, and it is
            missing, or where boxes land is not proven.
    """
    kind = config.model_type
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)
    if backends is not None and "pil" not in backends:
        if kind in TORCHVISION and is_torchvision_available():
            return AutoProcessor.from_pretrained(name, backend="torchvision")
        if kind in TORCHVISION:
            raise CofError(
                f"Models of type {kind!r} need torchvision: pip install 'cof[torchvision]'."
            )
        raise CofError(
            f"Models of type {kind!r} are not supported: transformers processes their images with "
            "torchvision alone, and where boxes land is not proven."
        )
    # Pixtral is a LLaVA with another vision encoder and the processor of Mistral 3.
    pixtral = getattr(getattr(config, "vision_config", None), "model_type", None) == "pixtral"
    ours = _OURS.get("PixtralProcessor" if pixtral else PROCESSOR_MAPPING_NAMES.get(kind, ""))
    if ours is not None:
        return ours.from_pretrained(name, backend="pil")
    known: Any = PROCESSOR_MAPPING.get(type(config), None) or _named(name)
    if known is not None and _VIDEO in known.get_attributes():
        return images_only(known).from_pretrained(name, backend="pil")
    return AutoProcessor.from_pretrained(name, backend="pil")


def _named(name: str) -> Any:
    """The processor class that a checkpoint names; transformers knows none for its type."""
    try:
        named, _ = ProcessorMixin.get_processor_dict(name)
    except OSError:  # older checkpoints have no processor_config.json
        return None
    return getattr(transformers, named.get("processor_class") or "", None)


def image_text(processor: Any, pixels: Mapping[str, Any], number: int) -> str:
    """What stands in a prompt for its image of this number, from 0, as the processor writes it."""
    if not hasattr(processor, "image_token_divisor"):
        return str(processor.replace_image_token(dict(pixels), 0))
    # MiniCPM-OCR's adds the rest where it is called with whole prompts
    divisor = processor.image_token_divisor
    text = processor.replace_image_token(dict(pixels), 0, image_token_divisor=divisor)
    if not processor.default_use_image_id:
        return str(text)
    return f"{processor.image_id_start_token}{number}{processor.image_id_end_token}{text}"


def image_options(processor: Any) -> Mapping[str, Any]:
    """The options that a processor passes to its image processor, such as whether to cut tiles.

    A processor has defaults of its own that override its image processor's. Options that the image
    processor does not take (Kosmos-2) are left out.
    """
    options: Mapping[str, Any] = processor._merge_kwargs(
        processor.valid_processor_kwargs, tokenizer_init_kwargs=processor.tokenizer.init_kwargs
    )["images_kwargs"]
    takes = processor.image_processor.valid_kwargs.__annotations__.keys() - {"return_tensors"}
    return {name: value for name, value in options.items() if name in takes}
