"""Draw the region into the image as a visual prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from cof.focuses.base import Focus
from cof.geometry.boxes import XYXY, pixel_box
from cof.geometry.regions import Region, coverage_image
from cof.options import option
from cof.types import Request

Style = Literal["frame", "blur", "dim"]

RED = (255, 0, 0)
LINE = 0.01  # width of a frame, as a share of the image's shorter side
RADIUS = 0.02  # of the blur, likewise
DIMMED = 0.4  # brightness of the darkened part, as a share of the original


@dataclass(frozen=True)
class Overlay(Focus):
    """The model sees the whole image with the region drawn into it.

    `frame`: a red frame around each box ("red circle", arXiv 2304.06712). `blur`: everything but
    the region is blurred (fine-grained visual prompting, arXiv 2306.04356). `dim`: everything but
    the region is darkened.

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
            return replace(request, image=self._draw_frames(image, region.boxes))
        if self.overlay == "blur":
            rest = image.filter(ImageFilter.GaussianBlur(RADIUS * min(image.size)))
        else:
            rest = ImageEnhance.Brightness(image).enhance(DIMMED)
        inside = coverage_image(region, image.size)
        return replace(request, image=Image.composite(image, rest, inside))

    def _draw_frames(self, image: Image.Image, boxes: tuple[XYXY, ...]) -> Image.Image:
        framed = image.copy()
        line = max(2, round(LINE * min(framed.size)))
        draw = ImageDraw.Draw(framed)
        for box in boxes:
            left, top, right, bottom = pixel_box(box, framed.size)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=RED, width=line)
        return framed
