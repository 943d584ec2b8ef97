"""The values that travel between grounders, focuses and engines.

Coordinates are `xyxy` in 0..1 of the ORIGINAL, upright image (EXIF rotation applied), x to
the right and y down, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from cof.errors import CofError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from cof.boxes import Frame
    from cof.forms import BoxForm
    from cof.prompts import Dialect

XYXY = tuple[float, float, float, float]
Scope = Literal["all", "text"]
CellRule = Literal["coverage", "corners"]


@dataclass(frozen=True)
class Region:
    """A part of an image: boxes, a mask, or every image token.

    Attributes:
        boxes: `(x1, y1, x2, y2)` each, in 0..1 of the original image.
        mask: `(H, W)` float32 in 0..1 laid over the whole image at any resolution, for regions
            that are no rectangles; `boxes` then holds its bounding box.
        whole: every image token, those of the padding included (the paper's Table II,
            "reweight" without "ground").
        heat: `(H, W)` float32 in 0..1 over the whole image: how much each place is meant, for
            focuses that take degrees (`soft`); the others look at `boxes` or `mask`.
    """

    boxes: tuple[XYXY, ...] = ()
    mask: NDArray[np.float32] | None = field(default=None, compare=False)
    whole: bool = False
    heat: NDArray[np.float32] | None = field(default=None, compare=False)


EVERYTHING = Region(boxes=((0.0, 0.0, 1.0, 1.0),), whole=True)


@dataclass(frozen=True)
class Highlight:
    """Which image tokens get log(strength) added to their pre-softmax attention scores.

    Attributes:
        region: where.
        strength: lambda > 0 of the paper's equation 3; 1 changes nothing.
        scope: `all`: every query attends with the bias, as in the paper; `text`: only queries
            after the last image token do (so the image prefix is computed once for both stages).
        layers: decoder layers that carry the bias; None: all of them, as in the paper.
        heads: attention heads that carry it; None: all of them.
        cells: how a box becomes tokens: `coverage` (the processor's own geometry) or `corners`
            (the released code's `int(x * (grid - 1))`, both ends included).
        graded: whether tokens count by degrees: one with weight m in 0..1, from the region's heat
            or else from the share of it that is inside, gets log(1 + m (strength - 1)).
        guidance: how far the answer is led away from the one with 1 / strength in place of
            strength: g in log p = log p2 + g (log p1 - log p2), greedily; 1: not at all.
    """

    region: Region
    strength: float
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    cells: CellRule = "coverage"
    graded: bool = False
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise CofError(
                f"strength (lambda) must be a finite number above 0, not {self.strength}; "
                "1 leaves the model as it is."
            )


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image with what an engine has already computed of it: `Engine.encode` makes one.

    Passing it in place of the image, to as many requests and calls as one likes, spares the
    vision encoder; the answers are the same. It belongs to the engine that made it.

    Attributes:
        image: the upright RGB image itself.
        pixels: the processor's output for it; opaque to everybody but the engine.
        features: the vision encoder's output; opaque likewise.
        prefix: the decoder's state after the image, once it was computed; opaque likewise.
    """

    image: Image
    pixels: Any = None
    features: Any = None
    prefix: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels, as of a PIL image."""
        return self.image.size


@dataclass(frozen=True)
class Request:
    """One question about one image, as an engine takes it.

    Attributes:
        image: upright RGB (`cof.images.load_image` makes it so), or the same image encoded.
        prompt: what the user says after the image; the engine adds the chat template.
        highlight: what to look at in `image` while answering; None: the plain model.
        beside: a second image, shown after the first; where a model takes only one it is shown in
            its place, with a `CofWarning`. None: there is none.
    """

    image: Image | EncodedImage
    prompt: str
    highlight: Highlight | None = None
    beside: Image | EncodedImage | None = None


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Greedy by default, as in the paper's benchmarks.

    What a checkpoint's own generation_config.json asks for beyond that (a repetition penalty,
    suppressed tokens) holds for answers too, as with transformers' `generate`, but not for boxes
    written in a form.

    Raises:
        CofError: a value is out of range.
    """

    max_new_tokens: int = 64
    num_beams: int = 1
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int | None = None  # only read when temperature > 0
    form: BoxForm | None = None  # write one box in this form, greedily, and nothing else

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise CofError(f"{name} must be a whole number above 0, not {value!r}.")
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
        token_ids: the generated tokens, the end token left out; of a box in a given form only
            those that the model chose.
        logprobs: log-probability of each token of `token_ids` under the (biased) model.
        likely: of a box in a given form the probability of each of the form's N numbers at each
            of its four places, `(4, N)`, rows summing to 1; the later places follow from the
            numbers written before them.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    likely: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Grounding:
    """The outcome of stage 1.

    Attributes:
        region: where the answer is, before expansion; None: not found.
        text: what the model said, verbatim; empty for grounders that do not ask.
        confidence: of the box, 0..1: the geometric mean probability of its tokens, the share of a
            heat map inside it, or a detector's score; None if unknown.
        reason: why `region` is None, one sentence; empty otherwise.
    """

    region: Region | None
    text: str = ""
    confidence: float | None = None
    reason: str = ""


@runtime_checkable
class Engine(Protocol):
    """A backend: answers requests and realises their highlights."""

    name: str
    dialect: Dialect

    def encode(self, images: Sequence[Image], *, prefill: bool = False) -> list[EncodedImage]:
        """Run the vision encoder once for each image, for reuse in later requests.

        With `prefill` also the decoder over the image, if it can: worth it from two requests about
        the image on, at the price of the memory that a decoder needs for that many tokens.
        """
        ...

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        """Answer every request, in order; requests in one call may differ in everything."""
        ...

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        """The coordinate frame in which the model's native boxes for such an image are written."""
        ...


@runtime_checkable
class AttentionReader(Protocol):
    """What an engine offers besides if it can show where it looks; pictures have it drawn.

    Attributes:
        looks: whose attention `image_attention` is, such as "the answer's first token".
    """

    looks: str

    def token_mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        """Which image tokens a highlight falls on: `(grid_h, grid_w)`, or `(tokens,)` where they
        are no single raster."""
        ...

    def image_attention(self, request: Request) -> NDArray[np.float32]:
        """The share of all attention that each image token gets, `(layers, heads, *tokens)` with
        the tokens in the layout of `token_mask`."""
        ...


@runtime_checkable
class StateReader(Protocol):
    """What an engine offers besides if grounders can read from its states where it looks."""

    def token_centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        """Where each image token looks, `(*tokens, 2)`: `(x, y)` in 0..1 of an image of this
        size; NaN for padding."""
        ...

    def image_attentions(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """For each request the share of all attention that each image token gets from the
        answer's first token, `(layers, heads, *tokens)`, in one pass."""
        ...

    def phrase_similarities(
        self,
        requests: Sequence[Request],
        phrases: Sequence[str],
        states: Literal["values", "keys"],
    ) -> list[NDArray[np.float32]]:
        """For each request the cosine similarity of the cached states of a phrase of its prompt,
        T tokens, with those of the image tokens, `(layers, T, *tokens)`, in one pass; NaN for
        layers that do not keep the image."""
        ...

    def word_probabilities(
        self, images: Sequence[Image | EncodedImage], words: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float32]]:
        """For each image the probability of each of some words as what the decoder would say
        after an image token, `(words, *tokens)`, in one pass."""
        ...


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one call: encoding the images and finding the places, and answering.

    A batch shares its call's times.
    """

    ground: float = 0.0
    answer: float = 0.0

    def as_dict(self) -> Mapping[str, float]:
        return {"ground_s": round(self.ground, 4), "answer_s": round(self.answer, 4)}
