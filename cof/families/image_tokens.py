"""The image tokens of a model: what it is shown of an image, and which token shows what."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cof.errors import CofWarning
from cof.families import Family
from cof.families.processors import image_options
from cof.families.table import LARGE
from cof.families.token_coverage import TokenVisibility, corner_cells, image_token_mask
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region
from cof.prompting.dialects import SCALE, Dialect
from cof.types import Highlight

MAX_SIDE = 8192
"""The longer side of a larger image is reduced to this: models see far less, and a 20000x20 image
padded to a square would take gigabytes."""


class ImageTokens:
    """The image tokens of one model.

    Their layout is `(grid_h, grid_w)`, or `(tokens,)` for families whose tokens are no single
    raster. Boxes and places are in 0..1 of the original image.
    """

    def __init__(self, family: Family, dialect: Dialect, config: Any, processor: Any) -> None:
        """
        Args:
            family, dialect: what is known of the model.
            config: the model's.
            processor: the model's, with a PIL image processor.
        """
        self.family = family
        self.dialect = dialect
        self.config = config
        self.processor = processor
        self._visibility = lru_cache(64)(
            lambda wh, _: TokenVisibility(self.token_means, wh, self._stand_in(wh))
        )

    @property
    def setting(self) -> str:
        """What the image processor is set to: with another setting, tokens show something else."""
        images = self.processor.image_processor
        return repr((type(images), vars(images)))

    def visibility(self, image_wh: tuple[int, int]) -> TokenVisibility:
        """What the tokens of images of this size show, `MAX_SIDE` being kept to."""
        return self._visibility(processed_wh(image_wh), self.setting)

    def _stand_in(self, image_wh: tuple[int, int]) -> tuple[int, int]:
        """A smaller size that serves as well, so that a large photo is processed only once."""
        if self.family.stand_in is None or min(image_wh) <= LARGE:
            return image_wh
        wh = self.family.stand_in(image_wh, self.processor.image_processor)
        return wh if max(wh) < max(image_wh) else image_wh

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        """Where an original of this size lies in the native coordinates of the model's boxes."""
        if self.family.frame is None:
            return Frame.of_image(SCALE[self.dialect.units])
        return self.family.frame(processed_wh(image_wh), self.processor.image_processor)

    def layout(self, image_wh: tuple[int, int]) -> tuple[int, ...]:
        """The shape in which the tokens of an image of this size are laid out."""
        return self.visibility(image_wh).span.shape

    def mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        """The paper's M for an image of this size: which image tokens get the bias.

        Warns:
            CofWarning: no token shows any part of the region.
        """
        visibility = self.visibility(image_wh)
        if highlight.region.whole:
            return np.ones(visibility.span.shape, dtype=bool)
        corners = highlight.cells == "corners" and self.dialect.units == "unit"
        if corners and visibility.span.ndim == 2:
            mask = corner_cells(highlight.region.boxes, self.frame(image_wh), visibility.span.shape)
        else:
            mask = image_token_mask(visibility.coverage(highlight.region))
        if not mask.any():
            warnings.warn(
                "The region is too small for the model, or outside what it sees (its processor "
                "crops the centre; pad_to_square=True shows it all), so nothing is highlighted.",
                CofWarning,
                stacklevel=3,
            )
        return mask

    def weights(self, image_wh: tuple[int, int], region: Region) -> NDArray[np.float64]:
        """The weight of each image token in a region, 0..1: the region's heat where it has a heat
        map, else the share of the token's pixels that lie inside."""
        visibility = self.visibility(image_wh)
        if region.whole:
            return np.ones(visibility.span.shape)
        if region.heat_map is not None:
            region = Region(boxes=region.boxes, mask=region.heat_map)
        return np.nan_to_num(visibility.coverage(region))

    def bias(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.float64]:
        """What a highlight adds to each image token's attention scores, in the layout."""
        if highlight.graded:
            weights = self.weights(image_wh, highlight.region)
            return np.asarray(np.log1p(weights * (highlight.strength - 1)))
        return np.asarray(self.mask(image_wh, highlight) * np.log(highlight.strength))

    @cached_property
    def _options(self) -> Mapping[str, Any]:
        return image_options(self.processor)  # which checks them all anew

    def pixels(self, image: Image.Image, **options: Any) -> Mapping[str, Any]:
        """The processor's output for an image; `options` are those of the processor's call."""
        wh = processed_wh(image.size)
        if image.size != wh:
            image = image.resize(wh, Image.Resampling.LANCZOS)
        options = {**self._options, **options}
        pixels: Mapping[str, Any] = self.processor.image_processor(
            images=image, return_tensors="np", **options
        )
        return pixels

    def token_means(self, image: Image.Image) -> NDArray[np.float64]:
        """The mean of each token's pixels, in the layout.

        In the processor's raw units: only shares of a range matter, and scaling every pixel would
        be half of the work.
        """
        raw = self.pixels(image, do_rescale=False, do_normalize=False)
        return self.family.token_means(raw, self.config)


class TokenReader:
    """What an engine says of its model's image tokens (`cof.engines.base`)."""

    tokens: ImageTokens

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        """Where an original of this size lies in the native coordinates of the model's boxes.

        If these are fractions (LLaVA-1.5), it is also the frame of the token grid."""
        return self.tokens.frame(image_wh)

    def token_mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        """See `AttentionReader`: the paper's M."""
        return self.tokens.mask(image_wh, highlight)

    def token_centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        """See `AttentionReader`."""
        return self.tokens.visibility(image_wh).centres


def processed_wh(image_wh: tuple[int, int]) -> tuple[int, int]:
    """The size at which an image is processed: its own, or with `MAX_SIDE` as its longer side.

    >>> processed_wh((640, 480)), processed_wh((20000, 20))
    ((640, 480), (8192, 8))
    """
    longest = max(image_wh)
    if longest <= MAX_SIDE:
        return image_wh
    width, height = (max(1, round(side * MAX_SIDE / longest)) for side in image_wh)
    return (width, height)
