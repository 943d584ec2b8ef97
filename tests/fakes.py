"""A fake engine whose answers depend on everything that it is asked."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.types import Decoding, EncodedImage, Generation, Request

LAYERS, GRID = 4, 8
WORDS = ("yes", "No.", "A", "(B)", "C", "D", "3", "red", "none of them", "Yes, there is.", "")


@dataclass
class AnyEngine(FakeEngine):
    """Boxes and answers drawn by a hash of the request; it also tells of its states.

    Attributes:
        replies: not used.
        dies_after: how many calls are answered before it is killed.
        refuses: parts of prompts that it refuses.
        trace: a line for each request, with all that matters of it, in order.
    """

    replies: Any = None
    dies_after: float = math.inf
    refuses: tuple[str, ...] = ()
    trace: list[str] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        self._call(requests)
        self.trace += [describe(request, decoding) for request in requests]
        return super().generate(requests, decoding)

    def token_centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        line = (np.arange(GRID) + 0.5) / GRID
        return np.stack(np.meshgrid(line, line), -1)

    def image_attentions(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        self._call(requests)
        return [self._map(describe(r), (LAYERS, 2, GRID, GRID)) for r in requests]

    def phrase_similarities(
        self,
        requests: Sequence[Request],
        phrases: Sequence[str],
        states: Literal["values", "keys"],
    ) -> list[NDArray[np.float32]]:
        self._call(requests)
        asked = zip(requests, phrases, strict=True)
        return [self._map(describe(r) + phrase, (LAYERS, 1, GRID, GRID)) for r, phrase in asked]

    def word_probabilities(
        self, images: Sequence[Image.Image | EncodedImage], words: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float32]]:
        pairs = zip(images, words, strict=True)
        return [
            np.stack([self._map(describe_image(i) + word, (GRID, GRID)) for word in of])
            for i, of in pairs
        ]

    def _call(self, requests: Sequence[Request]) -> None:
        if self.dies_after <= 0:
            raise KeyboardInterrupt
        self.dies_after -= 1
        for request in requests:
            if any(part in request.prompt for part in self.refuses):
                raise CofError(f"{request.prompt[:20]!r} is refused.")

    def _reply(self, request: Request) -> Generation:
        rng = random.Random(describe(request))
        if "box" in request.prompt or "Where?" in request.prompt:
            x, y, width, height = (rng.uniform(0.0, 0.5) for _ in range(4))
            box = f"[{x:.2f}, {y:.2f}, {x + width + 0.01:.2f}, {y + height + 0.01:.2f}]"
            text = rng.choice((box, box, box.replace(" ", "  "), f"At [{x:.2f}, 2]", "I see none."))
        else:
            text = rng.choice(WORDS)
        tokens = tuple(range(len(text.split())))
        logprobs = tuple(math.log(rng.uniform(0.05, 1.0)) for _ in tokens)
        return Generation(text, tokens, logprobs)

    def _map(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.random(shape, dtype=np.float32) ** 8


def describe(request: Request, decoding: Decoding | None = None) -> str:
    """All that matters of a request, the template of a box by its pattern alone."""
    highlight, shown = request.highlight, None
    if highlight is not None:
        region = highlight.region
        heat_map = region.heat_map if highlight.graded else None
        heat = None if heat_map is None else float(heat_map.sum())
        shown = {**vars(highlight), "region": (region.boxes, region.whole, heat)}
    beside = [describe_image(image) for image in request.others]
    how = decoding and (decoding.max_new_tokens, decoding.box_template is not None)
    return f"{describe_image(request.image)} {request.prompt!r} {shown} {beside} {how}"


def describe_image(image: Image.Image | EncodedImage) -> str:
    pixels = image.image if isinstance(image, EncodedImage) else image
    return f"{pixels.size}{zlib.crc32(pixels.tobytes())}"
