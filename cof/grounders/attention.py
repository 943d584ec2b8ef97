"""Look where the model's attention goes (ViCrop)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import StateReader
from cof.grounders.maps import LAYERS, UNSURE, MapGrounder, Visible, select_layers
from cof.options import fraction, indices, option
from cof.prompting.dialects import SHORT_ANSWER, first_line
from cof.types import Request, pil_image

GENERIC = "Write a general description of the image."
"""ViCrop's question without an object."""


@dataclass(frozen=True)
class RelativeAttention(MapGrounder):
    """Relative attention (ViCrop, arXiv 2502.17422, section 4).

    The attention from the answer's first token to each image token, averaged over heads, is
    divided by the same attention under a generic question. So tokens that attract attention
    whatever is asked (attention sinks, the middle of the image) do not count. The box:
    `heatmap.sliding_window`.

    Asks the engine for one forward pass for each question and one for each image (the generic
    question); nothing is decoded.

    Departures from ViCrop:

    - The mean of the generic attention is added to the divisor, because the ratio
      alone is largest where the generic question hardly reads a token. Of 70 questions about
      validation scenes, the box's centre lay in the object for 0.91 and 0.83 on the two embedded
      models, and for 0.64 and 0.74 with the ratio alone.
    - Windows are smaller: the model looks at them, they are not cropped. What else differs in the
      search for the box: `heatmap.sliding_window`.
    - Questions are asked in the model's chat, and LLaVA-1.5 sees the whole image, not its centre.
      Images of more than 1,024 pixels are not split (its `rel_att_high`).
    - In models whose queries read the image (Q-Former, Kosmos-2) the cross-attention of these
      queries is used alone, not multiplied with the decoder's attention to them. In BLIP-2 and
      Kosmos-2 the queries do not read the question, so nothing is found.
    """

    name: ClassVar[str] = "attention"
    help: ClassVar[str] = (
        "where the model's attention goes (ViCrop); one forward pass per question and per image"
    )
    engine_calls: ClassVar[int] = 2
    grounder_layers: tuple[int, ...] | None = option(None, LAYERS, indices)
    min_confidence: float = option(0.0, UNSURE, fraction)

    def heat(
        self, reader: StateReader, requests: Sequence[Request], visible: Sequence[Visible]
    ) -> Iterator[NDArray[np.floating]]:
        asked = [r.asking(first_line(r.prompt) + SHORT_ANSWER) for r in requests]
        generic = {
            _chat_id(request): request.asking(GENERIC + SHORT_ANSWER) for request in requests
        }
        attentions = reader.image_attentions([*asked, *generic.values()])
        maps = [self._average(attention) for attention in attentions]
        generic_maps = dict(zip(generic, maps[len(asked) :], strict=True))
        for request, ours, shown in zip(requests, maps, visible, strict=False):
            theirs = generic_maps[_chat_id(request)]
            if np.allclose(ours, theirs, rtol=1e-3):  # the question makes no difference
                yield np.ones_like(ours)
                continue
            divisor = theirs + float(theirs[shown].mean())
            yield ours / np.maximum(divisor, 1e-12)

    def _average(self, attention: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(layers, heads, *tokens)` -> `(*tokens,)`."""
        default = [min(round(self.depth * len(attention)), len(attention) - 1)]
        return np.asarray(select_layers(attention, self.grounder_layers, default).mean((0, 1)))


def _chat_id(request: Request) -> tuple[object, ...]:
    """The same value for all requests that differ in their last text alone."""
    return (id(pil_image(request.image)), request.chat, *map(id, request.others))
