"""The panels of a drawing: the boxes with their image tokens, and attention as a heat map.

A panel shows the ORIGINAL image, whatever the model's processor cut off or padded: parts the model
does not see are nearly black, padding does not appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import Region, coverage_image

SHORTEST, LONGEST = 640, 960  # limits of a panel's longer side, pixels
THINNEST = 24  # its shorter side; thinner images are stretched, for something to be seen

USED = (255, 176, 0)
FOUND = (255, 255, 255)
TRUE = (64, 224, 144)
DARK = (20, 20, 24)

_DIMMED = 0.5  # brightness outside the highlighted tokens
_UNSEEN = 0.12  # brightness where the model sees nothing
_GREY = 0.8  # brightness of the image under the heat map
_GRID = 0.16  # opacity of the lines between tokens

HEAT = "inferno"
"""Matplotlib's colours of attention: even in lightness, and told apart by the colour-blind."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Values of image tokens, and where their grid lies.

    Attributes:
        values: `(grid_h, grid_w)`: True for the highlighted ones, or shares of attention.
        frame: where the original lies in 0..1 of what the grid shows.
    """

    values: NDArray[np.generic]
    frame: Frame

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.values.shape[0], self.values.shape[1])


def panel_size(image_wh: tuple[int, int]) -> tuple[int, int]:
    """The size an image is shown at: its longer side between 640 and 960 pixels.

    >>> panel_size((160, 80)), panel_size((800, 600)), panel_size((20000, 20))
    ((640, 320), (800, 600), (960, 24))
    """
    longest = max(image_wh)
    scale = min(max(longest, SHORTEST), LONGEST) / longest
    width, height = (max(THINNEST, round(side * scale)) for side in image_wh)
    return (width, height)


def overlay(
    image: Image.Image,
    region: Region | None,
    *,
    found: Sequence[XYXY] = (),
    true: XYXY | None = None,
    highlighted: Tokens | None = None,
) -> Image.Image:
    """The image with what was looked at: the tokens bright, the box solid, the box found dashed,
    the true one dotted.

    Args:
        image: upright RGB.
        region: what was looked at, after expansion; None: nothing.
        found: boxes as the grounder found them, `(x1, y1, x2, y2)` in 0..1 of the image.
        true: the true region, likewise, where it is known.
        highlighted: which image tokens have the bias; their grid is drawn, the rest dimmed.

    Returns:
        RGB of size `panel_size(image.size)`.
    """
    panel = image.resize(panel_size(image.size), Image.Resampling.LANCZOS)
    if highlighted is not None:
        panel = _spotlit(panel, highlighted)
    if region is not None and not region.whole:
        _outline(panel, region)
        for box in found:
            if box not in region.boxes:
                _rectangle(panel, box, FOUND, width=2, dash=10)
    if true is not None:
        _rectangle(panel, true, TRUE, width=3, dash=4)
    return panel


def heat(
    image: Image.Image, attention: Tokens, top: float, region: Region | None = None
) -> Image.Image:
    """The image in grey under the attention that each token gets, with the region's outline.

    Args:
        image: upright RGB.
        attention: a share for each token.
        top: the share that is drawn in the brightest colour; larger ones are too.
        region: what was looked at, after expansion; None: no outline.

    Returns:
        RGB of size `panel_size(image.size)`.
    """
    from matplotlib import colormaps

    size = panel_size(image.size)
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS)
    light = np.asarray(grey, dtype=np.float64)[..., None]
    share = spread(attention, size)
    level = np.nan_to_num(share / top if top > 0 else share * 0).clip(0, 1)
    # opaque where attention is high; where it is low the image must stay recognisable
    opacity = 0.55 + 0.25 * level[..., None]
    mixed = (1 - opacity) * light * _GREY + opacity * 255 * colormaps[HEAT](level)[..., :3]
    pixels = np.where(np.isnan(share)[..., None], light * _UNSEEN, mixed)
    panel = Image.fromarray(pixels.round().astype(np.uint8))
    if region is not None and not region.whole:
        _outline(panel, region, FOUND)
    return panel


def _spotlit(panel: Image.Image, highlighted: Tokens) -> Image.Image:
    """The panel with its highlighted tokens bright, and the grid."""
    inside = spread(highlighted, panel.size)
    dimmed = _DIMMED if highlighted.values.any() else 1.0
    brightness = np.where(np.isnan(inside), _UNSEEN, np.where(inside == 1, 1.0, dimmed))
    pixels = np.asarray(panel, dtype=np.float64) * brightness[..., None]
    grid = lines(highlighted, panel.size) & ~np.isnan(inside)
    pixels[grid] = pixels[grid] * (1 - _GRID) + 255 * _GRID
    return Image.fromarray(pixels.round().astype(np.uint8))


def _outline(panel: Image.Image, region: Region, colour: tuple[int, int, int] = USED) -> None:
    """Draw the border of a region: of its mask if it has one, else of its boxes."""
    if region.mask is not None:
        shape = coverage_image(region, panel.size).point(lambda value: 255 * (value > 127))
        for ink, reach in ((DARK, 7), (colour, 5)):
            thick = shape.filter(ImageFilter.MaxFilter(reach))
            panel.paste(ink, mask=ImageChops.subtract(thick, shape))
        return
    for box in region.boxes:
        _rectangle(panel, box, colour, width=4)


def _rectangle(
    panel: Image.Image, box: XYXY, colour: tuple[int, int, int], *, width: int, dash: int = 0
) -> None:
    """The border of a box, on a dark one that is a pixel wider so that it shows on any ground.

    Its outer edge is the box's; a box that leaves the image is drawn along the image's edge.
    """
    wh = panel.size
    x1, y1 = (min(max(0, round(v * n)), n - 1) for v, n in zip(box[:2], wh, strict=True))
    x2, y2 = (min(max(0, round(v * n) - 1), n - 1) for v, n in zip(box[2:], wh, strict=True))
    x2, y2 = max(x1, x2), max(y1, y2)
    along = np.add.outer(np.arange(wh[1]) - y1, np.arange(wh[0]) - x1)
    shown = (along // dash) % 2 == 0 if dash else np.full((wh[1], wh[0]), True)
    for ink, more in ((DARK, 1), (colour, 0)):
        line = Image.new("L", wh)
        outer = (x1 - more, y1 - more, x2 + more, y2 + more)
        ImageDraw.Draw(line).rectangle(outer, outline=255, width=width + 2 * more)
        panel.paste(ink, mask=Image.fromarray(np.asarray(line) * shown))


def cells_of_pixels(
    frame: Frame, grid_hw: tuple[int, int], image_wh: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The grid row of each pixel row `(H,)` and the grid column of each pixel column `(W,)`.

    They are -1 for pixels that the grid does not reach. Examples: a 4x2 image padded to a square,
    and the same one cropped to its centre, under 4x4 and 2x2 tokens.

        >>> rows, columns = cells_of_pixels(Frame.padded_square((4, 2)), (4, 4), (4, 2))
        >>> rows.tolist(), columns.tolist()
        ([1, 2], [0, 1, 2, 3])
        >>> rows, columns = cells_of_pixels(Frame.centre_crop((4, 2)), (2, 2), (4, 2))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [-1, 0, 1, -1])
    """

    def cells(low: float, high: float, count: int, pixels: int) -> NDArray[np.int64]:
        position = low + (np.arange(pixels) + 0.5) / pixels * (high - low)
        index = np.floor(position * count).astype(np.int64)
        return np.where((index < 0) | (index >= count), -1, index)

    return (
        cells(frame.top, frame.bottom, grid_hw[0], image_wh[1]),
        cells(frame.left, frame.right, grid_hw[1], image_wh[0]),
    )


def spread(tokens: Tokens, image_wh: tuple[int, int]) -> NDArray[np.float64]:
    """Values of the tokens laid over the original: `(grid_h, grid_w)` -> `(H, W)`.

    NaN where no token shows the pixel. Tokens that show padding only do not appear.

        >>> spread(Tokens(np.array([[1, 2], [3, 4]]), Frame.centre_crop((4, 2))), (4, 2))
        array([[nan,  1.,  2., nan],
               [nan,  3.,  4., nan]])
    """
    rows, columns = cells_of_pixels(tokens.frame, tokens.grid_hw, image_wh)
    pixels = tokens.values.astype(np.float64)[rows[:, None], columns[None, :]]
    return np.where((rows[:, None] < 0) | (columns < 0), np.nan, pixels)


def lines(tokens: Tokens, image_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """`(H, W)`: the pixels just after a border between two tokens."""
    rows, columns = cells_of_pixels(tokens.frame, tokens.grid_hw, image_wh)
    horizontal = np.diff(rows, prepend=rows[:1]) != 0
    vertical = np.diff(columns, prepend=columns[:1]) != 0
    return np.asarray(horizontal[:, None] | vertical[None, :])
