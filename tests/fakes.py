"""Engines without a model: one says what it is told, one draws answers by what it is asked."""

from __future__ import annotations

import itertools
import math
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cof.engines.base import Layers
from cof.errors import CofError
from cof.geometry.boxes import Frame
from cof.prompting.dialects import PAPER, Dialect
from cof.types import Decoding, EncodedImage, Generation, Highlight, OnText, Request

LAYERS, GRID = 4, 8
WORDS = ("yes", "No.", "A", "(B)", "C", "D", "3", "red", "none of them", "Yes, there is.", "")


@dataclass
class FakeEngine:
    """A fake `Engine`.

    Attributes:
        replies: the text for each prompt, or a function of the request.
        dialect: how it is asked for boxes; they are written in 0..1 of the padded square.
        probability: of every token; a token is a word.
        takes_two: whether it says that it can be shown two images at once.
        calls: the requests of every `generate` call so far, with their decoding.
        encoded: the images of every `encode` call so far.
    """

    replies: Mapping[str, str] | Callable[[Request], str]
    dialect: Dialect = PAPER
    name: str = "scripted"
    probability: float = 0.5
    takes_two: bool = True
    calls: list[tuple[list[Request], Decoding]] = field(default_factory=list)
    encoded: list[list[Image.Image]] = field(default_factory=list)

    def encode(self, images: Sequence[Image.Image], *, prefill: bool = False) -> list[EncodedImage]:
        self.encoded.append(list(images))
        return [EncodedImage(image) for image in images]

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, on_text: OnText | None = None
    ) -> list[Generation]:
        self.calls.append((list(requests), decoding))
        replies = [self._reply(request) for request in requests]
        if on_text is not None:
            self._stream(replies, on_text)
        return replies

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        return Frame.padded_square(image_wh)

    def _stream(self, replies: Sequence[Generation], on_text: OnText) -> None:
        """Word by word, the replies side by side."""
        words = [re.split(r"(?<=\S)(?=\s)", reply.text) for reply in replies]
        for step in itertools.zip_longest(*words):
            for place, word in enumerate(step):
                if word:
                    on_text(place, word)

    def _reply(self, request: Request) -> Generation:
        text = self.replies(request) if callable(self.replies) else self.replies[request.prompt]
        tokens = tuple(range(len(text.split())))
        return Generation(text, tokens, (math.log(self.probability),) * len(tokens))


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
    attention_source = "a hash"

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        self._call(requests)
        self.trace += [describe(request, decoding) for request in requests]
        return super().generate(requests, decoding)

    def token_mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        return np.ones((GRID, GRID), dtype=bool)

    def token_centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        line = (np.arange(GRID) + 0.5) / GRID
        return np.stack(np.meshgrid(line, line), -1)

    def image_attentions(
        self, requests: Sequence[Request], layers: Layers | None = None
    ) -> list[NDArray[np.float32]]:
        self._call(requests)
        read = list((layers or range)(LAYERS))
        return [self._map(describe(r), (LAYERS, 2, GRID, GRID))[read] for r in requests]

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
