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
from cof.types import EncodedImage, Highlight, Request
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
    image: EncodedImage | None = None,
    known: Readout | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Readout | None:
    """Two forward passes: the prompt without the highlight, and with it.

    Args:
        engine: that answered.
        answer: its answer.
        image: the answer's image as the engine has encoded it; None: it is encoded here.
        known: a readout of the same question, image, layers and heads, which spares the pass
            without the highlight.
        layers, heads: which to average over; None: all.

    Returns:
        None for an engine that cannot tell, or a model whose image tokens are no single raster.

    Raises:
        CofError: a layer or head the model does not have.
    """
    if not isinstance(engine, AttentionReader):
        return None
    plain = Request(image or engine.encode([answer.image])[0], answer.question)
    # what there is to warn of was said when the question was answered
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CofWarning)
        readout = known or _read_plain(engine, plain, layers, heads)
        highlight = _highlight(plain, answer)
        if readout is None or highlight is None:
            return readout and replace(readout, after=None, highlighted=None)
        after = engine.image_attention(replace(plain, highlight=highlight))
        mask = engine.token_mask(answer.image.size, highlight)
    frame = readout.before.frame
    return replace(
        readout,
        after=Tokens(after[_chosen(after, layers, heads)].mean((0, 1)), frame),
        highlighted=Tokens(mask, frame),
    )


def _read_plain(
    engine: AttentionReader,
    plain: Request,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> Readout | None:
    """The attention of the plain model; None where the image tokens are no single raster."""
    before = engine.image_attention(plain)
    if before.ndim != 4:
        return None
    assert isinstance(engine, Engine)
    image_wh = plain.pil_image.size
    native = engine.frame(image_wh)
    width, height = native_wh(native, engine.dialect.units)
    frame = Frame(
        native.left / width, native.top / height, native.right / width, native.bottom / height
    )
    chosen = _chosen(before, layers, heads)
    return Readout(
        looks=engine.attention_source,
        before=Tokens(before[chosen].mean((0, 1)), frame),
        after=None,
        highlighted=None,
        averaged=(chosen[0].size, chosen[1].size),
    )


def _highlight(plain: Request, answer: Answer) -> Highlight | None:
    """What the pipeline had the engine highlight."""
    if answer.region is None:
        return None
    return answer.settings.focus.apply(plain, answer.region).highlight


def _chosen(
    weights: NDArray[np.float32], layers: Sequence[int] | None, heads: Sequence[int] | None
) -> tuple[NDArray[np.intp], ...]:
    """An index for the chosen layers and heads of `(layers, heads, *tokens)`."""
    return np.ix_(
        _checked("layers", layers, weights.shape[0]), _checked("heads", heads, weights.shape[1])
    )


def _checked(what: str, numbers: Sequence[int] | None, available: int) -> list[int]:
    if numbers is None:
        return list(range(available))
    if not numbers or not all(0 <= number < available for number in numbers):
        raise CofError(
            f"The picture's {what} must be numbers from 0 to {available - 1}: this model has no "
            f"others, and {list(numbers)} was asked for."
        )
    return list(numbers)
