"""Look where the model's attention goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import Engine
from cof.geometry.heatmap import heat_map
from cof.grounders.maps import chosen_layers, grounding, image_id, state_reader
from cof.prompting.dialects import SHORT_ANSWER, first_line
from cof.types import Grounding, Request

GENERIC = "Write a general description of the image."
"""ViCrop's question without an object."""


@dataclass(frozen=True)
class AttentionGrounder:
    """Relative attention (ViCrop, arXiv 2502.17422, section 4).

    The attention that the answer's first token pays to each image token, averaged over heads, is
    divided by the same under a generic question, so that what attracts attention whatever is asked
    (sinks, the picture's middle) falls out. One pass for each question and one for each picture's
    generic question, nothing is decoded. The box: `heatmap.sliding_window`.

    Departures: the mean of the generic attention is added to the divisor (`smoothing`), because a
    ratio alone is largest where the generic question leaves a token all but unread (of 70 questions
    about validation scenes, the box's centre lay in the object for 0.91 and 0.83 of them on the two
    embedded models, against 0.64 and 0.74 with the ratio alone); windows are
    smaller, since they are to be looked at, not cropped; and where the image is asked by queries
    (Q-Former, Kosmos-2) it is their cross-attention alone, not multiplied with the decoder's
    attention to them, so that BLIP-2 and Kosmos-2, whose queries do not read the question, find
    nothing.

    Attributes:
        grounder_layers: whose attention is averaged; None: the one at `depth`.
        depth: of the default layer, as a share of all: ViCrop's layer 14 of LLaVA-1.5-7B's 32.
        smoothing: how many times the mean generic attention is added to the divisor; 0: the
            paper's ratio.
        min_confidence: boxes that hold less of the map's heat count as not found.
    """

    help: ClassVar[str] = "where its attention goes (ViCrop)"
    engine_calls: ClassVar[int] = 2
    reads_states: ClassVar[bool] = True
    grounder_layers: tuple[int, ...] | None = None
    depth: float = 14 / 32
    smoothing: float = 1.0
    min_confidence: float = 0.0

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        reader = state_reader(engine, "attention")
        asked = [
            Request(request.image, first_line(request.prompt) + SHORT_ANSWER)
            for request in requests
        ]
        generic = {
            image_id(request): Request(request.image, GENERIC + SHORT_ANSWER)
            for request in requests
        }
        weights = reader.image_attentions([*asked, *generic.values()])
        maps = [self._averaged(of) for of in weights]
        without = dict(zip(generic, maps[len(asked) :], strict=True))
        return [
            self._grounding(reader.token_centres(request.image.size), request, map_, without)
            for request, map_ in zip(requests, maps, strict=False)
        ]

    def _grounding(
        self,
        centres: NDArray[np.float64],
        request: Request,
        attention: NDArray[np.float32],
        without: dict[int, NDArray[np.float32]],
    ) -> Grounding:
        generic = without[image_id(request)]
        if np.allclose(attention, generic, rtol=1e-3):
            return Grounding(
                None, reason="The model's attention to the image is the same for any question."
            )
        seen = np.isfinite(centres.sum(-1))
        divisor = generic + self.smoothing * float(generic[seen].mean())
        relative = attention / np.maximum(divisor, 1e-12)
        heat = heat_map(relative, centres, request.image.size)
        return grounding(heat, request.image.size, self.min_confidence)

    def _averaged(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(layers, heads, *tokens)` -> `(*tokens,)`."""
        layers = len(weights)
        default = [min(round(self.depth * layers), layers - 1)]
        return np.asarray(
            weights[chosen_layers(self.grounder_layers, default, layers)].mean((0, 1))
        )
