"""A checkpoint's model and processor, loaded with transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    __version__,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from cof.errors import CofError, OutOfMemory
from cof.families import family_of
from cof.families.processors import load_processor
from cof.options import count


def load(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    pad_to_square: bool | None = None,
    max_pixels: int | None = None,
    quantization: Any = None,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """`(model, processor)`; the options are those of `engine.TransformersEngine`.

    Raises:
        CofError: no such model, not reachable, not supported, weights that lack or are damaged, no
            processor, out of memory, or an option that does not apply.
    """
    base = _adapted(name)
    with loading_errors(base):
        config = AutoConfig.from_pretrained(base)
    processor = load_processor_for(base, config, pad_to_square, max_pixels)
    device = device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    place = _as_device(device)
    on_gpu = place is None or place.type != "cpu"
    chosen = _as_dtype(dtype) if dtype is not None else None
    kwargs: dict[str, Any] = {"dtype": chosen or ("auto" if on_gpu else torch.float32)}
    if quantization is not None:
        kwargs |= _quantized(quantization, chosen)
        place = None  # a quantised model is loaded where it stays
    if place is None:
        kwargs["device_map"] = device
    if not allow_pickle:
        kwargs["use_safetensors"] = True
    with loading_errors(name), out_of_memory():
        pair: Any = AutoModelForImageTextToText.from_pretrained(
            name, config=config, output_loading_info=True, **kwargs
        )
        loaded, found = pair
        if missing := sorted(found["missing_keys"]):
            raise CofError(
                f"{name!r} lacks {len(missing)} of the model's weights, which would be random: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Download it anew."
            )
        if place is not None:
            loaded = loaded.to(place)
    return loaded, processor


def _adapted(name: str) -> str:
    """The base model of a PEFT adapter; `name` itself where it is no adapter.

    Raises:
        CofError: it is an adapter, and peft is not installed.
    """
    with loading_errors(name):
        file = find_adapter_config_file(name)
    if file is None:
        return name
    base = str(json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"])
    if not is_peft_available():
        raise CofError(
            f"{name!r} is a PEFT adapter of {base!r}: pip install 'cof[peft]' loads both."
        )
    return base


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn running out of memory into a sentence that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Allocators other than CUDA's raise plain RuntimeErrors.
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not re.search("out of memory|allocate memory|ALLOC_FAILED", str(error)):
            raise
        raise OutOfMemory(
            "Out of memory: use fewer images at once, a smaller model, dtype=bfloat16, or "
            'device_map="auto" (needs the accelerate package).'
        ) from error


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises for a checkpoint into a sentence."""
    try:
        yield
    except (SafetensorError, ImportError, OSError, ValueError, KeyError) as error:
        raise CofError(_explain(name, error)) from error


def _explain(name: str, error: Exception) -> str:
    """Why a checkpoint could not be loaded, and what to do."""
    text = str(error)
    if isinstance(error, SafetensorError):
        return f"The weights of {name!r} are damaged or not complete ({text}): download them anew."
    # transformers tells of a missing package now by ImportError, now by ValueError
    if wanted := re.search(r"pip install[^.]*?(accelerate|bitsandbytes)", text):
        return f"Loading {name!r} this way needs the package {wanted[1]}: pip install 'cof[big]'."
    if isinstance(error, ImportError):
        return f"Loading {name!r} needs a package that is missing: {text}"
    if "llava_llama" in text:
        config, _ = PretrainedConfig.get_config_dict(name)
        size = "13b" if config.get("hidden_size") == 5120 else "7b"
        tiles = config.get("image_aspect_ratio") == "anyres"
        converted = f"v1.6-vicuna-{size}-hf" if tiles else f"1.5-{size}-hf"
        return (
            f"{name!r} is in LLaVA's own layout, which transformers does not read: use the "
            f"converted 'llava-hf/llava-{converted}'."
        )
    if "model.safetensors" in text:
        return (
            f"{name!r} has no weights as safetensors. Pickled ones (.bin) can run any code as "
            "they are loaded: pass engine_options={'allow_pickle': True} if you trust them."
        )
    if "does not recognize this architecture" in text:
        return (
            f"transformers {__version__} does not know the architecture of {name!r}: update it if "
            "`cof models` lists the model."
        )
    return (
        f"No model could be loaded from {name!r}: give a folder with config.json, weights and "
        "processor, or a model id of the Hugging Face hub that this machine can reach "
        f"({text.splitlines()[0] if text else type(error).__name__})."
    )


def load_processor_for(
    name: str, config: Any, pad_to_square: bool | None = None, max_pixels: int | None = None
) -> Any:
    """A checkpoint's processor; the options are those of `engine.TransformersEngine`."""
    family = family_of(config)
    if pad_to_square is not None and family.pads_to_square is None:
        raise CofError(f"pad_to_square is for LLaVA-1.5 only; leave it out for {family.name}.")
    with loading_errors(name):
        processor = load_processor(name, config)
    if getattr(processor, "image_processor", None) is None:
        raise CofError(
            f"{name!r} has no image processor: put the checkpoint's preprocessor_config.json (or "
            "processor_config.json) beside its config.json."
        )
    if family.pads_to_square is not None:
        pad = family.pads_to_square if pad_to_square is None else pad_to_square
        processor.image_processor = _llava_images(processor.image_processor, pad)
    words = processor.tokenizer
    if type(words.backend_tokenizer.model).__name__ == "BPE":  # it cleans nothing, and says so
        words.clean_up_tokenization_spaces = False
    if max_pixels is not None:
        count("max_pixels", max_pixels)
        images = processor.image_processor
        if "max_pixels" not in images.valid_kwargs.__annotations__:
            raise CofError(f"{family.name} has no limit of pixels to set: leave max_pixels out.")
        least = min(images.size["shortest_edge"], max_pixels)
        images.size = {"shortest_edge": least, "longest_edge": max_pixels}
    return processor


def _llava_images(given: Any, pad: bool) -> Any:
    """LLaVA's image processor in one of its two ways, with the size and colours of `given`.

    `CLIPImageProcessor`, the one in checkpoints on the hub, ignores `do_pad`.
    """
    if bool(getattr(given, "do_pad", False)) == pad and (pad or given.do_center_crop):
        return given
    side = given.size.get("shortest_edge") or given.size["height"]
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return LlavaImageProcessorPil.from_dict({**given.to_dict(), **sizes, "do_pad": pad})


def _quantized(wanted: Any, dtype: str | torch.dtype | None) -> dict[str, Any]:
    """What `from_pretrained` is told of a quantisation, and of the dtype that it is best with."""
    if not isinstance(wanted, str):
        return {"quantization_config": wanted}
    if wanted == "8bit":  # it multiplies in float16, and says so each time it has to convert
        config = BitsAndBytesConfig(load_in_8bit=True)
        return {"quantization_config": config, "dtype": dtype or torch.float16}
    if wanted == "4bit":
        dtype = torch.bfloat16 if dtype in (None, "auto") else dtype
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        return {"quantization_config": config, "dtype": dtype}
    raise CofError(
        f"quantization must be 4bit, 8bit or a quantisation config of transformers, not {wanted!r}."
    )


def _as_device(device: str | dict[str, Any]) -> torch.device | None:
    """A single device; None for a map that accelerate has to work out."""
    if not isinstance(device, str) or device in ("auto", "sequential") or "balanced" in device:
        return None
    try:
        place = torch.device(device)
        torch.empty(0, device=place)  # the only test that knows of drivers, builds and counts
    except (RuntimeError, AssertionError) as error:
        raise CofError(
            f"device_map {device!r} is not a device of this machine; leave it out, or use cpu, "
            "cuda, cuda:0, mps or auto."
        ) from error
    return place


def _as_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CofError(f"dtype {dtype!r} is unknown; use float32, bfloat16, float16 or auto.")
    return found
