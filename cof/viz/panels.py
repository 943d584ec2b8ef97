"""The panels of a drawing: the boxes with their image tokens, the attention before and after.

A panel shows the ORIGINAL image, whatever the model's processor cut off or padded: parts the model
does not see are nearly black, padding does not appear.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from cof.engines.base import AttentionReader, Engine
from cof.errors import CofWarning
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import Region, coverage_image
from cof.prompting.dialects import native_wh
from cof.types import EncodedImage, Request

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

Drawable: TypeAlias = Any
"""A `cof.Answer`. It draws itself by these files, which therefore cannot import it."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Values of image tokens, and where their grid lies."""

    values: NDArray[Any]  # (grid_h, grid_w): True for the highlighted ones, or shares of attention
    frame: Frame  # where the original lies in 0..1 of what the grid shows


@dataclass(frozen=True, eq=False)
class Readout:
    """How a model looked at an image: each token's mean share of attention in layers and heads."""

    looks: str  # whose attention it is
    before: Tokens  # in the plain model
    after: Tokens | None  # with the highlight; None: there was none
    highlighted: Tokens | None  # the tokens that it fell on; None likewise

    def inside(self, attention: Tokens) -> float:
        """The share of all attention that goes to the highlighted tokens, 0..1."""
        if self.highlighted is None:
            return 0.0
        return float(attention.values[self.highlighted.values].sum())


def read(
    engine: Engine | None,
    answer: Drawable,
    *,
    image: EncodedImage | None = None,
    known: Readout | None = None,
) -> Readout | None:
    """Two forward passes: the prompt without the highlight, and with it.

    Args:
        image: the answer's image as the engine has encoded it; None: it is encoded here.
        known: a readout of the same question and image, which spares the first pass.

    Returns:
        None where there is no engine that can tell, and for image tokens that are no single raster.
    """
    if engine is None or not isinstance(engine, AttentionReader):
        return None
    chat = answer.request or Request(answer.image, answer.question)
    plain = replace(chat, image=image or engine.encode([answer.image])[0])
    # what there is to warn of was said when the question was answered
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CofWarning)
        if known is None:
            (before,) = engine.image_attentions([plain])
            if before.ndim != 4:
                return None
            native = engine.frame(answer.image.size)
            w, h = native_wh(native, engine.dialect.units)
            frame = Frame(native.left / w, native.top / h, native.right / w, native.bottom / h)
            tokens = Tokens(before.mean((0, 1)), frame)
            known = Readout(engine.attention_source, tokens, None, None)
        # what the pipeline had the engine highlight
        look = answer.region and answer.settings.focus.apply(plain, answer.region).highlight
        if look is None:
            return replace(known, after=None, highlighted=None)
        (after,) = engine.image_attentions([replace(plain, highlight=look)])
        mask = engine.token_mask(answer.image.size, look)
    frame = known.before.frame
    return replace(known, after=Tokens(after.mean((0, 1)), frame), highlighted=Tokens(mask, frame))


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
    """The image, in RGB of `panel_size`, with what was looked at: the highlighted tokens bright in
    their grid, the region solid, the boxes found dashed, the true one dotted.

    Boxes are `(x1, y1, x2, y2)` in 0..1 of the image.
    """
    panel = image.resize(panel_size(image.size), Image.Resampling.LANCZOS)
    if highlighted is not None:
        inside = spread(highlighted, panel.size)
        dimmed = _DIMMED if highlighted.values.any() else 1.0
        brightness = np.where(np.isnan(inside), _UNSEEN, np.where(inside == 1, 1.0, dimmed))
        pixels = np.asarray(panel, dtype=np.float64) * brightness[..., None]
        grid = lines(highlighted, panel.size)
        pixels[grid] = pixels[grid] * (1 - _GRID) + 255 * _GRID
        panel = Image.fromarray(pixels.round().astype(np.uint8))
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
    """The image in grey, in RGB of `panel_size`, under the share of attention that each token gets,
    with the region's outline. Shares of `top` and above have the brightest colour."""
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


def spread(tokens: Tokens, image_wh: tuple[int, int]) -> NDArray[np.float64]:
    """Values of the tokens laid over the original: `(grid_h, grid_w)` -> `(H, W)`.

    NaN where no token shows the pixel. Tokens that show padding only do not appear.

        >>> spread(Tokens(np.array([[1, 2], [3, 4]]), Frame.centre_crop((4, 2))), (4, 2))
        array([[nan,  1.,  2., nan],
               [nan,  3.,  4., nan]])
    """
    frame, (height, width) = tokens.frame, tokens.values.shape
    sides = (frame.left * width, frame.top * height, frame.right * width, frame.bottom * height)
    values = Image.fromarray(tokens.values.astype(np.float32))
    laid = values.transform(image_wh, Image.Transform.EXTENT, sides, fillcolor=np.nan)
    return np.asarray(laid, dtype=np.float64)


def lines(tokens: Tokens, image_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """`(H, W)`: the pixels just after a border between two tokens."""
    numbers = np.arange(tokens.values.size).reshape(tokens.values.shape)
    shown = spread(Tokens(numbers, tokens.frame), image_wh)
    below = np.diff(shown, axis=0, prepend=shown[:1]) != 0
    right = np.diff(shown, axis=1, prepend=shown[:, :1]) != 0
    return np.asarray((below | right) & ~np.isnan(shown))
