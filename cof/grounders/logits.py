"""Look where the image tokens say what the question names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cof.engines.base import Engine
from cof.geometry.heatmap import heat_map
from cof.grounders.maps import grounding, image_id, state_reader
from cof.prompting.noun_phrases import object_words
from cof.types import Grounding, Request


@dataclass(frozen=True)
class LogitsGrounder:
    """Visual semantic confidence (VGA, arXiv 2511.20032, section 3.1).

    The decoder's last states at the image tokens go through the head that chooses words: where an
    object is, its name is more probable. The map of each word is scaled to sum 1; those of an
    object's words are averaged, and of several objects the highest value counts. One pass for
    each picture, whatever is asked about it, nothing is decoded. The box:
    `heatmap.sliding_window`.

    Departures: objects are found by `noun_phrases.object_words`, not by a parser; all words of an
    object are read, not the first token of its name alone, which would be the colour of a "red
    umbrella"; and of several words the mean is taken.

    It needs a model whose image tokens are near the words for what they show: on the embedded one,
    trained from scratch, its boxes are no better than random ones.

    Attributes:
        min_confidence: boxes that hold less of the map's heat count as not found.
    """

    help: ClassVar[str] = "where image tokens predict the question's objects (VGA)"
    engine_calls: ClassVar[int] = 0  # a cached prefix is of no use: all its states are read
    reads_states: ClassVar[bool] = True
    min_confidence: float = 0.0

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        reader = state_reader(engine, "logits")
        phrases = [object_words(request.prompt) for request in requests]
        images = {image_id(request): request.image for request in requests}
        words: dict[int, dict[str, int]] = {picture: {} for picture in images}
        for request, of in zip(requests, phrases, strict=True):
            known = words[image_id(request)]
            for word in (word for phrase in of for word in phrase.split()):
                known.setdefault(word, len(known))
        maps = dict(
            zip(
                images,
                reader.word_probabilities(list(images.values()), [list(w) for w in words.values()]),
                strict=True,
            )
        )
        groundings = []
        for request, of in zip(requests, phrases, strict=True):
            picture, image_wh = image_id(request), request.image.size
            centres = reader.token_centres(image_wh)
            seen = np.isfinite(centres.sum(-1))
            shares = maps[picture] / np.maximum(maps[picture][:, seen].sum(1), 1e-30).reshape(
                -1, *[1] * seen.ndim
            )
            objects = [
                shares[[words[picture][word] for word in phrase.split()]].mean(0) for phrase in of
            ]
            heat = heat_map(np.max(objects, axis=0), centres, image_wh)
            groundings.append(grounding(heat, image_wh, self.min_confidence))
        return groundings
