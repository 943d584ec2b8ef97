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
from cof.viz.grid import lines, spread

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

# Dark violet, red, orange, pale yellow: even in lightness, and told apart by the colour-blind.
_HEAT = np.array(
    [
        (8, 5, 29),
        (51, 16, 88),
        (106, 23, 110),
        (159, 42, 99),
        (207, 68, 70),
        (241, 112, 32),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    dtype=np.float64,
)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Values of image tokens, and where their grid lies.

    Attributes:
        values: `(grid_h, grid_w)`: True for the highlighted ones, or shares of attention.
        frame: where the original lies in 0..1 of what the grid shows.
    """

    values: NDArray[np.generic]
    frame: Frame


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
    pen = ImageDraw.Draw(panel)
    if region is not None and not region.whole:
        _outline(panel, region)
        for box in found:
            if box not in region.boxes:
                _rectangle(pen, box, panel.size, FOUND, width=2, dash=10)
    if true is not None:
        _rectangle(pen, true, panel.size, TRUE, width=3, dash=4)
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
    size = panel_size(image.size)
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS)
    light = np.asarray(grey, dtype=np.float64)[..., None]
    share = spread(attention.values, attention.frame, size)
    level = np.nan_to_num(share / top if top > 0 else share * 0).clip(0, 1)
    # opaque where attention is high; where it is low the image must stay recognisable
    opacity = 0.55 + 0.25 * level[..., None]
    mixed = (1 - opacity) * light * _GREY + opacity * colours(level)
    pixels = np.where(np.isnan(share)[..., None], light * _UNSEEN, mixed)
    panel = Image.fromarray(pixels.round().astype(np.uint8))
    if region is not None and not region.whole:
        _outline(panel, region, FOUND)
    return panel


def colours(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Levels in 0..1, `(...)`, as the colours of the heat, `(..., 3)` in 0..255."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(levels, stops, _HEAT[:, channel]) for channel in range(3)], -1)


def _spotlit(panel: Image.Image, highlighted: Tokens) -> Image.Image:
    """The panel with its highlighted tokens bright, and the grid."""
    mask = highlighted.values.astype(bool)
    inside = spread(mask, highlighted.frame, panel.size)
    dimmed = _DIMMED if mask.any() else 1.0
    brightness = np.where(np.isnan(inside), _UNSEEN, np.where(inside == 1, 1.0, dimmed))
    pixels = np.asarray(panel, dtype=np.float64) * brightness[..., None]
    grid = lines(highlighted.frame, (mask.shape[0], mask.shape[1]), panel.size)
    grid &= ~np.isnan(inside)
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
    pen = ImageDraw.Draw(panel)
    for box in region.boxes:
        _rectangle(pen, box, panel.size, colour, width=4)


def _rectangle(
    pen: ImageDraw.ImageDraw,
    box: XYXY,
    wh: tuple[int, int],
    colour: tuple[int, int, int],
    *,
    width: int,
    dash: int = 0,
) -> None:
    """The border of a box, on a dark one that is a pixel wider so that it shows on any ground.

    Its outer edge is the box's; a box that leaves the image is drawn along the image's edge.
    """
    right, bottom = wh[0] - 1, wh[1] - 1
    x1, y1 = (min(max(0, round(v * n)), n - 1) for v, n in zip(box[:2], wh, strict=True))
    x2, y2 = (min(max(0, round(v * n) - 1), n - 1) for v, n in zip(box[2:], wh, strict=True))
    x2, y2 = max(x1, x2), max(y1, y2)
    around = (max(0, x1 - 1), max(0, y1 - 1), min(right, x2 + 1), min(bottom, y2 + 1))
    if not dash:
        pen.rectangle(around, outline=DARK, width=width + 2)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=width)
        return
    for ink, (left, upper, far, lower), thick in (
        (DARK, around, width + 2),
        (colour, (x1, y1, x2, y2), width),
    ):
        for x in range(x1, x2 + 1, 2 * dash):
            end = min(x + dash, far)
            pen.rectangle((x, upper, end, min(upper + thick - 1, lower)), fill=ink)
            pen.rectangle((x, max(lower - thick + 1, upper), end, lower), fill=ink)
        for y in range(y1, y2 + 1, 2 * dash):
            end = min(y + dash, lower)
            pen.rectangle((left, y, min(left + thick - 1, far), end), fill=ink)
            pen.rectangle((max(far - thick + 1, left), y, far, end), fill=ink)
