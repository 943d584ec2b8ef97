"""How to make the model look there: a focus edits a request (stage 2 of the paper).

To add one: a frozen dataclass with `build` and `apply`, a line in `FOCUSES`, and its name in
`cof.settings.FocusName`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from cof.boxes import clip, coverage_image, union
from cof.images import MAX_ASPECT
from cof.settings import Overlay, Settings
from cof.types import XYXY, CellRule, EncodedImage, Highlight, Region, Request, Scope


class Focus(Protocol):
    """Makes a request look at a region."""

    @classmethod
    def build(cls, settings: Settings) -> Focus:
        """The focus of these settings."""
        ...

    def apply(self, request: Request, region: Region) -> Request:
        """The request that looks at the region, which is already expanded."""
        ...


@dataclass(frozen=True)
class AttentionFocus:
    """log(strength) on the attention scores of the region's image tokens (paper, equation 3).

    The attributes are those of `cof.types.Highlight`.
    """

    strength: float
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    cells: CellRule = "coverage"

    @classmethod
    def build(cls, settings: Settings) -> AttentionFocus:
        return cls(
            settings.strength, settings.scope, settings.layers, settings.heads, settings.cells
        )

    def apply(self, request: Request, region: Region) -> Request:
        highlight = Highlight(
            region, self.strength, self.scope, self.layers, self.heads, self.cells
        )
        return replace(request, highlight=highlight)


@dataclass(frozen=True)
class SoftFocus:
    """`AttentionFocus` by degrees: log(1 + m (strength - 1)) for a token with weight m in 0..1.

    m is the heat of the region that a grounder found, or how likely each place is in a box whose
    numbers are distributions (`boxes="template"`), which alpha leaves as they are; of any other
    region it is the share of what the token shows that lies inside. For m of 0 and 1 it is equation
    3. Between them a weight is multiplied by 1 + m (strength - 1): the mean of what equation 3
    would multiply it with, were the token inside with probability m. (strength ** m would be the
    mean of the scores instead, and take a doubtful token's part less: at strength 8 and m = 1/2
    the factors are 4.5 and 2.8.)

    The attributes are those of `cof.types.Highlight`.
    """

    strength: float
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    @classmethod
    def build(cls, settings: Settings) -> SoftFocus:
        return cls(settings.strength, settings.scope, settings.layers, settings.heads)

    def apply(self, request: Request, region: Region) -> Request:
        highlight = Highlight(
            region, self.strength, self.scope, self.layers, self.heads, graded=True
        )
        return replace(request, highlight=highlight)


@dataclass(frozen=True)
class ContrastFocus:
    """`AttentionFocus`, led away from not looking (Prompt Highlighter, arXiv 2312.04302).

    Two branches are decoded side by side, at twice the cost: one attends to the region with
    log(strength), the other with -log(strength), and each token is chosen by
    log p = log p2 + g (log p1 - log p2). Greedily only. Departure: the paper's second branch has
    the embeddings of the highlighted tokens scaled down, and attends as usual.

    Attributes:
        guidance: g; 1 is `AttentionFocus`.

    The others are those of `cof.types.Highlight`.
    """

    strength: float
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    cells: CellRule = "coverage"
    guidance: float = 1.3

    @classmethod
    def build(cls, settings: Settings) -> ContrastFocus:
        of = settings
        return cls(of.strength, of.scope, of.layers, of.heads, of.cells, of.guidance)

    def apply(self, request: Request, region: Region) -> Request:
        highlight = Highlight(
            region,
            self.strength,
            self.scope,
            self.layers,
            self.heads,
            self.cells,
            guidance=self.guidance,
        )
        return replace(request, highlight=highlight)


@dataclass(frozen=True)
class NoFocus:
    """The request as it is."""

    @classmethod
    def build(cls, settings: Settings) -> NoFocus:
        return cls()

    def apply(self, request: Request, region: Region) -> Request:
        return request


@dataclass(frozen=True)
class CropFocus:
    """Only the region, which the model's processor then enlarges: all that the model sees.

    A region that is longer and thinner than pictures may be (`cof.images.MAX_ASPECT`) is widened.

    >>> request = Request(Image.new("RGB", (100, 50)), "Which digit?")
    >>> CropFocus().apply(request, Region(boxes=((0.5, 0.2, 0.75, 0.6),))).image.size
    (25, 20)
    """

    @classmethod
    def build(cls, settings: Settings) -> CropFocus:
        return cls()

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        picture = _picture(request)
        left, top, right, bottom = _pixels(union(region.boxes), picture.size)
        thinnest = math.ceil(max(right - left, bottom - top) / MAX_ASPECT)
        left, right = _widened(left, right, thinnest, picture.width)
        top, bottom = _widened(top, bottom, thinnest, picture.height)
        return replace(request, image=picture.crop((left, top, right, bottom)))


@dataclass(frozen=True)
class BesideFocus:
    """The whole image and after it the region, enlarged (ViCrop, arXiv 2502.17422, section 5).

    A model that takes one image only is shown the region alone, like `CropFocus`.
    """

    @classmethod
    def build(cls, settings: Settings) -> BesideFocus:
        return cls()

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        return replace(request, beside=CropFocus().apply(request, region).image)


@dataclass(frozen=True)
class OverlayFocus:
    """The whole image, with the region drawn into it as a visual prompt.

    `frame`: a red frame around each box ("red circle", arXiv 2304.06712). `blur`: all but the
    region is blurred (fine-grained visual prompting, arXiv 2306.04356). `dim`: all but the region
    is darkened.

        >>> request = Request(Image.new("RGB", (100, 50), "white"), "Which digit?")
        >>> dimmed = OverlayFocus("dim").apply(request, Region(boxes=((0.5, 0.2, 0.75, 0.6),)))
        >>> dimmed.image.getpixel((60, 20)), dimmed.image.getpixel((40, 20))
        ((255, 255, 255), (102, 102, 102))

    Attributes:
        style: `frame`, `blur` or `dim`.
        colour: of the frame, RGB.
        width: of its line, as a share of the image's shorter side; two pixels at least.
        radius: of the blur, as a share of the image's shorter side.
        brightness: of the darkened part, as a share of what it was.
    """

    style: Overlay = "frame"
    colour: tuple[int, int, int] = (255, 0, 0)
    width: float = 0.01
    radius: float = 0.02
    brightness: float = 0.4

    @classmethod
    def build(cls, settings: Settings) -> OverlayFocus:
        return cls(settings.overlay)

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        picture = _picture(request)
        if self.style == "frame":
            return replace(request, image=self._framed(picture, region.boxes))
        if self.style == "blur":
            blur = ImageFilter.GaussianBlur(self.radius * min(picture.size))
            rest = picture.filter(blur)
        else:
            rest = ImageEnhance.Brightness(picture).enhance(self.brightness)
        inside = coverage_image(region, picture.size)
        return replace(request, image=Image.composite(picture, rest, inside))

    def _framed(self, image: Image.Image, boxes: tuple[XYXY, ...]) -> Image.Image:
        picture = image.copy()
        line = max(2, round(self.width * min(picture.size)))
        draw = ImageDraw.Draw(picture)
        for box in boxes:
            left, top, right, bottom = _pixels(box, picture.size)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=self.colour, width=line)
        return picture


def _picture(request: Request) -> Image.Image:
    image = request.image
    return image.image if isinstance(image, EncodedImage) else image


def _pixels(box: XYXY, image_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels that a box touches, right and bottom excluded; one at least.

    >>> _pixels((0.5, 0.5, 0.5, 0.5), (10, 10)), _pixels((0.26, 0.0, 1.2, 0.5), (10, 10))
    ((5, 5, 6, 6), (2, 0, 10, 5))
    """
    width, height = image_wh
    x1, y1, x2, y2 = clip(box)
    left, top = min(int(x1 * width), width - 1), min(int(y1 * height), height - 1)
    # rounded: 0.6 * 50 must not become 31 pixels for the last digit of a float
    right = max(left + 1, math.ceil(round(x2 * width, 6)))
    bottom = max(top + 1, math.ceil(round(y2 * height, 6)))
    return left, top, right, bottom


def _widened(start: int, end: int, least: int, size: int) -> tuple[int, int]:
    """At least so many pixels, about the same middle, moved inside 0..size."""
    pixels = max(end - start, least)
    start = min(max(0, start - (pixels - (end - start)) // 2), size - pixels)
    return start, start + pixels


FOCUSES: dict[str, type[Focus]] = {
    "attention": AttentionFocus,
    "soft": SoftFocus,
    "contrast": ContrastFocus,
    "crop": CropFocus,
    "beside": BesideFocus,
    "overlay": OverlayFocus,
    "none": NoFocus,
}
