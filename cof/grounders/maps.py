"""Look where a heat map of the model's states is highest: ViCrop, FOCUS, VGA."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import AttentionReader, Engine, StateReader
from cof.errors import CofError
from cof.geometry.heatmap import HeatMap, make_heat_map, sliding_window
from cof.geometry.regions import Region
from cof.grounders.base import Grounder
from cof.options import fraction, indices, option
from cof.prompting.dialects import SHORT_ANSWER, first_line
from cof.prompting.noun_phrases import object_words
from cof.types import Grounding, Request, pil_image

LAYERS = "Decoder layers to read, such as 12-16; default: the method's own"
HEADS = "Attention heads to read, numbered through all layers, in place of whole layers"
AVERAGE = "Mean over heads: arithmetic, or geometric (hot only where all of them look)"
UNSURE = "A box that holds a smaller part of the map (0..1) counts as not found"

Visible = NDArray[np.bool_]
"""`(*tokens,)`: which image tokens show a part of the image, and not padding alone."""

Maps = Iterator[NDArray[np.floating]]
"""For each request the heat of the image tokens, `(*tokens,)`."""

Average = Literal["arithmetic", "geometric"]
States = Literal["values", "keys"]

GENERIC = "Write a general description of the image."
"""ViCrop's question without an object."""

EXISTENCE = "Is there a {phrase} in the image?"
"""FOCUS's prompt about one object."""


class MapGrounder(Grounder):
    """Looks where a heat map of the image is highest (`heatmap.sliding_window`).

    Attributes:
        reads: what it needs of the engine.
        depth: where the default layers begin, as a share of all layers: ViCrop and FOCUS begin at
            layer 14 of LLaVA-1.5-7B's 32.
        min_confidence: the least part of the map's sum in the box, 0..1, that counts as found.
    """

    depth: ClassVar[float] = 14 / 32
    reads: ClassVar[type] = StateReader
    min_confidence: float

    @abstractmethod
    def heat(self, reader: Any, requests: list[Request], visible: list[Visible]) -> Maps:
        """The heat for each request; where only padding is `visible`, it does not count."""

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        """
        Raises:
            CofError: the engine does not tell its model's states.
        """
        if not isinstance(engine, AttentionReader) or not isinstance(engine, self.reads):
            raise CofError(
                f"grounder {self.name!r} reads the model's states, which the engine "
                f"{engine.name!r} does not offer; use grounder 'prompt'."
            )
        sizes = [request.image.size for request in requests]
        centres = [engine.token_centres(size) for size in sizes]
        visible = [np.isfinite(each.sum(-1)) for each in centres]
        heat = self.heat(engine, list(requests), visible)
        return [
            ground_heat_map(make_heat_map(values, places, size), size, self.min_confidence)
            for values, places, size in zip(heat, centres, sizes, strict=True)
        ]


@dataclass(frozen=True)
class RelativeAttention(MapGrounder):
    """Relative attention (ViCrop, arXiv 2502.17422, section 4).

    The attention from the answer's first token to each image token is divided by the same
    attention under a generic question, and the heads' relative maps are multiplied. So tokens that
    attract attention whatever is asked (attention sinks, the middle of the image) do not count.
    The box: `heatmap.sliding_window`.

    Asks the engine for one forward pass for each question and one for each image (the generic
    question); nothing is decoded.

    Departures from ViCrop:

    - The mean of the generic attention is added to the divisor, because the ratio
      alone is largest where the generic question hardly reads a token. Of 70 questions about
      validation scenes, the box's centre lay in the object for 0.91 and 0.83 on the two embedded
      models, and for 0.64 and 0.74 with the ratio alone.
    - ViCrop averages the attention over heads before it divides (`average="arithmetic"`). The
      product looked at the object more often, for 0.84 of 10,263 fresh questions and not 0.82.
    - `grounder_heads` may be read in place of layers (localization heads, arXiv 2503.06287).
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
    reads: ClassVar[type] = AttentionReader
    grounder_layers: tuple[int, ...] | None = option(None, LAYERS, indices)
    min_confidence: float = option(0.0, UNSURE, fraction)
    grounder_heads: tuple[int, ...] | None = option(None, HEADS, indices)
    average: Average = option("geometric", AVERAGE, get_args(Average))

    def heat(
        self, reader: AttentionReader, requests: list[Request], visible: list[Visible]
    ) -> Maps:
        asked = [ask_shortly(request) for request in requests]
        generic = {_chat_id(r): r.asking(GENERIC + SHORT_ANSWER) for r in requests}
        attentions = reader.image_attentions([*asked, *generic.values()], self._layers)
        maps = [self._choose(attention) for attention in attentions]
        generic_maps = dict(zip(generic, maps[len(asked) :], strict=True))
        for request, ours, shown in zip(requests, maps, visible, strict=False):
            theirs = generic_maps[_chat_id(request)]
            if np.allclose(ours, theirs, rtol=1e-3):  # the question makes no difference
                yield np.ones_like(ours[0])
                continue
            means = theirs[:, shown].mean(1).reshape(-1, *[1] * shown.ndim)
            relative = ours / np.maximum(theirs + means, 1e-12)
            one = len(relative) == 1
            yield relative[0] if one else np.exp(np.log(np.maximum(relative, 1e-12)).mean(0))

    def _layers(self, count: int) -> list[int]:
        """Those that are read: of chosen heads, all."""
        default = [min(round(self.depth * count), count - 1)]
        wanted = self.grounder_layers if self.grounder_heads is None else range(count)
        return [*map(int, select_layers(np.arange(count), wanted, default))]

    def _choose(self, attention: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(layers, heads, *tokens)` -> `(maps, *tokens)`: of each head, or one of their mean."""
        chosen = attention.reshape(-1, *attention.shape[2:])
        if self.grounder_heads is not None:
            chosen = select_layers(chosen, self.grounder_heads, (), "heads")
        return chosen if self.average == "geometric" else chosen.mean(0, keepdims=True)


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

    def heat(self, reader: StateReader, requests: list[Request], visible: list[Visible]) -> Maps:
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

    def heat(self, reader: StateReader, requests: list[Request], visible: list[Visible]) -> Maps:
        phrases = [object_words(request.prompt) for request in requests]
        images = {id(request.pil_image): request.image for request in requests}
        words: dict[int, list[str]] = {image: [] for image in images}
        for request, objects in zip(requests, phrases, strict=True):
            words[id(request.pil_image)] += " ".join(objects).split()
        asked = [list(dict.fromkeys(each)) for each in words.values()]
        read = reader.word_probabilities(list(images.values()), asked)
        said = [dict(zip(*pair, strict=True)) for pair in zip(asked, read, strict=True)]
        of_image = dict(zip(images, said, strict=True))
        for request, objects, shown in zip(requests, phrases, visible, strict=True):
            shares = {
                word: map_ / max(float(map_[shown].sum()), 1e-30)
                for word, map_ in of_image[id(request.pil_image)].items()
            }
            maps = [np.mean([shares[word] for word in phrase.split()], 0) for phrase in objects]
            yield np.max(maps, axis=0)


def ask_shortly(request: Request) -> Request:
    """The request whose attention is read: its first line, to be answered in a word."""
    return request.asking(first_line(request.prompt) + SHORT_ANSWER)


def select_layers(
    states: NDArray[Any], wanted: Sequence[int] | None, default: Sequence[int], what: str = "layers"
) -> NDArray[Any]:
    """The wanted layers (or heads) of `(layers, ...)` states; None: the default ones.

    Raises:
        CofError: the model has no such layer.
    """
    chosen = list(default if wanted is None else wanted)
    if max(chosen) >= len(states):
        raise CofError(
            f"grounder_{what} must be numbers from 0 to {len(states) - 1}, not {chosen}."
        )
    return np.asarray(states[chosen])


def scale_to_unit(maps: NDArray[np.floating], visible: Visible) -> NDArray[np.float64]:
    """Scale each map to 0..1, from its lowest to its highest value at visible tokens.

    Args:
        maps: `(..., *tokens)`.
        visible: `(*tokens,)`; all other tokens become 0.

    >>> visible = np.array([True, True, True, False])
    >>> scale_to_unit(np.array([[1.0, 3.0, 2.0, 9.0]]), visible).tolist()
    [[0.0, 1.0, 0.5, 0.0]]
    """
    tokens = tuple(range(-visible.ndim, 0))
    low = np.where(visible, maps, np.inf).min(axis=tokens, keepdims=True)
    high = np.where(visible, maps, -np.inf).max(axis=tokens, keepdims=True)
    return np.asarray(np.where(visible, (maps - low) / np.maximum(high - low, 1e-12), 0.0))


def ground_heat_map(heat: HeatMap, image_wh: tuple[int, int], min_confidence: float) -> Grounding:
    """The box where a heat map is highest (`sliding_window`), with the map.

    Its confidence is the part of the map's sum that lies in the box, 0..1.
    """
    if heat.flat:
        return Grounding(None, reason="The question makes the model look nowhere in particular.")
    box, confidence = sliding_window(heat, image_wh)
    region = Region(boxes=(box,), heat_map=heat.mask())
    return Grounding(region, confidence=confidence).if_sure(min_confidence)


def _chat_id(request: Request) -> tuple[object, ...]:
    """The same value for all requests that differ in their last text alone."""
    return (id(pil_image(request.image)), request.chat, *map(id, request.others))
