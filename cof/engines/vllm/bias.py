"""The bias of one request, as it travels through vLLM: from the engine to scheduler and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter

from cof.types import Highlight, Scope

KEY = "cof"
"""The name of the bias in `SamplingParams.extra_args`."""


@dataclass(frozen=True)
class RequestBias:
    """What is added to the attention scores of one image of a request.

    Attributes:
        runs: `(start, length, value)`: what the image's embeddings `start ... start + length - 1`
            get; embeddings count from 0, and those in no run get 0.
        scope: see `cof.types.Highlight`.
        layers, heads: those that carry the bias; None: all.
        bidirectional: whether image tokens attend to all of their image, so that the bias of one
            changes the states of all.
        image: the number of the image among the request's, from 0.

    Example:
        >>> highlight = Highlight(region=None, strength=2.0, scope="text")
        >>> bias = RequestBias.from_values(np.array([0, 0.7, 0.7, 0]), highlight)
        >>> bias.runs
        ((1, 2, 0.7),)
        >>> RequestBias.from_json(bias.to_json()) == bias
        True
    """

    runs: tuple[tuple[NonNegativeInt, NonNegativeInt, FiniteFloat], ...]
    scope: Scope = "all"
    layers: tuple[NonNegativeInt, ...] | None = None
    heads: tuple[NonNegativeInt, ...] | None = None
    bidirectional: bool = False
    image: NonNegativeInt = 0

    @classmethod
    def from_values(
        cls,
        values: NDArray[np.floating[Any]],
        highlight: Highlight,
        *,
        bidirectional: bool = False,
        image: int = 0,
    ) -> RequestBias:
        """The bias of a highlight that adds `values` `(K,)` to an image's K embeddings."""
        edges = np.flatnonzero(np.diff(values, prepend=np.nan, append=np.nan))
        runs = tuple(
            (int(start), int(end - start), float(values[start]))
            for start, end in pairwise(edges)
            if values[start] != 0
        )
        return cls(runs, highlight.scope, highlight.layers, highlight.heads, bidirectional, image)

    def to_json(self) -> str:
        """One line that is the same for equal biases; vLLM carries it."""
        return _JSON.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> RequestBias:
        """The bias of `to_json`.

        Raises:
            ValueError: it is not one.
        """
        try:
            return _JSON.validate_json(text)
        except ValueError as error:
            wrong = f"{KEY} must be a bias that the engine wrote, not {text!r}."
            raise ValueError(wrong) from error


_JSON = TypeAdapter(RequestBias)


@dataclass(frozen=True, eq=False)
class PlacedBias:
    """A request's bias at the positions of its prompt.

    Attributes:
        values: `(L,)` float32, what keys get; those from L on get 0.
        start: the first query position that is biased, and so the first whose keys and values
            differ from the plain request's (in all layers but the first).
        digest: the same for equal biases only.
        layers, heads: see `RequestBias`.
    """

    values: NDArray[np.float32]
    start: int
    digest: str
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None


def place_bias(sampling_params: Any, mm_features: Sequence[Any]) -> PlacedBias | None:
    """The bias of a vLLM request; None for plain ones.

    Args:
        sampling_params: its `SamplingParams`.
        mm_features: its `MultiModalFeatureSpec`s, of which only the positions are read.
    """
    text = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    if text is None or not mm_features:
        return None
    return _placed(text, tuple(map(span_of, mm_features)))


Span = tuple[int, int, bytes | None]
"""A `PlaceholderRange` as a value that can be hashed."""


def span_of(feature: Any) -> Span:
    """That of a `MultiModalFeatureSpec`."""
    position, mask = feature.mm_position, feature.mm_position.is_embed
    return (position.offset, position.length, None if mask is None else mask.numpy().tobytes())


@lru_cache(maxsize=4096)
def _placed(text: str, spans: tuple[Span, ...]) -> PlacedBias | None:
    bias = RequestBias.from_json(text)
    if bias.image >= len(spans):
        raise ValueError(f"{KEY} is about image {bias.image}, and there are {len(spans)}.")
    first, last = positions_of(*spans[bias.image]), positions_of(*spans[-1])
    values = np.zeros(int(last[-1]) + 1, dtype=np.float32)
    for start, length, value in bias.runs:
        values[first[start : start + length]] = value
    if not values.any():
        return None
    start = int(first[0] if bias.bidirectional else np.flatnonzero(values)[0])
    if bias.scope == "text":
        start = len(values)
    return PlacedBias(values, start, text, bias.layers, bias.heads)


def positions_of(offset: int, length: int, mask: bytes | None) -> NDArray[np.intp]:
    """The prompt positions of an image's embeddings."""
    if mask is None:
        return np.arange(offset, offset + length)
    return offset + np.flatnonzero(np.frombuffer(mask, dtype=bool))


def chosen(numbers: tuple[int, ...] | None, first: int, count: int) -> NDArray[np.bool_]:
    """Which of `first ... first + count - 1` are among the numbers; None: all."""
    span = np.arange(first, first + count)
    return np.full(count, True) if numbers is None else np.isin(span, numbers)
