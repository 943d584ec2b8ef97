"""Localization heads: the few heads whose attention finds things (arXiv 2503.06287), chosen by how
they look at questions' images; nobody has to say where the things are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cof.engines.base import FIRST_TOKEN, AttentionReader, Engine
from cof.errors import CofError
from cof.eval.data.files import Row, collect, read_rows
from cof.eval.examples import Example, open_image
from cof.geometry.heatmap import make_heat_map
from cof.grounders.maps import ask_shortly
from cof.query import check_question
from cof.types import Request

MOST_LOCAL = 10  # heads of each question that are counted: the paper's
STANDS_OUT = 0.001  # attention above a map's mean from which a cell is in a component: the authors'

Maps = NDArray[np.floating]  # (heads of all layers, h, w): the attention that each cell gets


def read_questions(path: Path) -> list[Example]:
    """Of JSON lines with `image`, a path seen from their file, and `question`. A `CofError` names
    the line that is damaged, or whose image is, or says that there is none."""

    def read(row: Row) -> list[Example]:
        image = path.parent / row.text("image")
        open_image(image)  # a damaged one is refused before a model is loaded
        return [Example(row.where, image, check_question(row.text("question")), "")]

    problems: list[str] = []
    questions = collect(read, problems, read_rows(path, ("image", "question")))
    if problems or not questions:
        raise CofError(f"{[*problems, f'There is no question in {path}'][0]}.")
    return questions


def read_maps(engine: Engine, questions: Sequence[Example]) -> Iterator[Maps]:
    """For each question the share of all attention that its answer's first token gives the image.
    A `CofError` if the engine does not show it."""
    if not isinstance(engine, AttentionReader) or engine.attention_source != FIRST_TOKEN:
        raise CofError(f"{engine.name!r} does not show how heads of a decoder look at an image.")
    for each in track(questions, "reading", console=Console(stderr=True), transient=True):
        asked = ask_shortly(Request(open_image(each.image), each.prompt))
        (read,) = engine.image_attentions([asked])
        size, heads = asked.image.size, read.reshape(-1, *read.shape[2:])
        centres = engine.token_centres(size)
        yield np.stack([make_heat_map(head, centres, size).values for head in heads])


def choose_heads(questions: Iterable[Maps], count: int) -> list[int]:
    """The numbers of the heads that are most often among the most local ones, the best first.
    A `CofError` if there are not so many."""
    often = Counter(head for maps in questions for head in most_local(maps))
    if len(often) < count:
        raise CofError(f"Only {len(often)} heads look at few places: {count} cannot be chosen.")
    return [head for head, _ in often.most_common(count)]


def most_local(maps: Maps) -> list[int]:
    """The numbers of the heads whose maps have the lowest spatial entropy.

    Left out are heads that attend less to the image than the elbow of all sums (the value farthest
    from the chord of the sorted ones), and those to which nothing, or all of the bottom row, stands
    out. Departures from github.com/seilk/LocalizationHeads: there the elbow is compared with the
    heads' numbers, not with sums as in the paper; a map where nothing stands out is the most local
    one; and bottom rows are only noted.
    """
    sums = maps.sum((1, 2), dtype=np.float64)
    ordered = np.sort(sums)
    chord = np.linspace(ordered[0], ordered[-1], len(ordered))
    enough = sums >= ordered[np.abs(ordered - chord).argmax()]
    above = np.maximum(maps - maps.mean((1, 2), keepdims=True), 0.0)
    out = above > STANDS_OUT
    entropy = {}
    for head in np.flatnonzero(enough & out.any((1, 2)) & ~out[:, -1].all(1)):
        inside = np.bincount(_label(out[head]).flat, above[head].flat)[1:]
        share = inside[inside > 0] / above[head].sum()
        entropy[int(head)] = round(float(-(share * np.log(share)).sum()), 9)  # equals stay equal
    return sorted(entropy, key=entropy.__getitem__)[:MOST_LOCAL]


def _label(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Components of 8 neighbours in `(h, w)`: a number from 1 on in each, 0 outside."""
    spread = np.arange(1, inside.size + 1).reshape(inside.shape) * inside
    labels = np.zeros_like(spread)
    while not np.array_equal(spread, labels):
        labels, around = spread, sliding_window_view(np.pad(spread, 1), (3, 3))
        spread = around.max((-1, -2)) * inside
    return labels
