"""Look where the image tokens predict the question's objects (VGA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import StateReader
from cof.grounders.maps import UNSURE, MapGrounder, Visible, image_id
from cof.options import fraction, option
from cof.prompting.noun_phrases import object_words
from cof.types import Request


@dataclass(frozen=True)
class Logits(MapGrounder):
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
