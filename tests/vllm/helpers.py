"""Both engines on one checkpoint, and how far apart their answers are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from models import picture
from PIL import Image

from cof.engines.transformers.engine import TransformersEngine
from cof.engines.vllm.engine import VllmEngine
from cof.families.processors import image_options
from cof.geometry.regions import Region
from cof.types import Decoding, Generation, Highlight, Request

CLOSE, MOVED = 1e-4, 0.05
FEW = Decoding(max_new_tokens=4)


@functools.cache  # for good: an engine that ends takes the process's other ones with it
def vllm_engine(folder: Path, **options: Any) -> VllmEngine:
    """Float32, and room for a few hundred tokens of tiny models."""
    small = {"max_model_len": 512, "kv_cache_memory_bytes": 1 << 24}
    return VllmEngine.from_pretrained(
        folder, dtype="float32", enforce_eager=True, disable_log_stats=False, **{**small, **options}
    )


def metric(engine: VllmEngine, name: str) -> float:
    """One of vLLM's counters, if no other engine was made since (it counts for the newest)."""
    return sum(m.value for m in engine.client.llm.get_metrics() if m.name == name)


def reference_engine(folder: Path) -> TransformersEngine:
    return TransformersEngine.from_pretrained(folder, dtype="float32")


def show_the_same(reference: TransformersEngine, engine: VllmEngine) -> None:
    """Give the reference the pixels that vLLM computes: of families that also take videos it loads
    torchvision's image processor, which rounds otherwise than PIL where it resizes."""
    images = engine.client.llm.llm_engine.renderer.get_mm_processor().info.get_hf_processor()
    options = image_options(reference.processor)

    def pixels(image: Image.Image, **more: Any) -> dict[str, Any]:
        made = images.image_processor(images=image, return_tensors="pt", **options, **more)
        return {name: np.asarray(value) for name, value in made.items()}

    reference.tokens.pixels = pixels  # type: ignore[method-assign]


def box(*xyxy: float) -> Region:
    return Region(boxes=(xyxy,))


LEFT, RIGHT, SMALL = box(0, 0, 0.5, 1), box(0.55, 0.1, 1, 0.9), box(0.3, 0.3, 0.6, 0.5)

HIGHLIGHTS = [
    None,
    Highlight(LEFT, 60.0),
    Highlight(LEFT, 60.0, scope="text"),
    Highlight(RIGHT, 0.01),
    Highlight(RIGHT, 60.0, scope="text"),
    Highlight(SMALL, 400.0, graded=True),
    Highlight(RIGHT, 200.0, layers=(1,)),
    Highlight(LEFT, 200.0, heads=(0, 2), scope="text"),
]
"""All that a highlight can say; each but the first moves the answers of the tiny models."""


def mixed_requests(wh: tuple[int, int] = (112, 112), images: int = 2) -> list[Request]:
    """Every highlight, about several images, in an order that mixes them."""
    pictures = [picture(wh, seed) for seed in range(images)]
    requests = [
        Request(image, f"What is it ({number})?", highlight)
        for number, highlight in enumerate(HIGHLIGHTS)
        for image in pictures
    ]
    return requests[::2] + requests[1::2]


def difference(one: Generation, other: Generation) -> float:
    """The largest difference of the log-probabilities of two answers; infinite if their tokens
    are not the same."""
    if one.token_ids != other.token_ids:
        return float("inf")
    pairs = zip(one.logprobs, other.logprobs, strict=True)
    return max((abs(a - b) for a, b in pairs), default=0.0)


def assert_equal(
    engine: Any, reference: Any, requests: Sequence[Request], decoding: Decoding = FEW
) -> None:
    """Both engines say the same, and highlights make a difference to it."""
    ours, theirs = (made.generate(requests, decoding) for made in (engine, reference))
    plain = reference.generate([replace(r, highlight=None) for r in requests], decoding)
    apart = [difference(*pair) for pair in zip(ours, theirs, strict=True)]
    assert max(apart) < CLOSE, apart
    moved = [difference(*pair) for pair in zip(theirs, plain, strict=True)]
    assert [value > MOVED for value in moved] == [bool(r.highlight) for r in requests], moved


def assert_same_maps(engine: Any, reference: Any, requests: Sequence[Request]) -> None:
    """Both engines attend to the image alike, in all layers and heads and in some; and vLLM's
    workers keep nothing of it."""
    plain = [replace(request, highlight=None) for request in requests]
    ours, theirs = (made.image_attentions(requests) for made in (engine, reference))
    last, same = (
        made.image_attentions(requests, lambda count: [count - 1]) for made in (engine, reference)
    )
    for one, other in zip(ours + last, theirs + same, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    stock = reference.image_attentions(plain)
    moved = [np.abs(a - b).max() > 0.003 for a, b in zip(theirs, stock, strict=True)]
    assert moved == [bool(r.highlight) for r in requests]
    kept = engine.client.llm.collective_rpc(lambda worker: len(worker.batch.kept))
    assert not any(kept)
