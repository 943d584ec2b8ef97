"""What an engine tells about one answer: the tokens highlighted, the attention before and after."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from cof.engines.base import AttentionReader, Engine
from cof.errors import CofWarning
from cof.geometry.boxes import Frame
from cof.prompting.box_parsing import native_wh
from cof.types import EncodedImage, Request
from cof.viz.drawable import Drawable
from cof.viz.panels import Tokens


@dataclass(frozen=True, eq=False)
class Readout:
    """How a model looked at an image.

    Attributes:
        looks: whose attention it is.
        before: `(grid_h, grid_w)`, the share of its attention each token gets in the plain model,
            on average over layers and heads.
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
    answer: Drawable,
    *,
    image: EncodedImage | None = None,
    known: Readout | None = None,
) -> Readout | None:
    """Two forward passes: the prompt without the highlight, and with it.

    Args:
        engine: that answered.
        answer: its answer.
        image: the answer's image as the engine has encoded it; None: it is encoded here.
        known: a readout of the same question and image, which spares the pass without the
            highlight.

    Returns:
        None for an engine that cannot tell, or a model whose image tokens are no single raster.
    """
    if not isinstance(engine, AttentionReader):
        return None
    plain = Request(image or engine.encode([answer.image])[0], answer.question)
    # what there is to warn of was said when the question was answered
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CofWarning)
        readout = known or _read_plain(engine, plain)
        highlight = None
        if answer.region is not None:  # what the pipeline had the engine highlight
            highlight = answer.settings.focus.apply(plain, answer.region).highlight
        if readout is None or highlight is None:
            return readout and replace(readout, after=None, highlighted=None)
        after = engine.image_attention(replace(plain, highlight=highlight))
        mask = engine.token_mask(answer.image.size, highlight)
    frame = readout.before.frame
    return replace(
        readout,
        after=Tokens(after.mean((0, 1)), frame),
        highlighted=Tokens(mask, frame),
    )


def _read_plain(engine: AttentionReader, plain: Request) -> Readout | None:
    """The attention of the plain model; None where the image tokens are no single raster."""
    before = engine.image_attention(plain)
    if before.ndim != 4:
        return None
    assert isinstance(engine, Engine)
    native = engine.frame(plain.pil_image.size)
    width, height = native_wh(native, engine.dialect.units)
    frame = Frame(
        native.left / width, native.top / height, native.right / width, native.bottom / height
    )
    tokens = Tokens(before.mean((0, 1)), frame)
    return Readout(engine.attention_source, tokens, None, None, before.shape[:2])
