"""Requests about few images, with many regions and strengths, to be asked in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cof.geometry.regions import Region
from cof.types import Decoding, Generation, Highlight, Request

QUESTIONS = ("What digit is on the star?", "What colour is the star?", "Is there a red circle?")
STRENGTHS = (0.05, 0.5, 4.0, 20.0, 100.0)
PART = 256
CLOSE = 1e-4


def interleaved_requests(images: Sequence[Image.Image], count: int, seed: int = 0) -> list[Request]:
    """`count` requests: one in five plain, the others each with a region of its own or one of a few
    that come again and again."""
    rng = random.Random(seed)
    again = [_random_region(rng) for _ in range(4)]

    def highlight() -> Highlight | None:
        if rng.random() < 0.2:
            return None
        region = rng.choice(again) if rng.random() < 0.5 else _random_region(rng)
        scope = rng.choice(("all", "text"))
        return Highlight(region, rng.choice(STRENGTHS), scope=scope)

    return [Request(rng.choice(images), rng.choice(QUESTIONS), highlight()) for _ in range(count)]


def _random_region(rng: random.Random) -> Region:
    x, y = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
    return Region(boxes=((x, y, x + rng.uniform(0.1, 0.3), y + rng.uniform(0.1, 0.3)),))


def differing(ours: Sequence[Generation], theirs: Sequence[Generation]) -> int:
    """How many answers are not the same: other tokens, or log-probabilities not within 1e-4."""

    def same(one: Generation, other: Generation) -> bool:
        return one.token_ids == other.token_ids and all(
            abs(a - b) < CLOSE for a, b in zip(one.logprobs, other.logprobs, strict=True)
        )

    return sum(not same(*pair) for pair in zip(ours, theirs, strict=True))


def answers(engine: Any, requests: Sequence[Request]) -> list[Generation]:
    """In parts, so that later requests find the blocks of earlier ones."""
    decoding = Decoding(max_new_tokens=4)
    return [
        reply
        for start in range(0, len(requests), PART)
        for reply in engine.generate(requests[start : start + PART], decoding)
    ]


def cached_tokens(engine: Any) -> int:
    """How many prompt tokens came from the prefix cache so far, if no other engine was made since
    (vLLM counts for the newest of a process)."""
    metrics = engine.client.llm.get_metrics()
    return int(sum(m.value for m in metrics if m.name == "vllm:prefix_cache_hits"))
