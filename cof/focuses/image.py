"""Change what the model is shown: the region alone, after the whole image, or marked in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from cof.focuses.base import Focus
from cof.geometry.boxes import pixel_box, union
from cof.geometry.regions import Region, coverage_image
from cof.images import MAX_ASPECT
from cof.options import option
from cof.types import Request

Style = Literal["frame", "blur", "dim"]

RED = (255, 0, 0)
LINE = 0.01  # width of a frame, as a share of the image's shorter side
RADIUS = 0.02  # of the blur, likewise
DIMMED = 0.4  # brightness of the darkened part, as a share of the original


@dataclass(frozen=True)
class Crop(Focus):
    """The model sees the region alone, which its processor enlarges.

    A region that is longer and thinner than an image may be (`cof.images.MAX_ASPECT`) is widened.

    >>> request = Request(Image.new("RGB", (100, 50)), "Which digit?")
    >>> Crop().apply(request, Region(boxes=((0.5, 0.2, 0.75, 0.6),))).image.size
    (25, 20)
    """

    name: ClassVar[str] = "crop"
    help: ClassVar[str] = "show it the region alone"

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        image = request.pil_image
        left, top, right, bottom = pixel_box(union(region.boxes), image.size)
        shortest = math.ceil(max(right - left, bottom - top) / MAX_ASPECT)
        left, right = _widen(left, right, shortest, image.width)
        top, bottom = _widen(top, bottom, shortest, image.height)
        return replace(request, image=image.crop((left, top, right, bottom)))


@dataclass(frozen=True)
class Beside(Focus):
    """The model sees the whole image, then the enlarged region (ViCrop, arXiv 2502.17422, sec. 5).

    A model that takes only one image sees the region alone, as with `Crop`.
    """

    name: ClassVar[str] = "beside"
    help: ClassVar[str] = "show it the region after the whole image"

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        return request.beside(Crop().apply(request, region).image)


@dataclass(frozen=True)
class Overlay(Focus):
    """The model sees the whole image with the region drawn into it.

    `frame`: a red frame around each box ("red circle", arXiv 2304.06712). `blur`: the rest is
    blurred (fine-grained visual prompting, arXiv 2306.04356). `dim`: the rest is darkened.

        >>> request = Request(Image.new("RGB", (100, 50), "white"), "Which digit?")
        >>> dimmed = Overlay("dim").apply(request, Region(boxes=((0.5, 0.2, 0.75, 0.6),)))
        >>> dimmed.image.getpixel((60, 20)), dimmed.image.getpixel((40, 20))
        ((255, 255, 255), (102, 102, 102))
    """

    name: ClassVar[str] = "overlay"
    help: ClassVar[str] = "draw a frame around the region, or blur or dim the rest of the image"
    overlay: Style = option(
        "frame", "Draw a frame around the region, or blur or dim the rest", get_args(Style)
    )

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        image = request.pil_image
        if self.overlay == "frame":
            framed = image.copy()
            line, draw = max(2, round(LINE * min(image.size))), ImageDraw.Draw(framed)
            for box in region.boxes:
                left, top, right, bottom = pixel_box(box, image.size)
                draw.rectangle((left, top, right - 1, bottom - 1), outline=RED, width=line)
            return replace(request, image=framed)
        if self.overlay == "blur":
            rest = image.filter(ImageFilter.GaussianBlur(RADIUS * min(image.size)))
        else:
            rest = ImageEnhance.Brightness(image).enhance(DIMMED)
        inside = coverage_image(region, image.size)
        return replace(request, image=Image.composite(image, rest, inside))


def _widen(start: int, end: int, shortest: int, size: int) -> tuple[int, int]:
    """Widen to at least `shortest` pixels about the same middle, then move inside 0..size."""
    pixels = max(end - start, shortest)
    start = min(max(0, start - (pixels - (end - start)) // 2), size - pixels)
    return start, start + pixels
