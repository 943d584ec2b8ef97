"""An engine without a model, for tests: it says what it is told and remembers the questions."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cof.geometry.boxes import Frame
from cof.prompting.dialects import PAPER, Dialect
from cof.types import Decoding, EncodedImage, Generation, OnText, Request

if TYPE_CHECKING:
    from PIL.Image import Image


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

    Example:
        >>> from PIL import Image
        >>> engine = FakeEngine({"What is it?": "A star."})
        >>> request = Request(Image.new("RGB", (8, 8)), "What is it?")
        >>> engine.generate([request], Decoding())[0].text
        'A star.'
    """

    replies: Mapping[str, str] | Callable[[Request], str]
    dialect: Dialect = PAPER
    name: str = "scripted"
    probability: float = 0.5
    takes_two: bool = True
    calls: list[tuple[list[Request], Decoding]] = field(default_factory=list)
    encoded: list[list[Image]] = field(default_factory=list)

    def encode(self, images: Sequence[Image], *, prefill: bool = False) -> list[EncodedImage]:
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
