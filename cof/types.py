"""The values that travel between grounders, focuses and engines.

Coordinates are `xyxy` in 0..1 of the ORIGINAL, upright image (EXIF rotation applied), x to
the right and y down, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from cof.errors import CofError
from cof.geometry.regions import Region
from cof.options import count, positive
from cof.prompting.box_template import BoxTemplate

Scope = Literal["all", "text"]

OnText = Callable[[int, str], object]
"""Called with the place of a request or query and a piece of text, by which its reply has grown."""


class Thought(str):
    """A piece of what a reasoning model thinks, which is no part of the reply's text."""


@dataclass(frozen=True)
class Highlight:
    """A bias: log(strength) is added to the pre-softmax attention scores of some image tokens.

    Attributes:
        region: the image tokens in it get the bias.
        strength: lambda > 0 of the paper's equation 3; 1 changes nothing.
        scope: `all`: every query attends with the bias, as in the paper; `text`: only queries
            after the last image token do (so both stages can share the image's prefix cache).
        layers: decoder layers with the bias; None: all of them, as in the paper.
        heads: attention heads with the bias; None: all of them.
        cells: how a box becomes image tokens: `coverage` (the processor's own geometry) or
            `corners` (the released code's `int(x * (grid - 1))`, both ends included).
        graded: whether tokens are weighted: a token with weight m in 0..1, from the region's heat
            map or else the part of the token that is inside, gets log(1 + m (strength - 1)).
        guidance: g in log p = log p2 + g (log p1 - log p2), greedily; p2 is the distribution with
            1 / strength in place of strength. 1: no guidance.
    """

    region: Region
    strength: float
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    cells: Literal["coverage", "corners"] = "coverage"
    graded: bool = False
    guidance: float = 1.0

    def __post_init__(self) -> None:
        positive("strength (lambda)", self.strength)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image with what an engine has computed of it; `Engine.encode` makes one.

    It can be passed in place of the image to any number of requests and calls, which then skip
    the vision encoder; the answers are the same. It belongs to the engine that made it.

    Attributes:
        image: the image, upright RGB.
        pixels: the processor's output; only the engine reads it.
        features: the vision encoder's output; only the engine reads it.
        prefix: the decoder's prefix cache of the image, once computed; only the engine reads it.
        setting: of the processor that made the pixels; with another one they are made anew.
    """

    image: Image
    pixels: Any = None
    features: Any = None
    prefix: Any = None
    setting: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels, as of a PIL image."""
        return self.image.size

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled it is the image: what an engine has computed stays in its process."""
        return pil_image, (self.image,)


class Slot(Enum):
    """Where a request's own image and prompt stand in its chat."""

    IMAGE = "image"
    PROMPT = "prompt"


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: str  # `system`, `user` or `assistant`
    parts: tuple[str | Slot | int, ...]  # texts, slots, and numbers of `Request.others`


ALONE = (Turn("user", (Slot.IMAGE, Slot.PROMPT)),)
"""The chat of one question about one image."""


@dataclass(frozen=True)
class Request:
    """A chat about an image, as an engine takes it.

    Attributes:
        image: the one that a highlight is about: upright RGB (`cof.images.load_image`), or encoded.
        prompt: the last text of the user; the engine adds the chat template.
        highlight: the bias while answering; None: the plain model.
        region: the caller's own region, for the grounder `given`; engines do not read it.
        notation: the spans `(start, end)` of the prompt that are a grounding template's own words:
            special tokens of the grounding notation are meant as such there, else as plain text.
        chat: the turns with image and prompt, each slot once; without the image's slot, no images.
        others: the chat's other images, each once.
        thinks: whether a reasoning model may think before it answers.
    """

    image: Image | EncodedImage
    prompt: str
    highlight: Highlight | None = None
    region: Region | None = None
    notation: tuple[tuple[int, int], ...] = ()
    chat: tuple[Turn, ...] = ALONE
    others: tuple[Image | EncodedImage, ...] = ()
    thinks: bool = True

    @property
    def pil_image(self) -> Image:
        return pil_image(self.image)

    @property
    def places(self) -> list[str | Slot | int]:
        """The parts of all turns, in their order."""
        return [part for turn in self.chat for part in turn.parts]

    @property
    def images(self) -> list[Image | EncodedImage]:
        """All images of the chat, in their order."""
        return [
            self.image if part is Slot.IMAGE else self.others[part]
            for part in self.places
            if part is Slot.IMAGE or isinstance(part, int)
        ]

    @property
    def number(self) -> int:
        """The place of `image` among `images`."""
        before = self.places[: self.places.index(Slot.IMAGE)] if self.images else []
        return sum(isinstance(part, int) for part in before)

    def asking(self, prompt: str, notation: tuple[tuple[int, int], ...] = ()) -> Request:
        """The same chat with another last text and without a highlight."""
        return replace(self, prompt=prompt, notation=notation, highlight=None)

    def with_images(self, made: Mapping[int, Image | EncodedImage]) -> Request:
        """The same chat, with what was made of its images in their place, by their `id`."""
        image, *others = (made.get(id(each), each) for each in (self.image, *self.others))
        return replace(self, image=image, others=tuple(others))

    def beside(self, image: Image | EncodedImage) -> Request:
        """The same chat with one more image right after `image`."""
        new: dict[object, tuple[Slot | int, ...]] = {Slot.IMAGE: (Slot.IMAGE, len(self.others))}
        turns = tuple(
            Turn(turn.role, tuple(each for part in turn.parts for each in new.get(part, (part,))))
            for turn in self.chat
        )
        return replace(self, chat=turns, others=(*self.others, image))


def pil_image(image: Image | EncodedImage) -> Image:
    """The image itself, whether it is encoded or not."""
    return image.image if isinstance(image, EncodedImage) else image


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Greedy by default, as in the paper's benchmarks.

    Other options of a checkpoint's generation_config.json (a repetition penalty, suppressed
    tokens) apply to answers as in transformers' `generate`, but not to boxes by a template.

    Raises:
        CofError: a value is out of range.
    """

    max_new_tokens: int = 64
    num_beams: int = 1
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int | None = None  # only read when temperature > 0
    box_template: BoxTemplate | None = None  # decode one box by it, greedily, and nothing else

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            count(name, getattr(self, name))
        if not 0 <= self.temperature < math.inf:
            raise CofError(f"temperature must be a number from 0 on, not {self.temperature!r}.")
        if not 0 < self.top_p <= 1:
            raise CofError(f"top_p must be above 0 and at most 1, not {self.top_p!r}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise CofError(f"seed must be a whole number from 0 to 2**63 - 1, not {self.seed!r}.")


@dataclass(frozen=True)
class Generation:
    """What an engine returns for one request.

    Attributes:
        text: decoded without special tokens, stripped.
        token_ids: the generated tokens, but for the end; of a box by a template, those chosen.
        logprobs: log-probability of each token of `token_ids` under the (biased) model.
        reasoning: what the model thought before; no part of `text`.
        start: the first token of the answer itself, after its thoughts.
        num_prompt_tokens: of the prompt, its images included.
        likely: for a box decoded by a template: the probability of each of its N numbers at each
            of the four places, `(4, N)`; rows sum to 1. Later places depend on earlier ones.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    reasoning: str = ""
    start: int = 0
    num_prompt_tokens: int = field(default=0, compare=False)
    likely: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


def confidence(reply: Generation) -> float | None:
    """Geometric mean probability of an answer's tokens, not its thoughts', 0..1; None: unknown.

    >>> confidence(Generation("[0.1]", (1, 2), (math.log(0.5), math.log(0.125))))
    0.25
    """
    logprobs = reply.logprobs[reply.start :]
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else None


@dataclass(frozen=True)
class Grounding:
    """The outcome of stage 1.

    Attributes:
        region: where the answer is, before expansion; None: not found.
        text: the model's reply, verbatim; empty for grounders that do not generate one.
        confidence: of the box, 0..1: the geometric mean probability of its tokens, the part of a
            heat map's sum inside it, or a detector's score; None if unknown.
        reason: why `region` is None, one sentence; empty otherwise.
    """

    region: Region | None
    text: str = ""
    confidence: float | None = None
    reason: str = ""

    def if_sure(self, least: float) -> Grounding:
        """Not found if the confidence is known and below `least`."""
        if self.region is None or self.confidence is None or self.confidence >= least:
            return self
        reason = f"The box's confidence of {self.confidence:.2f} is below {least:g}."
        return replace(self, region=None, reason=reason)


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of a batch: encoding the images and finding the regions, and answering.

    Every answer of a batch has the times of the whole batch.
    """

    ground: float = 0.0
    answer: float = 0.0

    def as_dict(self) -> Mapping[str, float]:
        return {"ground_s": round(self.ground, 4), "answer_s": round(self.answer, 4)}
