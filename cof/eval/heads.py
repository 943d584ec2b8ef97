"""Localization heads: the few heads of a decoder whose attention finds things, chosen by looking at
their maps alone (arXiv 2503.06287); nobody has to say where the things are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cof.engines.base import Engine, StateReader
from cof.errors import CofError
from cof.eval.examples import Example, open_image
from cof.geometry.heatmap import make_heat_map
from cof.grounders.maps import ask_shortly
from cof.types import Request

MOST_LOCAL = 10  # heads of each question that are counted: the paper's
STANDS_OUT = 0.001  # attention above the map's mean from which a token is in a component: theirs

Maps = NDArray[np.floating]
"""`(layers, heads, h, w)`: the share of all attention that each image token gets."""


def choose_heads(questions: Iterable[Maps], count: int) -> list[str]:
    """The heads that are most often among the most local ones, as `layer:head`, the best first.

    Args:
        questions: the attention of each question.
        count: of heads.
    """
    often = Counter(head for maps in questions for head in most_local(maps))
    return [f"{layer}:{head}" for (layer, head), _ in often.most_common(count)]


def read_maps(
    engine: Engine,
    examples: Sequence[Example],
    batch_size: int = 8,
    advance: Callable[[int], object] = lambda questions: None,
) -> Iterator[Maps]:
    """The attention of the last token of each question to its image, on a grid of the image's
    cells.

    Raises:
        CofError: the engine does not tell its model's attention, or an image cannot be used.
    """
    if not isinstance(engine, StateReader):
        raise CofError(f"The engine {engine.name!r} does not tell its model's attention.")
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        sources = dict.fromkeys(example.image for example in batch)
        images = dict(zip(sources, engine.encode([*map(open_image, sources)]), strict=True))
        asked = [Request(images[e.image], (e.question.strip() or e.prompt).strip()) for e in batch]
        read = engine.image_attentions([*map(ask_shortly, asked)])
        for request, attention in zip(asked, read, strict=True):
            size = request.image.size
            centres = engine.token_centres(size)
            flat = attention.reshape(-1, *attention.shape[2:])
            cells = np.stack([make_heat_map(head, centres, size).values for head in flat])
            yield cells.reshape(*attention.shape[:2], *cells.shape[1:])
        advance(len(batch))


def most_local(maps: Maps) -> list[tuple[int, int]]:
    """The heads whose maps have the lowest spatial entropy, as `(layer, head)`.

    Of the heads that attend enough to the image, with a sum from the elbow of all sums on. Heads
    that look at the whole bottom row are left out, as are those where nothing stands out.

    Departures from the authors' code (github.com/seilk/LocalizationHeads): the elbow is compared
    with a head's sum, as in the paper, not with its number; and a map in which nothing stands out
    is the least local one, not the most.
    """
    layers, heads = maps.shape[:2]
    flat = maps.reshape(layers * heads, *maps.shape[2:]).astype(np.float64)
    sums = flat.sum((1, 2))
    above = np.maximum(flat - flat.mean((1, 2), keepdims=True), 0.0)
    parts = _label(above > STANDS_OUT)
    entropy = _entropy(above, parts)
    entropy[(sums < elbow(sums)) | (parts[:, -1] > 0).all(1)] = np.inf
    best = np.argsort(entropy, kind="stable")[:MOST_LOCAL]
    return [divmod(int(each), heads) for each in best if np.isfinite(entropy[each])]


def elbow(values: NDArray[np.floating]) -> float:
    """Of the sorted values the one that lies farthest from the line from the first to the last.

    >>> elbow(np.array([9.0, 0.0, 8.0, 10.0]))
    8.0
    """
    ordered = np.sort(values)
    line = np.linspace(ordered[0], ordered[-1], len(ordered))
    return float(ordered[np.abs(ordered - line).argmax()])


def _entropy(above: NDArray[np.float64], parts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Of the components' parts of each map's sum, `(maps,)`; infinite where there are none."""
    sums = np.zeros((len(above), parts[0].size + 1))
    np.add.at(sums, (np.arange(len(above))[:, None, None], parts), above)
    share = sums[:, 1:] / np.maximum(above.sum((1, 2)), 1e-30)[:, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return np.where(parts.any((1, 2)), entropy, np.inf)


def _label(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Components of 8 neighbours in each of `(maps, h, w)`: a number from 1 on, 0 outside."""
    labels: NDArray[np.intp] = inside * np.arange(1, inside[0].size + 1).reshape(inside.shape[1:])
    while True:
        around: NDArray[np.intp] = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
        spread = sliding_window_view(around, (3, 3), axis=(1, 2)).max((-1, -2)) * inside
        if np.array_equal(spread, labels):
            return labels
        labels = spread
