"""Look where the image tokens predict the question's objects (VGA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cof.engines.base import Engine
from cof.geometry.heatmap import make_heat_map
from cof.grounders.base import Grounder
from cof.grounders.maps import UNSURE, ground_heat_map, image_id, require_state_reader
from cof.options import fraction, option
from cof.prompting.noun_phrases import object_words
from cof.types import Grounding, Request


@dataclass(frozen=True)
class Logits(Grounder):
    """Visual semantic confidence (VGA, arXiv 2511.20032, section 3.1).

    The decoder's last states at the image tokens go through the language-model head: where an
    object is, its name is more probable. The map of each word is scaled to sum 1; the maps of an
    object's words are averaged, and of several objects the highest value counts. The box:
    `heatmap.sliding_window`.

    Asks the engine for one forward pass for each image, whatever the questions; nothing is
    decoded.

    Departures from VGA: objects are found by `noun_phrases.object_words`, not by a parser; and
    all words of an object are read and averaged, not the first token of its name alone, which
    would be the colour of a "red umbrella".

    It needs a model whose image tokens are near the words for what they show: on the embedded
    model, trained from scratch, its boxes are no better than random ones.
    """

    name: ClassVar[str] = "logits"
    help: ClassVar[str] = (
        "where image tokens predict the question's objects (VGA); one forward pass per image"
    )
    # it reads all states of the image, so no prefix cache helps: engine_calls stays 0
    min_confidence: float = option(0.0, UNSURE, fraction)

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        reader = require_state_reader(engine, "logits")
        phrases = [object_words(request.prompt) for request in requests]
        images = {image_id(request): request.image for request in requests}
        words: dict[int, dict[str, int]] = {image: {} for image in images}  # word -> its number
        for request, objects in zip(requests, phrases, strict=True):
            numbers = words[image_id(request)]
            for word in (word for phrase in objects for word in phrase.split()):
                numbers.setdefault(word, len(numbers))
        probabilities = dict(
            zip(
                images,
                reader.word_probabilities(list(images.values()), [list(w) for w in words.values()]),
                strict=True,
            )
        )
        groundings = []
        for request, objects in zip(requests, phrases, strict=True):
            image, image_wh = image_id(request), request.image.size
            centres = reader.token_centres(image_wh)
            visible = np.isfinite(centres.sum(-1))
            total = np.maximum(probabilities[image][:, visible].sum(1), 1e-30)
            shares = probabilities[image] / total.reshape(-1, *[1] * visible.ndim)
            maps = [
                shares[[words[image][word] for word in phrase.split()]].mean(0)
                for phrase in objects
            ]
            heat_map = make_heat_map(np.max(maps, axis=0), centres, image_wh)
            groundings.append(ground_heat_map(heat_map, image_wh, self.min_confidence))
        return groundings
