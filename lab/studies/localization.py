"""Localization heads: the few heads whose attention finds things (arXiv 2503.06287), chosen by how
they look at questions' images; nobody has to say where the things are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cof.engines.base import AttentionReader, Engine
from cof.errors import CofError
from cof.eval.examples import Embedded, open_image
from cof.geometry.heatmap import make_heat_map
from cof.grounders.maps import ask_shortly
from cof.types import Request

MOST_LOCAL = 10  # heads of each question that are counted: the paper's
STANDS_OUT = 0.001  # attention above a map's mean from which a cell is in a component: the authors'

Question = tuple[Path | Embedded, str]  # an image, and what is asked about it
Maps = NDArray[np.floating]  # (heads of all layers, h, w): the attention that each cell gets


def read_maps(engine: Engine, questions: Sequence[Question], batch_size: int = 8) -> Iterator[Maps]:
    """For each question the share of all attention that its answer's first token gives the image.

    Raises:
        CofError: the engine does not show its attention, or an image cannot be used.
    """
    if not isinstance(engine, AttentionReader):
        raise CofError(f"The engine {engine.name!r} does not show its attention.")
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        asked = [ask_shortly(Request(open_image(image), text)) for image, text in batch]
        for request, read in zip(asked, engine.image_attentions(asked), strict=True):
            size, heads = request.image.size, read.reshape(-1, *read.shape[2:])
            centres = engine.token_centres(size)
            yield np.stack([make_heat_map(head, centres, size).values for head in heads])


def choose_heads(questions: Iterable[Maps], count: int) -> list[int]:
    """The numbers of the heads that are most often among the most local ones, the best first."""
    often = Counter(head for maps in questions for head in most_local(maps))
    return [head for head, _ in often.most_common(count)]


def most_local(maps: Maps) -> list[int]:
    """The numbers of the heads whose maps have the lowest spatial entropy.

    Left out are heads that attend less to the image than the elbow of all sums (the value farthest
    from the chord of the sorted ones), and those to which all of the bottom row stands out.

    Departures from github.com/seilk/LocalizationHeads: the elbow is compared with sums, as in the
    paper, not with the heads' numbers; and a map where nothing stands out is the least local one,
    not the most.
    """
    sums = maps.sum((1, 2), dtype=np.float64)
    ordered = np.sort(sums)
    chord = np.linspace(ordered[0], ordered[-1], len(ordered))
    enough = sums >= ordered[np.abs(ordered - chord).argmax()]
    above = np.maximum(maps - maps.mean((1, 2), keepdims=True), 0.0)
    parts = _label(above > STANDS_OUT)
    entropy = {}
    for head in np.flatnonzero(enough & parts.any((1, 2)) & ~parts[:, -1].all(1)):
        inside = np.bincount(parts[head].flat, above[head].flat)[1:]
        share = inside[inside > 0] / above[head].sum()
        entropy[int(head)] = round(float(-(share * np.log(share)).sum()), 9)  # equals stay equal
    return sorted(entropy, key=entropy.__getitem__)[:MOST_LOCAL]


def _label(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Components of 8 neighbours in each of `(maps, h, w)`: a number from 1 on, 0 outside."""
    spread = np.where(inside, np.arange(1, inside[0].size + 1).reshape(inside.shape[1:]), 0)
    labels = np.zeros_like(spread)
    while not np.array_equal(spread, labels):
        labels, around = spread, np.pad(spread, ((0, 0), (1, 1), (1, 1)))
        near = sliding_window_view(around, (3, 3), axis=(1, 2)).max((-1, -2))
        spread = np.where(inside, near, 0)
    return labels
