"""What is drawn of an answer, and what an engine tells about it: the tokens highlighted, the
attention before and after."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from cof.engines.base import AttentionReader, Engine
from cof.errors import CofWarning
from cof.geometry.boxes import Frame
from cof.prompting.dialects import native_wh
from cof.types import EncodedImage, Request
from cof.viz.panels import Tokens

Drawable: TypeAlias = Any
"""A `cof.Answer`. It draws itself by these files, which therefore cannot import it."""


@dataclass(frozen=True, eq=False)
class Readout:
    """How a model looked at an image.

    Attributes:
        looks: whose attention it is.
        before: `(grid_h, grid_w)`, the share of its attention each token gets in the plain model,
            on average over layers and heads.
        after: the same with the highlight; None: there was none.
        highlighted: `(grid_h, grid_w)`, which tokens the highlight fell on; None likewise.
    """

    looks: str
    before: Tokens
    after: Tokens | None
    highlighted: Tokens | None

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
        engine: that answered.
        answer: its answer.
        image: the answer's image as the engine has encoded it; None: it is encoded here.
        known: a readout of the same question and image, which spares the pass without the
            highlight.

    Returns:
        None without an engine, for one that cannot tell, and for a model whose image tokens are no
        single raster.
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
            wh = native_wh(native, engine.dialect.units)
            sides = (native.left, native.top, native.right, native.bottom)
            frame = Frame(*(side / whole for side, whole in zip(sides, wh * 2, strict=True)))
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
