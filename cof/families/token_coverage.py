"""Which image tokens a region lands on, measured through the model's own image processor.

Three images of the original's size go through the same processor: all black, all white, and black
with the region white. With `b`, `w` and `m` the means of a token's pixels in the three,
`(m - b) / (w - b)` is the share of the token's visible pixels that lie inside the region, after
any resizing, cropping, padding, tiling and normalisation; `w = b` marks tokens that show only
padding. So the geometry of processors is not implemented a second time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cof.geometry.boxes import XYXY, Frame, area, clip
from cof.geometry.regions import Region, coverage_image

TokenMeans = Callable[[Image.Image], NDArray[np.float64]]
"""An RGB image -> the mean of each image token's pixels, after the image processor. The array's
shape, `(grid_h, grid_w)` or `(tokens,)`, is the layout of the tokens; it depends on the image's
size alone."""

INSIDE = 0.1
"""A token is inside a region that covers at least this share of the token's pixels.

Resampling kernels reach beyond a box: bicubic ones smear some tenths of a processed pixel over the
edge, one or two hundredths of a token of 14 to 32 pixels. A tenth is safely above that, and small
enough that a box which enters a token highlights it: the paper's boxes are rough, and a missing
token is a worse mistake than an additional one.
"""
_VISIBLE = 0.01  # of the largest range among tokens; below it is padding, or its blurred border
_TRACE = 1e-3  # coverage below this is rounding


class TokenVisibility:
    """What each image token shows of images of one size.

    Example: a 64x32 image, resized to 4x2 tokens of 16 pixels; a box over the left quarter and
    half of the next one:

        >>> def token_means(image):
        ...     pixels = np.asarray(image.convert("L"), dtype=float)
        ...     return pixels.reshape(2, 16, 4, 16).mean((1, 3))
        >>> shown = TokenVisibility(token_means, (64, 32))
        >>> shown.coverage(Region(boxes=((0.0, 0.0, 0.375, 0.5),)))
        array([[1. , 0.5, 0. , 0. ],
               [0. , 0. , 0. , 0. ]])
        >>> shown.centres.round(2)[0, :2].tolist()
        [[0.13, 0.25], [0.38, 0.25]]

    Attributes:
        image_wh: that size, in pixels.
        shown_wh: of those that go through the processor: smaller ones may stand for it.
        span: the token means of an all-white image less those of a black one, in the tokens'
            layout; 0 for padding.
        visible: tokens that show a part of the image, in the tokens' layout.
    """

    def __init__(
        self,
        token_means: TokenMeans,
        image_wh: tuple[int, int],
        shown_wh: tuple[int, int] | None = None,
    ) -> None:
        self._token_means = token_means
        self.image_wh = image_wh
        self.shown_wh = shown_wh or image_wh
        self._black = token_means(Image.new("RGB", self.shown_wh, (0, 0, 0)))
        self.span = token_means(Image.new("RGB", self.shown_wh, (255, 255, 255))) - self._black
        self.visible = np.asarray(self.span > _VISIBLE * self.span.max())

    def _brightness(self, image: Image.Image) -> NDArray[np.float64]:
        """0..1 from an all-black to an all-white image, in the layout; NaN for padding."""
        brightness = np.full(self.span.shape, np.nan)
        if image.size != self.shown_wh:
            image = image.resize(self.shown_wh, Image.Resampling.BOX)
        means = self._token_means(image.convert("RGB"))
        np.divide(means - self._black, self.span, out=brightness, where=self.visible)
        return brightness

    def coverage(self, region: Region) -> NDArray[np.float64]:
        """The share of each image token's visible pixels that lie inside `region`, 0..1 in the
        tokens' layout; NaN where a token shows only padding."""
        share = self._brightness(coverage_image(region, self.image_wh))
        return np.asarray(share.clip(0.0, 1.0))

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """The centre of the visible pixels of each image token: the tokens' layout and a last axis
        `(x, y)`, 0..1 of the original image; NaN where a token shows only padding.

        Two images whose pixels grow evenly, to the right and downward, go through the image
        processor: a token's mean is then the coordinate of its centre.
        """
        width, height = self.shown_wh
        ramps = (
            np.tile((np.arange(width) + 0.5) / width, (height, 1)),
            np.tile((np.arange(height)[:, None] + 0.5) / height, (1, width)),
        )
        images = [Image.fromarray(np.round(ramp * 255).astype(np.uint8)) for ramp in ramps]
        return np.stack([self._brightness(image) for image in images], axis=-1)


def image_token_mask(coverage: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The paper's M: which tokens are inside, for a coverage of `TokenVisibility.coverage`.

    Tokens covered by `INSIDE` or more. If the region is too small for any, the token that it
    covers most (all of them on a tie). For a region that no token shows, outside a centre crop,
    all are False.

        >>> image_token_mask(np.array([0.9, 0.3, 0.02, np.nan])).tolist()
        [True, True, False, False]
        >>> image_token_mask(np.array([0.04, 0.02, 0.04, 0.0])).tolist()
        [True, False, True, False]
        >>> image_token_mask(np.array([0.0, 0.0, np.nan])).tolist()
        [False, False, False]
    """
    share = np.nan_to_num(coverage, nan=0.0)
    best = float(share.max())
    if best < _TRACE:
        return np.zeros(share.shape, dtype=bool)
    return np.asarray(share >= min(INSIDE, best))


def corner_cells(
    boxes: Iterable[XYXY], frame: Frame, grid_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Cells of a token grid by the rule of the paper's released code, for comparison with it.

    A box covers the rows `int(y * (grid_h - 1))` and the columns `int(x * (grid_w - 1))` from one
    corner to the other, both included, with x and y in 0..1 of what the grid shows. (The factor
    should be the grid's size, without the - 1: boxes near the right and the bottom lose a cell,
    others gain one.)

    Args:
        boxes: 0..1 of the original image.
        frame: where the original lies in 0..1 of what the grid shows.

    Returns:
        `(grid_h, grid_w)`.

        >>> corner_cells([(0.0, 0.0, 0.5, 0.25)], Frame.of_image(), (4, 4)).astype(int)
        array([[1, 1, 0, 0],
               [0, 0, 0, 0],
               [0, 0, 0, 0],
               [0, 0, 0, 0]])
    """
    height, width = grid_hw
    cells = np.zeros(grid_hw, dtype=bool)
    for box in boxes:
        # rounded: a box set to the border must be 1, not 0.9999999 after a change of frame
        x1, y1, x2, y2 = (round(value, 9) for value in frame.from_image(box))
        if min(frame.left, frame.top) < 0:  # a centre crop, which cuts boxes off
            x1, y1, x2, y2 = inside = clip((x1, y1, x2, y2))
            if area(inside) <= 0:
                continue
        # beyond 0..1 too, as that code does: a box below the image marks cells of the last row
        left, right = (int(x * (width - 1)) for x in (x1, x2))
        top, bottom = (int(y * (height - 1)) for y in (y1, y2))
        cells[top : bottom + 1, left : right + 1] = True
    return cells


def tile_means(pixel_values: Any, patch_size: int) -> NDArray[np.float64]:
    """`(..., C, H, W)` tiles -> `(tiles, H / patch, W / patch)` means of the first channel.

    >>> tile_means(np.arange(8.0).reshape(1, 2, 1, 2, 2), 2)
    array([[[1.5]],
    <BLANKLINE>
           [[5.5]]])
    """
    pixels = np.asarray(pixel_values, dtype=np.float64)
    channel = pixels.reshape(-1, *pixels.shape[-3:])[:, 0]
    tiles, height, width = channel.shape
    rows, columns = height // patch_size, width // patch_size
    channel = channel[:, : rows * patch_size, : columns * patch_size]
    return np.asarray(channel.reshape(tiles, rows, patch_size, columns, patch_size).mean((2, 4)))


def merged_means(patches: Any, grid_thw: Any, merge_size: int) -> NDArray[np.float64]:
    """`(N, 3 * ...)` flat patches, each token's `merge_size ** 2` in a row -> `(grid_h, grid_w)`.

    Qwen-VL's layout: `grid_thw` `(1, 3)` counts patches, and a token is `merge_size` by
    `merge_size` of them. Means are of the first channel.
    """
    _, rows, columns = (int(count) for count in np.asarray(grid_thw)[0])
    flat = np.asarray(patches, dtype=np.float64)
    first = flat.reshape(len(flat), 3, -1)[:, 0].mean(1)
    tokens = first.reshape(-1, merge_size**2).mean(1)
    return np.asarray(tokens.reshape(rows // merge_size, columns // merge_size))
