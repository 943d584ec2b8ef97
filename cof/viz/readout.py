"""What an engine tells about one answer: the tokens highlighted, the attention before and after."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import AttentionReader, Engine
from cof.errors import CofError, CofWarning
from cof.geometry.boxes import Frame
from cof.prompting.box_parsing import native_wh
from cof.query import focus_request
from cof.types import Highlight, Request
from cof.viz.panels import Tokens

if TYPE_CHECKING:
    from cof.pipeline import Answer


@dataclass(frozen=True, eq=False)
class Readout:
    """How a model looked at an image.

    Attributes:
        looks: whose attention it is.
        before: `(grid_h, grid_w)`, the share of its attention each token gets in the plain model,
            on average over the layers and heads chosen.
        after: the same with the highlight; None: there was none.
        highlighted: `(grid_h, grid_w)`, which tokens the highlight fell on; None likewise.
        averaged: how many `(layers, heads)` the average is over.
    """

    looks: str
    before: Tokens
    after: Tokens | None
    highlighted: Tokens | None
    averaged: tuple[int, int]

    def inside(self, attention: Tokens) -> float:
        """The share of all attention that goes to the highlighted tokens, 0..1."""
        if self.highlighted is None:
            return 0.0
        return float(attention.values[self.highlighted.values.astype(bool)].sum())


def read(
    engine: Engine,
    answer: Answer,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Readout | None:
    """Two forward passes: the prompt without the highlight, and with it.

    Args:
        engine: that answered.
        answer: its answer.
        layers, heads: which to average over; None: all.

    Returns:
        None for an engine that cannot tell, or a model whose image tokens are no single raster.

    Raises:
        CofError: a layer or head the model does not have.
    """
    if not isinstance(engine, AttentionReader):
        return None
    plain = Request(engine.encode([answer.image])[0], answer.question)
    # what there is to warn of was said when the question was answered
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CofWarning)
        before = engine.image_attention(plain)
        if before.ndim != 4:
            return None
        light = _highlight(plain, answer)
        after = None if light is None else engine.image_attention(replace(plain, highlight=light))
        mask = None if light is None else engine.token_mask(answer.image.size, light)
    chosen = np.ix_(
        _chosen("layers", layers, before.shape[0]), _chosen("heads", heads, before.shape[1])
    )
    native = engine.frame(answer.image.size)
    width, height = native_wh(native, engine.dialect.units)
    frame = Frame(
        native.left / width, native.top / height, native.right / width, native.bottom / height
    )

    def tokens(weights: NDArray[np.float32]) -> Tokens:
        return Tokens(weights[chosen].mean((0, 1)), frame)

    return Readout(
        looks=engine.looks,
        before=tokens(before),
        after=None if after is None else tokens(after),
        highlighted=None if mask is None else Tokens(mask, frame),
        averaged=(chosen[0].size, chosen[1].size),
    )


def _highlight(plain: Request, answer: Answer) -> Highlight | None:
    """What the pipeline had the engine highlight."""
    if answer.region is None:
        return None
    return focus_request(plain, answer.region, answer.settings).highlight


def _chosen(what: str, numbers: Sequence[int] | None, available: int) -> list[int]:
    if numbers is None:
        return list(range(available))
    if not numbers or not all(0 <= number < available for number in numbers):
        raise CofError(
            f"The picture's {what} must be numbers from 0 to {available - 1}: this model has no "
            f"others, and {list(numbers)} was asked for."
        )
    return list(numbers)
