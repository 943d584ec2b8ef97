"""Look where the image's cached states resemble those of the question's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.heatmap import heat_map
from cof.grounders.maps import chosen_layers, grounding, scaled, state_reader
from cof.prompting.noun_phrases import object_words
from cof.types import Grounding, Request

EXISTENCE = "Is there a {phrase} in the image?"
"""FOCUS's prompt about one object."""


@dataclass(frozen=True)
class RelevanceGrounder:
    """Object relevance from cached token similarity (FOCUS, arXiv 2506.21710, section 3.2).

    For each object that the question names, one pass over "Is there a ... in the image?" leaves
    its words and the image in the key-value cache. The cosine similarity of each of its tokens
    with the image tokens is averaged over layers, and the maps of its tokens are multiplied, so
    that only what resembles all of them stays; maps are scaled to 0..1 before each step. Of
    several objects the highest value counts. The box: `heatmap.sliding_window`.

    Departures: objects are found by `object_words`, not by asking the model; layers are
    averaged (the paper's rollout multiplies the maps as matrices); and no crop is verified by
    asking the model whether the object is in it.

    It needs a model whose words and pictures share their states: on the embedded one, trained from
    scratch, its boxes are no better than random ones.

    Attributes:
        grounder_layers: whose states are read; None: all from `depth` on.
        depth: where the default layers begin, as a share of all: the paper's layer 14 of
            LLaVA-1.5-7B's 32.
        states: `values` (the paper) or `keys`.
        min_confidence: boxes that hold less of the map's heat count as not found.
    """

    help: ClassVar[str] = "where its states resemble the question's objects (FOCUS)"
    engine_calls: ClassVar[int] = 1
    reads_states: ClassVar[bool] = True
    grounder_layers: tuple[int, ...] | None = None
    depth: float = 14 / 32
    states: Literal["values", "keys"] = "values"
    min_confidence: float = 0.0

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        reader = state_reader(engine, "relevance")
        phrases = [object_words(request.prompt) for request in requests]
        asked = [
            (Request(request.image, EXISTENCE.format(phrase=phrase)), phrase)
            for request, of in zip(requests, phrases, strict=True)
            for phrase in of
        ]
        maps = iter(
            reader.phrase_similarities(
                [request for request, _ in asked], [phrase for _, phrase in asked], self.states
            )
        )
        groundings = []
        for request, of in zip(requests, phrases, strict=True):
            image_wh = request.image.size
            centres = reader.token_centres(image_wh)
            seen = np.isfinite(centres.sum(-1))
            relevance = np.max([self._consensus(next(maps), seen) for _ in of], axis=0)
            heat = heat_map(relevance, centres, image_wh)
            groundings.append(grounding(heat, image_wh, self.min_confidence))
        return groundings

    def _consensus(
        self, similarity: NDArray[np.float32], seen: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """`(layers, T, *tokens)` -> `(*tokens,)`, 0..1."""
        layers = len(similarity)
        default = range(round(self.depth * layers), layers)
        chosen = similarity[chosen_layers(self.grounder_layers, default, layers)]
        kept = chosen[np.isfinite(chosen).all(axis=tuple(range(1, chosen.ndim)))]
        if not len(kept):
            raise CofError(
                "None of these layers keeps keys and values of the image: name others in "
                "grounder_layers, or leave it out."
            )
        averaged = scaled(kept, seen).mean(0)
        return scaled(scaled(averaged, seen).prod(0), seen)
