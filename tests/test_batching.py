"""Batches within a budget of tokens, and options of loading."""

from __future__ import annotations

import functools
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import checkpoint, picture

from cof.engines.transformers.batching import group_by_size
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import Decoding, Highlight, Request

SHORT = Decoding(max_new_tokens=4)
HIGHLIGHT = Highlight(Region(boxes=((0.4, 0.6, 0.6, 0.9),)), 8.0)


@functools.cache
def engine(budget: int = 16384) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint("llava"), max_batch_tokens=budget)


def requests() -> list[Request]:
    questions = ["hi", "a far longer question about it" * 3, "which digit?", "hello there"]
    images = [picture((60, 40)), picture((40, 90), 1), picture((64, 64), 2), picture((60, 40))]
    highlights = [None, HIGHLIGHT, HIGHLIGHT, None]
    return [Request(*row) for row in zip(images, questions, highlights, strict=True)]


@pytest.mark.parametrize("budget", [1, 250, 400])
@pytest.mark.parametrize("prefill", [False, True])
def test_parts_equal_the_whole(budget: int, prefill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine().generate(requests(), SHORT)
    made, sizes = engine(budget), []
    adapter = type(made.adapter)
    whole = adapter.generate

    def watched(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        rows, length = prompts.inputs["input_ids"].shape
        sizes.append((rows, rows * (length + SHORT.max_new_tokens)))
        return whole(self, prompts, *args, **kwargs)

    monkeypatch.setattr(adapter, "generate", watched)
    asked = requests()
    if prefill:
        images = made.encode([request.image for request in asked], prefill=True)
        asked = [
            Request(image, request.prompt, request.highlight)
            for image, request in zip(images, asked, strict=True)
        ]
    for a, b in zip(made.generate(asked, SHORT), expected, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)
    assert len(sizes) > 1
    assert all(rows == 1 or size <= budget for rows, size in sizes)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_masks_are_made_once_however_a_batch_is_cut(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sizes = engine(250), []
    whole = made.tokens.mask

    def counted(image_wh: tuple[int, int], highlight: Highlight) -> Any:
        sizes.append(image_wh)
        return whole(image_wh, highlight)

    monkeypatch.setattr(made.tokens, "mask", counted)
    highlight = replace(HIGHLIGHT, guidance=guidance)
    asked = [Request(picture((60 + n, 40), n), "hi", highlight) for n in range(3)]
    made.generate(asked, SHORT)
    branches = 1 if guidance == 1 else 2  # guided answers have a branch that looks away
    assert sorted(sizes) == sorted([(60 + n, 40) for n in range(3)] * branches)


def test_similar_sizes_run_together() -> None:
    sizes = [700, 90, 650, 100, 95, 20]
    groups = group_by_size(sizes, 1400)
    assert sorted(row for group in groups for row in group) == list(range(6))
    assert [0, 2] in [sorted(group) for group in groups]


def test_nothing_is_left_of_an_answered_batch() -> None:
    cof = CoF(engine(), quick())

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(of), torch.Tensor) for of in gc.get_objects())

    def ask(start: int) -> list[str]:
        rows = [(picture((60, 40), seed), "hi") for seed in range(start, start + 3)]
        return [answer.text for answer in cof.batch(rows, decoding=SHORT)]

    ask(0)
    before = tensors()
    kept = [ask(start) for start in (3, 6, 9)]
    assert len(kept) == 3
    assert tensors() <= before


def quick() -> Settings:
    return Settings(boxes="template", scope="text")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1, not 0"),
        ({"quantization": "3bit"}, "quantization must be 4bit, 8bit or"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CofError, match=message):
        TransformersEngine.from_pretrained(checkpoint("llava"), **options)
