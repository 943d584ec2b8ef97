"""Show the model the region enlarged: alone, or after the whole image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from cof.focuses.base import Focus
from cof.geometry.boxes import pixel_box, union
from cof.geometry.regions import Region
from cof.images import MAX_ASPECT
from cof.types import Request


@dataclass(frozen=True)
class Crop(Focus):
    """The model sees the region alone, which its processor enlarges.

    A region that is longer and thinner than an image may be (`cof.images.MAX_ASPECT`) is widened.

    >>> from PIL import Image
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
    """The model sees the whole image, and after it the enlarged region (ViCrop, arXiv 2502.17422,
    section 5).

    A model that takes only one image sees the region alone, as with `Crop`.
    """

    name: ClassVar[str] = "beside"
    help: ClassVar[str] = "show it the region after the whole image"

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        return request.beside(Crop().apply(request, region).image)


def _widen(start: int, end: int, shortest: int, size: int) -> tuple[int, int]:
    """Widen to at least `shortest` pixels about the same middle, then move inside 0..size."""
    pixels = max(end - start, shortest)
    start = min(max(0, start - (pixels - (end - start)) // 2), size - pixels)
    return start, start + pixels
