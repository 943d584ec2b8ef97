"""Regions of an image: boxes, masks, or every image token; coordinates are 0..1 of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from cof.errors import CofError
from cof.geometry.boxes import FULL, XYXY, Frame, area, centre, clip, expand, ordered


@dataclass(frozen=True)
class Region:
    """A part of an image: boxes, a mask, or every image token.

    Attributes:
        boxes: `(x1, y1, x2, y2)` each, in 0..1 of the original image.
        mask: `(H, W)` float32 in 0..1 over the whole image at any resolution, for regions that
            are not rectangles; `boxes` then holds its bounding box.
        whole: every image token, padding included (Table II: "reweight" without "ground").
        heat_map: `(H, W)` float32 in 0..1 over the whole image: weights, for the focus `soft`.
    """

    boxes: tuple[XYXY, ...] = ()
    mask: NDArray[np.float32] | None = field(default=None, compare=False)
    whole: bool = False
    heat_map: NDArray[np.float32] | None = field(default=None, compare=False)


_THINNEST = 1e-6  # side of a box: less than a pixel of the largest image
EVERYTHING = Region(boxes=(FULL,), whole=True)


def region_from_boxes(boxes: Sequence[Sequence[float]]) -> Region:
    """A region of the user's own boxes, each `(x1, y1, x2, y2)` in 0..1 of the image.

    Raises:
        CofError: there is no box, or one is not four finite numbers in 0..1 with an area.
    """
    try:
        corners = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes]
    except (TypeError, ValueError, OverflowError):
        corners = []
    if not corners:
        raise CofError(f"boxes must be a list of at least one (x1, y1, x2, y2), not {boxes!r}.")
    return Region(boxes=tuple(map(_check_box, corners)))


def region_from_polygon(points: Sequence[tuple[float, float]], image_wh: tuple[int, int]) -> Region:
    """A region inside a polygon of at least three `(x, y)` points in 0..1 of the image.

    Raises:
        CofError: fewer than three points, or a point outside 0..1 or not finite.
    """
    try:
        corners = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError):
        corners = []
    if len(corners) < 3:
        raise CofError(f"A polygon must be a list of at least three (x, y), not {points!r}.")
    for corner in corners:
        if not all(0 <= value <= 1 for value in corner):
            raise CofError(
                f"Polygon point {corner} is outside 0..1: give fractions of the image's width and "
                "height."
            )
    width, height = image_wh
    canvas = Image.new("L", image_wh)
    pixels = [(x * (width - 1), y * (height - 1)) for x, y in corners]
    ImageDraw.Draw(canvas).polygon(pixels, fill=255, outline=255)
    return region_from_mask(np.asarray(canvas))


def region_from_mask(array: ArrayLike) -> Region:
    """A region from an `(H, W)` mask over the whole image, at any resolution.

    It holds bool, integers (0 or 1, or 0..255, white inside) or floats in 0..1. Its bounding box:

        >>> mask = np.zeros((4, 8), bool); mask[1:3, 2:4] = True
        >>> region_from_mask(mask).boxes
        ((0.25, 0.25, 0.5, 0.75),)

    Raises:
        CofError: not two-dimensional, values out of range, or nothing inside.
    """
    try:
        given = np.asarray(array)
    except ValueError:
        raise CofError("A mask must be an (H, W) array with rows of equal length.") from None
    if given.ndim != 2 or given.size == 0:
        raise CofError(f"A mask must be an (H, W) array, not one of shape {given.shape}.")
    if given.dtype.kind not in "buif":
        raise CofError(f"A mask must hold bool, 0..255 or 0..1, not {given.dtype}.")
    mask = given.astype(np.float32)
    if given.dtype.kind in "ui":
        mask /= 255.0 if mask.max() > 1 else 1.0
    if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
        raise CofError("A mask must hold floats in 0..1, or integers in 0..255.")
    if not mask.any():
        raise CofError("The mask is empty: mark at least one pixel.")
    return Region(boxes=(_mask_box(mask),), mask=mask)


def check_region(region: Region) -> Region:
    """A region made by hand: its boxes are set to its mask's, or must reach into the image.

    Raises:
        CofError: it is no region, or an empty one.
    """
    if not isinstance(region, Region):
        raise CofError(
            f"region takes a cof.Region, not {type(region).__name__}; pass boxes, a polygon or a "
            "mask under those names."
        )
    if region.whole:
        return region
    if region.mask is not None:
        return replace(region_from_mask(region.mask), heat_map=region.heat_map)
    if not region.boxes or any(area(box) * area(clip(box)) == 0 for box in region.boxes):
        raise CofError(
            "A region needs boxes (x1, y1, x2, y2) with an area inside the image, in 0..1 of its "
            f"width and height, or a mask, or whole=True; this one has the boxes {region.boxes}."
        )
    return region


def expand_region(region: Region, alpha: float) -> Region:
    """`expand` each box of a region, or scale its mask about the centre of its bounding box.

    A mask is moved inside the image with its bounding box; on an axis where that box would be
    larger than the image, the mask is scaled to the image. A heat map stays as it is.

        >>> expand_region(Region(boxes=((0.25, 0.25, 0.5, 0.5), (0.0, 0.75, 0.25, 1.0))), 2).boxes
        ((0.125, 0.125, 0.625, 0.625), (0.0, 0.5, 0.5, 1.0))
    """
    if region.whole:
        return region
    if region.mask is None:
        return replace(region, boxes=tuple(expand(box, alpha) for box in region.boxes))
    if alpha == 1:
        return region
    (source,) = region.boxes
    target = expand(source, alpha)
    return replace(region, boxes=(target,), mask=_stretch(region.mask, source, target))


def coverage_image(region: Region, image_wh: tuple[int, int]) -> Image.Image:
    """The region as an image ('L') of the original's size: white inside, black outside.

    A pixel is inside a box if its centre is; a box without any centre gets the pixel it lies in.
    """
    width, height = image_wh
    if region.whole:
        return Image.new("L", image_wh, 255)
    if region.mask is not None:
        return _mask_image(region.mask, image_wh)
    canvas = Image.new("L", image_wh)
    for box in region.boxes:
        inside = clip(box)
        if area(inside) > 0:
            left, right = _pixel_span(inside[0], inside[2], width)
            top, bottom = _pixel_span(inside[1], inside[3], height)
            canvas.paste(255, (left, top, right, bottom))
    return canvas


def _check_box(box: XYXY) -> XYXY:
    shown = ", ".join(f"{value:g}" for value in box)
    if not all(0 <= value <= 1 for value in box):
        raise CofError(
            f"Box ({shown}) is outside 0..1: give fractions of the image's width and height "
            "(pixels divided by them)."
        )
    x1, y1, x2, y2 = checked = ordered(box)
    if min(x2 - x1, y2 - y1) < _THINNEST:
        raise CofError(f"Box ({shown}) has no area: give two different corners.")
    return checked


def _pixel_span(low: float, high: float, size: int) -> tuple[int, int]:
    """Pixels `start..end` (end excluded) whose centres are in low..high; at least one pixel."""
    start, end = math.ceil(low * size - 0.5), math.ceil(high * size - 0.5)
    if end <= start:
        start = min(size - 1, int((low + high) / 2 * size))
        end = start + 1
    return start, end


def _mask_box(mask: NDArray[np.float32]) -> XYXY:
    height, width = mask.shape
    left, top, right, bottom = Image.fromarray(mask > 0).getbbox() or (0, 0, width, height)
    return left / width, top / height, right / width, bottom / height


def _mask_image(mask: NDArray[np.float32], image_wh: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(np.round(mask * 255).astype(np.uint8))
    if image.size != image_wh:
        image = image.resize(image_wh, Image.Resampling.BILINEAR)
    if image.getbbox() is None:  # the mask was too small or faint to survive rounding and resizing
        width, height = image_wh
        x, y = centre(_mask_box(mask))
        image.putpixel((min(width - 1, int(x * width)), min(height - 1, int(y * height))), 255)
    return image


def _stretch(mask: NDArray[np.float32], source: XYXY, target: XYXY) -> NDArray[np.float32]:
    """The mask with its part in `source` moved and scaled to `target` (both in 0..1)."""
    height, width = mask.shape
    x1, y1, x2, y2 = Frame(*source).from_image(Frame(*target).to_image(FULL))
    image = Image.fromarray(mask).transform(
        (width, height),
        Image.Transform.EXTENT,
        (x1 * width, y1 * height, x2 * width, y2 * height),
        resample=Image.Resampling.BILINEAR,
    )
    stretched = np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0)
    return stretched if stretched.any() else mask
