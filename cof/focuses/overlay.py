"""Draw the region into the image as a visual prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from cof.geometry.boxes import XYXY, pixel_box
from cof.geometry.regions import Region, coverage_image
from cof.types import Request

Overlay = Literal["frame", "blur", "dim"]


@dataclass(frozen=True)
class OverlayFocus:
    """The model sees the whole image with the region drawn into it.

    `frame`: a red frame around each box ("red circle", arXiv 2304.06712). `blur`: everything but
    the region is blurred (fine-grained visual prompting, arXiv 2306.04356). `dim`: everything but
    the region is darkened.

        >>> request = Request(Image.new("RGB", (100, 50), "white"), "Which digit?")
        >>> dimmed = OverlayFocus("dim").apply(request, Region(boxes=((0.5, 0.2, 0.75, 0.6),)))
        >>> dimmed.image.getpixel((60, 20)), dimmed.image.getpixel((40, 20))
        ((255, 255, 255), (102, 102, 102))

    Attributes:
        overlay: `frame`, `blur` or `dim`.
        colour: RGB of the frame.
        width: line width of the frame, as a share of the image's shorter side; at least 2 pixels.
        radius: radius of the blur, as a share of the image's shorter side.
        dimming: brightness of the darkened part, as a share of the original.
    """

    help: ClassVar[str] = "draw a frame around the region, or blur or dim the rest of the image"
    uses_strength: ClassVar[bool] = False
    uses_heat_map: ClassVar[bool] = False
    overlay: Overlay = "frame"
    colour: tuple[int, int, int] = (255, 0, 0)
    width: float = 0.01
    radius: float = 0.02
    dimming: float = 0.4

    def apply(self, request: Request, region: Region) -> Request:
        if region.whole:
            return request
        image = request.pil_image
        if self.overlay == "frame":
            return replace(request, image=self._draw_frames(image, region.boxes))
        if self.overlay == "blur":
            rest = image.filter(ImageFilter.GaussianBlur(self.radius * min(image.size)))
        else:
            rest = ImageEnhance.Brightness(image).enhance(self.dimming)
        inside = coverage_image(region, image.size)
        return replace(request, image=Image.composite(image, rest, inside))

    def _draw_frames(self, image: Image.Image, boxes: tuple[XYXY, ...]) -> Image.Image:
        framed = image.copy()
        line = max(2, round(self.width * min(framed.size)))
        draw = ImageDraw.Draw(framed)
        for box in boxes:
            left, top, right, bottom = pixel_box(box, framed.size)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=self.colour, width=line)
        return framed
