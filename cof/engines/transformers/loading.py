"""A checkpoint's model and processor, loaded with transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cof.errors import CofError, OutOfMemory
from cof.families import Family, family_of
from cof.families.processors import load_processor

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load(
    name: str,
    *,
    dtype: str | torch.dtype | None,
    device_map: str | dict[str, Any] | None,
    pad_to_square: bool | None,
    quantization: Any,
) -> tuple[Any, Any]:
    """`(model, processor)`; the options are those of `engine.TransformersEngine`.

    Raises:
        CofError: no such model, not reachable, not supported, no processor, out of memory, or an
            option that does not apply.
    """
    with loading_errors(name):
        config = AutoConfig.from_pretrained(name)
    family = family_of(config)
    processor = load_processor_for(name, config, family, pad_to_square)
    gpu = torch.cuda.is_available()
    device = device_map if device_map is not None else ("cuda" if gpu else "cpu")
    place = _as_device(device)
    on_gpu = place is None or place.type != "cpu"
    chosen = _as_dtype(dtype) if dtype is not None else None
    kwargs: dict[str, Any] = {"dtype": chosen or ("auto" if on_gpu else torch.float32)}
    if quantization is not None:
        kwargs |= _quantized(quantization, chosen)
        place = None  # a quantised model is loaded where it stays
    if place is None:
        kwargs["device_map"] = device
    with loading_errors(name), out_of_memory():
        loaded: Any = AutoModelForImageTextToText.from_pretrained(name, config=config, **kwargs)
        if place is not None:
            loaded = loaded.to(place)
    return loaded, processor


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn running out of memory into a sentence that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError from its allocator.
        if type(error) is RuntimeError and "allocate memory" not in str(error):
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
    except (ImportError, OSError, ValueError, KeyError) as error:
        # transformers tells of a missing package now by ImportError, now by ValueError
        wanted = re.search(r"pip install[^.]*?(accelerate|bitsandbytes)", str(error))
        if wanted:
            raise CofError(
                f"Loading {name!r} this way needs the package {wanted[1]}: pip install 'cof[big]'."
            ) from error
        if isinstance(error, ImportError):
            raise CofError(f"Loading {name!r} needs a package that is missing: {error}") from error
        text = str(error)
        if "does not recognize this architecture" in text:
            raise CofError(
                f"transformers does not know the architecture of {name!r}; `cof models` lists "
                "the models that are supported."
            ) from error
        raise CofError(
            f"No model could be loaded from {name!r}: give a folder with config.json, weights and "
            "processor, or a model id of the Hugging Face hub that this machine can reach "
            f"({text.splitlines()[0] if text else type(error).__name__})."
        ) from error


def load_processor_for(name: str, config: Any, family: Family, pad_to_square: bool | None) -> Any:
    """A checkpoint's processor, with LLaVA's image processor as `pad_to_square` says."""
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
    return processor


def _llava_images(given: Any, pad: bool) -> Any:
    """LLaVA's image processor in one of its two ways, with the size and colours of `given`.

    `CLIPImageProcessor`, the one in checkpoints on the hub, ignores `do_pad`.
    """
    if bool(getattr(given, "do_pad", False)) == pad and (pad or given.do_center_crop):
        return given
    size = dict(given.size)
    side = size.get("shortest_edge") or size["height"]
    return LlavaImageProcessorPil(
        do_pad=pad,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=given.resample,
        rescale_factor=given.rescale_factor,
        image_mean=given.image_mean,
        image_std=given.image_std,
    )


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
    if not isinstance(device, str) or device in _MAPS:
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
