"""Tiny random models of every family, with their real processors, in hub layout.

`folder(name)` saves one in a temporary folder, once per test run, and returns its path; `engine`
and `stock` load it. `tests/models` has those of the paper.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import models
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from cof.engines.transformers.engine import TransformersEngine
from zoo import cross_attention, grids, rasters, tiles
from zoo.parts import Made


def _made_by(*modules: ModuleType) -> dict[str, Callable[[], Made]]:
    """The public functions that are defined in a module."""
    return {
        name: make
        for module in modules
        for name, make in vars(module).items()
        if getattr(make, "__module__", "") == module.__name__ and name[0] != "_"
    }


BUILDERS = _made_by(tiles, grids, rasters)
"""Models whose image tokens stand in the decoder."""

CROSS_ATTENTION = _made_by(cross_attention)
"""Models that read the image through cross-attention."""

PAPER = list(models.BUILDERS)
EVERY = [*PAPER, *BUILDERS, *CROSS_ATTENTION]


@functools.cache
def zoo(name: str) -> Path:
    """A folder in hub layout: config, weights, tokenizer and processor of a random model."""
    torch.manual_seed(0)
    config, processor = (BUILDERS | CROSS_ATTENTION)[name]()
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if not parameter.any():  # some start as zeros, and with them whole layers do nothing
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    folder = Path(tempfile.mkdtemp(prefix="cof-zoo-")) / name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def folder(name: str) -> Path:
    """Of a model of the zoo or of the paper."""
    return models.checkpoint(name) if name in PAPER else zoo(name)


@functools.cache
def engine(name: str) -> TransformersEngine:
    """Ours; tests leave it as it is."""
    return TransformersEngine.from_pretrained(folder(name))


@functools.cache
def stock(name: str) -> Any:
    """transformers' own model, as it is loaded."""
    return AutoModelForImageTextToText.from_pretrained(folder(name)).eval()


def assert_same(one: Sequence[Any], other: Sequence[Any], tolerance: float = 5e-5) -> None:
    """Generations are the same but for rounding."""
    for a, b in zip(one, other, strict=True):
        assert (a.text, a.token_ids) == (b.text, b.token_ids)
        assert a.logprobs == pytest.approx(b.logprobs, abs=tolerance)


@contextmanager
def counted(made: TransformersEngine) -> Iterator[list[int]]:
    """How many new tokens each forward pass of the decoder reads."""
    lengths: list[int] = []

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1])

    decoder = made.model.model.language_model
    handle = decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()
