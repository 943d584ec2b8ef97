"""Look where the model's states say that the question's objects are (FOCUS, VGA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import StateReader
from cof.errors import CofError
from cof.grounders.maps import (
    LAYERS,
    UNSURE,
    MapGrounder,
    Visible,
    image_id,
    scale_to_unit,
    select_layers,
)
from cof.options import fraction, indices, option
from cof.prompting.noun_phrases import object_words
from cof.types import Request

States = Literal["values", "keys"]

EXISTENCE = "Is there a {phrase} in the image?"
"""FOCUS's prompt about one object."""


@dataclass(frozen=True)
class Relevance(MapGrounder):
    """Object relevance from cached token similarity (FOCUS, arXiv 2506.21710, section 3.2).

    For each object that the question names, a forward pass over "Is there a ... in the image?"
    leaves the states of its words and of the image in the KV cache. The cosine similarity of each
    of its tokens with the image tokens is averaged over layers, and the maps of its tokens are
    multiplied, so that only what resembles all of them remains; maps are scaled to 0..1 before
    each step. Of several objects the highest value counts. The box: `heatmap.sliding_window`.

    Asks the engine for one forward pass for each object; nothing is decoded.

    Departures from FOCUS: objects are found by `object_words`, not by asking the model; layers
    are averaged (the paper's rollout multiplies the maps as matrices); and no crop is verified by
    asking the model whether the object is in it.

    It needs a model whose words and images share their states. In the embedded model, trained from
    scratch, words resemble the background more than any object, values and keys, in all layers: its
    boxes hit objects less often than random ones.
    """

    name: ClassVar[str] = "relevance"
    help: ClassVar[str] = (
        "where its states resemble the question's objects (FOCUS); one forward pass per object"
    )
    engine_calls: ClassVar[int] = 1
    grounder_layers: tuple[int, ...] | None = option(None, LAYERS, indices)
    states: States = option("values", "States to compare: values (FOCUS) or keys", get_args(States))
    min_confidence: float = option(0.0, UNSURE, fraction)

    def heat(
        self, reader: StateReader, requests: Sequence[Request], visible: Sequence[Visible]
    ) -> Iterator[NDArray[np.floating]]:
        phrases = [object_words(request.prompt) for request in requests]
        asked = [
            request.asking(EXISTENCE.format(phrase=phrase))
            for request, objects in zip(requests, phrases, strict=True)
            for phrase in objects
        ]
        named = [phrase for objects in phrases for phrase in objects]
        similarities = iter(reader.phrase_similarities(asked, named, self.states))
        for objects, shown in zip(phrases, visible, strict=True):
            maps = [self._combine(next(similarities), shown) for _ in objects]
            yield np.max(maps, axis=0)

    def _combine(self, similarity: NDArray[np.float32], visible: Visible) -> NDArray[np.float64]:
        """The map of one object: `(layers, T, *tokens)` -> `(*tokens,)`, 0..1."""
        default = range(round(self.depth * len(similarity)), len(similarity))
        chosen = select_layers(similarity, self.grounder_layers, default)
        cached = chosen[np.isfinite(chosen).all(axis=tuple(range(1, chosen.ndim)))]
        if not len(cached):
            raise CofError(
                "None of these layers has a KV cache of the image: name others in "
                "grounder_layers, or leave it out."
            )
        average = scale_to_unit(cached, visible).mean(0)
        return scale_to_unit(scale_to_unit(average, visible).prod(0), visible)


@dataclass(frozen=True)
class Logits(MapGrounder):
    """Visual semantic confidence (VGA, arXiv 2511.20032, section 3.1).

    The decoder's last states at the image tokens go through the language-model head: where an
    object is, its name is more probable. The map of each word is scaled to sum 1; the maps of an
    object's words are averaged, and of several objects the highest value counts. The box:
    `heatmap.sliding_window`.

    Asks the engine for one forward pass for each image, whatever the questions; nothing is
    decoded.

    Departures from VGA: objects are found by `object_words`, not by a parser; and
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

    def heat(
        self, reader: StateReader, requests: Sequence[Request], visible: Sequence[Visible]
    ) -> Iterator[NDArray[np.floating]]:
        phrases = [object_words(request.prompt) for request in requests]
        images = {image_id(request): request.image for request in requests}
        words: dict[int, list[str]] = {image: [] for image in images}
        for request, objects in zip(requests, phrases, strict=True):
            words[image_id(request)] += " ".join(objects).split()
        asked = [list(dict.fromkeys(each)) for each in words.values()]
        read = reader.word_probabilities(list(images.values()), asked)
        probabilities = {
            image: dict(zip(names, each, strict=True))
            for image, names, each in zip(images, asked, read, strict=True)
        }
        for request, objects, shown in zip(requests, phrases, visible, strict=True):
            shares = {
                word: map_ / max(float(map_[shown].sum()), 1e-30)
                for word, map_ in probabilities[image_id(request)].items()
            }
            maps = [np.mean([shares[word] for word in phrase.split()], 0) for phrase in objects]
            yield np.max(maps, axis=0)
