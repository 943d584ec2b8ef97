"""Boxes and frames: pure geometry.

A box is `xyxy = (x1, y1, x2, y2)`, x to the right and y down. Unless a name says otherwise its
numbers are fractions (0..1) of the ORIGINAL, upright image. A model writes boxes in its own frame
(fractions of a padded square, thousandths, pixels after resizing); `Frame` converts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

XYXY = tuple[float, float, float, float]

FULL: XYXY = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Frame:
    """The rectangle, in a model's native coordinates, that the ORIGINAL image occupies.

    Example: LLaVA-1.5 writes fractions of the image padded to a square. A 640x480 image fills
    the middle three quarters of that square:

        >>> frame = Frame.padded_square((640, 480))
        >>> frame
        Frame(left=0.0, top=0.125, right=1.0, bottom=0.875)
        >>> frame.to_image((0.25, 0.125, 0.75, 0.5))
        (0.25, 0.0, 0.75, 0.5)
        >>> frame.from_image((0.25, 0.0, 0.75, 0.5))
        (0.25, 0.125, 0.75, 0.5)
    """

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def padded_square(cls, image_wh: tuple[int, int]) -> Frame:
        """The image in the middle of a square of its longer side; the square is 0..1.

        The padding is split with integer division, as in LLaVA's `expand2square`, so with an odd
        difference the image is half a pixel off the centre.
        """
        width, height = image_wh
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        return cls(left / side, top / side, (left + width) / side, (top + height) / side)

    @classmethod
    def centre_crop(cls, image_wh: tuple[int, int]) -> Frame:
        """The image around its central square of the shorter side; the square is 0..1.

        The model never sees the parts outside 0..1.

            >>> Frame.centre_crop((600, 300))
            Frame(left=-0.5, top=0.0, right=1.5, bottom=1.0)
        """
        width, height = image_wh
        side = min(width, height)
        x, y = (width - side) / 2 / side, (height - side) / 2 / side
        return cls(0.0 - x, 0.0 - y, 1 + x, 1 + y)

    @classmethod
    def of_image(cls, scale: float = 1.0) -> Frame:
        """Fractions of the original image, times `scale` (1000: thousandths)."""
        return cls(0.0, 0.0, scale, scale)

    @classmethod
    def pixels(cls, wh: tuple[int, int]) -> Frame:
        """Pixels of the whole image at size `wh` (of the original or of a resized copy)."""
        return cls(0.0, 0.0, float(wh[0]), float(wh[1]))

    def to_image(self, xyxy: XYXY) -> XYXY:
        """Native coordinates -> 0..1 of the original; beyond 0..1 where the box leaves it."""
        x1, x2 = ((x - self.left) / (self.right - self.left) for x in xyxy[::2])
        y1, y2 = ((y - self.top) / (self.bottom - self.top) for y in xyxy[1::2])
        return (x1, y1, x2, y2)

    def from_image(self, xyxy: XYXY) -> XYXY:
        """0..1 of the original -> native coordinates; the inverse of `to_image`."""
        x1, x2 = (self.left + x * (self.right - self.left) for x in xyxy[::2])
        y1, y2 = (self.top + y * (self.bottom - self.top) for y in xyxy[1::2])
        return (x1, y1, x2, y2)


def ordered(xyxy: XYXY) -> XYXY:
    """The same box with its corners in order.

    >>> ordered((0.9, 0.2, 0.1, 0.6))
    (0.1, 0.2, 0.9, 0.6)
    """
    x1, y1, x2, y2 = xyxy
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def area(xyxy: XYXY) -> float:
    """Width times height of an ordered box; 0 for an empty one."""
    x1, y1, x2, y2 = xyxy
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def centre(xyxy: XYXY) -> tuple[float, float]:
    """The point `(x, y)` in the middle of a box."""
    x1, y1, x2, y2 = xyxy
    return ((x1 + x2) / 2, (y1 + y2) / 2)


def contains_point(xyxy: XYXY, point: tuple[float, float]) -> bool:
    """Whether `point = (x, y)` is in the box, its edges included."""
    x1, y1, x2, y2 = xyxy
    return x1 <= point[0] <= x2 and y1 <= point[1] <= y2


def clip(xyxy: XYXY) -> XYXY:
    """The part of a box that is inside 0..1; its area is 0 if no part is inside.

    >>> clip((-0.5, 0.25, 0.5, 1.25))
    (0.0, 0.25, 0.5, 1.0)
    """
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in xyxy)
    return (x1, y1, x2, y2)


def intersection(a: XYXY, b: XYXY) -> float:
    """Area of the overlap of two boxes."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: XYXY, b: XYXY) -> float:
    """Intersection over union, 0..1; 0 when both are empty.

    >>> iou((0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)) == 1 / 3
    True
    """
    both = intersection(a, b)
    either = area(a) + area(b) - both
    return both / either if either > 0 else 0.0


def union(boxes: Iterable[XYXY]) -> XYXY:
    """The smallest box around all of `boxes` (at least one).

    >>> union([(0.1, 0.2, 0.3, 0.4), (0.2, 0.1, 0.5, 0.3)])
    (0.1, 0.1, 0.5, 0.4)
    """
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return (min(x1), min(y1), max(x2), max(y2))


def expand(xyxy: XYXY, alpha: float) -> XYXY:
    """Scale a box by `alpha` about its centre, then move it inside 0..1 (paper, section II-B).

    The box is moved, never clipped, and keeps its size, but is at most as large as the image.

    Examples: twice as wide and high; a corner box moved back inside; one too wide.

        >>> expand((0.25, 0.25, 0.5, 0.5), 2.0)
        (0.125, 0.125, 0.625, 0.625)
        >>> expand((0.0, 0.75, 0.25, 1.0), 2.0)
        (0.0, 0.5, 0.5, 1.0)
        >>> expand((0.125, 0.25, 0.875, 0.5), 2.0)
        (0.0, 0.125, 1.0, 0.625)
    """
    left, right = _scaled_and_moved(*xyxy[::2], alpha)
    top, bottom = _scaled_and_moved(*xyxy[1::2], alpha)
    return (left, top, right, bottom)


def expand_snapped(xyxy: XYXY, alpha: float, image_wh: tuple[int, int]) -> XYXY:
    """Scale a box as the paper's released code does, including its defect at the border.

    It makes the box square (the longer side in pixels), tests whether `centre - side` (not half
    the side) leaves the image, and then sets that edge to the border: a box near the border grows
    to it and is not moved. The border is that of the image padded to a square, so on an image that
    is not square the result may leave 0..1 (it then reaches into the padding).

    Boxes with two decimals often lie exactly on the limit of that test, so the arithmetic is the
    released code's, operation by operation, in its frame.

    Example on a square image: the left and the top edge snap, though the box would fit.

        >>> expand_snapped((0.25, 0.25, 0.5, 0.5), 1.6, (100, 100))
        (0.0, 0.0, 0.575, 0.575)
    """
    frame = Frame.padded_square(image_wh)
    # undo the rounding errors of the model's decimals -> 0..1 of the image -> back
    x1, y1, x2, y2 = (round(value, 9) for value in frame.from_image(xyxy))
    side = max((x2 - x1) * alpha, (y2 - y1) * alpha)
    left, right = _snapped((x1 + x2) / 2, side)
    top, bottom = _snapped((y1 + y2) / 2, side)
    return frame.to_image((left, top, right, bottom))


def widen(xyxy: XYXY, side: float) -> XYXY:
    """Widen a box to `side` (0..1) on each axis where it is smaller, then move it inside 0..1.

    >>> widen((0.5, 0.25, 0.5, 0.75), 0.25)
    (0.375, 0.25, 0.625, 0.75)
    """
    x1, y1, x2, y2 = xyxy
    x, y = centre(xyxy)
    half_x, half_y = max(x2 - x1, side) / 2, max(y2 - y1, side) / 2
    return expand((x - half_x, y - half_y, x + half_x, y + half_y), 1.0)


def pixel_box(xyxy: XYXY, image_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels that a box touches, at least one: `(left, top, right, bottom)`, the ends excluded.

    >>> pixel_box((0.5, 0.5, 0.5, 0.5), (10, 10)), pixel_box((0.26, 0.0, 1.2, 0.5), (10, 10))
    ((5, 5, 6, 6), (2, 0, 10, 5))
    """
    width, height = image_wh
    x1, y1, x2, y2 = clip(xyxy)
    left, top = min(int(x1 * width), width - 1), min(int(y1 * height), height - 1)
    # rounded, because 0.6 * 50 is a float a little above 30 and would become 31 pixels
    right = max(left + 1, math.ceil(round(x2 * width, 6)))
    bottom = max(top + 1, math.ceil(round(y2 * height, 6)))
    return left, top, right, bottom


def _scaled_and_moved(low: float, high: float, alpha: float) -> tuple[float, float]:
    if alpha == 1 and low >= 0 and high <= 1:  # no rounding
        return low, high
    half = min(0.5, (high - low) * alpha / 2)
    start = min(max(0.0, (low + high) / 2 - half), 1 - 2 * half)
    return start, min(1.0, start + 2 * half)


def _snapped(middle: float, side: float) -> tuple[float, float]:
    start = middle - side / 2 if middle - side > 0 else 0.0
    end = middle + side / 2 if middle + side < 1 else 1.0
    return start, end
