"""What an engine is: the protocols that grounders, focuses and the pipeline see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from cof.geometry.boxes import Frame
from cof.prompting.dialects import Dialect
from cof.types import Decoding, EncodedImage, Generation, Highlight, OnText, Request

Layers = Callable[[int], Sequence[int]]
"""How many layers a model has -> the numbers of those that are read."""

FIRST_TOKEN = "the answer's first token"
"""Whose attention an engine shows where the decoder sees the image."""


@runtime_checkable
class Engine(Protocol):
    """A backend: answers requests and realises their highlights.

    Attributes:
        name: of the model.
        dialect: how it is asked for a box.
        takes_two: whether it can be shown two images at once (`Request.beside`).
    """

    name: str
    dialect: Dialect

    @property
    def takes_two(self) -> bool: ...

    def encode(self, images: Sequence[Image], *, prefill: bool = False) -> list[EncodedImage]:
        """Run the vision encoder once for each image, for reuse in later requests.

        With `prefill` also the decoder over the image, if it can: worth it from two requests about
        the image on, at the price of the memory that a decoder needs for that many tokens.
        """

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, on_text: OnText | None = None
    ) -> list[Generation]:
        """Answer every request, in order; requests in one call may differ in everything.

        `on_text` gets each piece of a reply's text as soon as it is certain; no piece is empty,
        and a request's pieces joined are its `Generation.text`. A reply that cannot be streamed is
        one piece. What `on_text` raises ends the call.
        """

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        """The coordinate frame in which the model's native boxes for such an image are written."""


@runtime_checkable
class LengthChecker(Protocol):
    """What an engine offers besides if it can tell beforehand that a prompt is too long."""

    def check_lengths(self, requests: Sequence[Request], decoding: Decoding) -> None:
        """Raise `CofError` if a prompt and its answer are more than the model takes."""


@runtime_checkable
class ImageProcessor(Protocol):
    """What an engine offers besides if images can be processed while its model runs."""

    def process(self, images: Sequence[Image]) -> list[EncodedImage]:
        """The images as `encode` takes them too, in any thread, before the vision encoder runs."""


@runtime_checkable
class AttentionReader(Protocol):
    """What an engine offers besides if it can show its attention: to `cof.viz`, and to grounders.

    Attributes:
        attention_source: whose attention it is, such as `FIRST_TOKEN`.
    """

    attention_source: str

    def token_mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        """Which image tokens a highlight falls on: `(grid_h, grid_w)`, or `(tokens,)` where they
        are no single raster."""

    def token_centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        """The centre of what each image token shows, `(*tokens, 2)`: `(x, y)` in 0..1 of an image
        of this size; NaN for padding."""

    def image_attentions(
        self, requests: Sequence[Request], layers: Layers | None = None
    ) -> list[NDArray[np.float32]]:
        """For each request the share of all attention that each image token gets,
        `(layers, heads, *tokens)` with the tokens in the layout of `token_mask`, in one pass.

        `layers` says which are read; None: all."""


@runtime_checkable
class StateReader(AttentionReader, Protocol):
    """What an engine offers besides if grounders can read its states."""

    def phrase_similarities(
        self,
        requests: Sequence[Request],
        phrases: Sequence[str],
        states: Literal["values", "keys"],
    ) -> list[NDArray[np.float32]]:
        """For each request the cosine similarity of the cached states of a phrase of its prompt,
        T tokens, with those of the image tokens, `(layers, T, *tokens)`, in one pass; NaN for
        layers without a KV cache of the image."""

    def word_probabilities(
        self, images: Sequence[Image | EncodedImage], words: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float32]]:
        """For each image the probability of each of some words as what the decoder would say
        after an image token, `(words, *tokens)`, in one pass."""


@runtime_checkable
class ReplyScorer(Protocol):
    """What an engine offers besides if it can say how likely a reply is: benchmarks that compare
    their options' texts need it."""

    def score_replies(
        self, requests: Sequence[Request], replies: Sequence[str]
    ) -> list[Generation]:
        """Each reply as if the model had given it, its end token among `token_ids` and
        `logprobs`; highlights are applied but for their guidance."""
