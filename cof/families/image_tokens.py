"""Images on their way into a model: what it is shown of them, and which tokens show what."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cof.errors import CofWarning
from cof.families import Family
from cof.families.processors import image_options
from cof.families.token_coverage import (
    TokenVisibility,
    corner_cells,
    extent,
    image_token_mask,
    token_centres,
    token_coverage,
)
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region
from cof.prompting.dialects import Dialect
from cof.types import Highlight

LONGEST = 8192
"""Images with a longer side are reduced to it first: models see far less, and padding a
20000x20 picture to a square as it is would take gigabytes."""


class ImageTokens:
    """The image tokens of one model; layouts are `(grid_h, grid_w)`, or `(tokens,)` for families
    whose tokens are no single raster."""

    def __init__(self, family: Family, dialect: Dialect, config: Any, processor: Any) -> None:
        """
        Args:
            family, dialect: what is known of the model.
            config: its own.
            processor: its own, with a PIL image processor.
        """
        self.family = family
        self.dialect = dialect
        self.config = config
        self.processor = processor
        self.extent = lru_cache(maxsize=64)(self._measure)
        self._centres = lru_cache(maxsize=64)(self._look)
        self._options: Mapping[str, Any] = image_options(processor)

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        """Where an original of this size lies in the native coordinates of the model's boxes."""
        return self.family.frame(reduced(image_wh), self.processor.image_processor)

    def layout(self, image_wh: tuple[int, int]) -> tuple[int, ...]:
        """The shape in which the tokens of an image of this size are laid out."""
        return self.extent(reduced(image_wh)).span.shape

    def mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        """The paper's M for an image of this size: which image tokens get the bias."""
        wh = reduced(image_wh)
        shown = self.extent(wh)
        if highlight.region.whole:
            return np.ones(shown.span.shape, dtype=bool)
        corners = highlight.cells == "corners" and self.dialect.units == "unit"
        if corners and shown.span.ndim == 2:
            mask = corner_cells(highlight.region.boxes, self.frame(wh), shown.span.shape)
        else:
            mask = image_token_mask(token_coverage(self.brightness, shown, highlight.region))
        if not mask.any():
            warnings.warn(
                "The region lies outside the part of the image that the model sees (its processor "
                "crops the centre), so nothing is highlighted; pad_to_square=True shows it all.",
                CofWarning,
                stacklevel=3,
            )
        return mask

    def weights(self, image_wh: tuple[int, int], region: Region) -> NDArray[np.float64]:
        """How much each image token is meant, 0..1: a region's heat where it has one, else the
        share of what the token shows that is inside."""
        shown = self.extent(reduced(image_wh))
        if region.whole:
            return np.ones(shown.span.shape)
        if region.heat_map is not None:
            region = Region(boxes=region.boxes, mask=region.heat_map)
        return np.nan_to_num(token_coverage(self.brightness, shown, region))

    def centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        """Where each image token looks, `(*layout, 2)`: x, y in 0..1; NaN for padding."""
        return self._centres(reduced(image_wh))

    def added(self, image_wh: tuple[int, int], light: Highlight) -> NDArray[np.float64]:
        """What each image token's attention score gets."""
        if light.graded:
            weights = self.weights(image_wh, light.region)
            return np.asarray(np.log1p(weights * (light.strength - 1)))
        return np.asarray(self.mask(image_wh, light) * np.log(light.strength))

    def pixels(self, image: Image.Image, **options: Any) -> Mapping[str, Any]:
        """What the processor makes of an image; `options` are those of the processor's call."""
        wh = reduced(image.size)
        picture = image if image.size == wh else image.resize(wh, Image.Resampling.LANCZOS)
        pixels: Mapping[str, Any] = self.processor.image_processor(
            images=picture, return_tensors="np", **self._options, **options
        )
        return pixels

    def brightness(self, image: Image.Image) -> NDArray[np.float64]:
        """The mean brightness of each token, in the layout; in the processor's raw units, since
        only shares of a range matter and scaling every pixel is half of the work."""
        raw = self.pixels(image, do_rescale=False, do_normalize=False)
        return self.family.brightness(raw, self.config)

    def _measure(self, image_wh: tuple[int, int]) -> TokenVisibility:
        return extent(self.brightness, image_wh)

    def _look(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        return token_centres(self.brightness, self.extent(image_wh))


def reduced(image_wh: tuple[int, int]) -> tuple[int, int]:
    """The size an image is processed at: its own, or with `LONGEST` as its longer side.

    >>> reduced((640, 480)), reduced((20000, 20))
    ((640, 480), (8192, 8))
    """
    longest = max(image_wh)
    if longest <= LONGEST:
        return image_wh
    width, height = (max(1, round(side * LONGEST / longest)) for side in image_wh)
    return (width, height)
