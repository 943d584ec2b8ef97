"""The attention of a prompt's last token to an image, which vLLM's workers read in the prompt's own
pass: how it is asked for, what a worker keeps of it, and how it comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, TypeAdapter
from torch import Tensor

from cof.engines.vllm.bias import embedding_positions
from cof.errors import CofError

KEY = "cof_map"
"""The name of an order in `SamplingParams.extra_args`."""

HELD = 1 << 24
"""The most numbers that a worker keeps of maps that nobody has taken: 64 MiB."""

Part = tuple[int, int, bytes]
"""A layer of a map as it travels: its number, H heads, and float32 `(H, K)`."""


@dataclass(frozen=True)
class MapOrder:
    """A map that a request asks for.

    Attributes:
        key: by which it is taken; no two orders have the same.
        layers: to read.
        image: the number of the image among the request's, from 0.
    """

    key: str
    layers: tuple[NonNegativeInt, ...]
    image: NonNegativeInt = 0


ORDER = TypeAdapter(MapOrder)


@dataclass(frozen=True, eq=False)
class PlacedMap:
    """An order at the positions of its prompt.

    Attributes:
        order: itself.
        query: the position of the prompt's last token.
        keys: `(K,)`, those of the image's embeddings.
    """

    order: MapOrder
    query: int
    keys: NDArray[np.intp]


def place_map(sampling_params: Any, mm_features: Sequence[Any], length: int) -> PlacedMap | None:
    """The map that a vLLM request of `length` tokens asks for; None where there is none."""
    text = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    order = None if text is None else ORDER.validate_json(text)
    if order is None or order.image >= len(mm_features):
        return None
    return PlacedMap(order, length - 1, embedding_positions(mm_features[order.image]))


def attention_weights(
    query: Tensor, keys: Tensor, added: Tensor, *, scale: float, window: int = 0
) -> Tensor:
    """The share of its attention that a query gives to each key, `(heads, S)` float32.

    Args:
        query: `(heads, D)`, of the last of S tokens.
        keys: `(KV heads, S, D)`.
        added: to the scores, `(heads, S)` float32.
        scale: of the scores, before that.
        window: how many keys it attends to, itself included; 0: all.
    """
    asked = query.float().unflatten(0, (len(keys), -1))  # (KV heads, heads of each, D)
    scores = (asked @ keys.float().transpose(1, 2)).flatten(0, 1) * scale + added
    if window > 0:
        scores[:, :-window] = -torch.inf
    return torch.softmax(scores, -1)


@dataclass
class KeptMaps:
    """A worker's maps until they are taken, the newest `HELD` numbers of them.

    Attributes:
        by_key: by order and layer, `(H, K)`.
    """

    by_key: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def keep(self, key: str, layer: int, weights: Tensor) -> None:
        self.by_key.setdefault(key, {})[layer] = weights
        sizes = {key: sum(of.numel() for of in each.values()) for key, each in self.by_key.items()}
        while sum(sizes.values()) > HELD and len(sizes) > 1:
            oldest = next(iter(sizes))
            del sizes[oldest], self.by_key[oldest]

    def take(self, key: str) -> list[Part]:
        """What there is of a map, which is then forgotten."""
        parts = self.by_key.pop(key, {}).items()
        return [(layer, len(of), of.cpu().numpy().tobytes()) for layer, of in parts]


def join_parts(workers: Sequence[Sequence[Part]], layers: Sequence[int]) -> NDArray[np.float32]:
    """A map `(layers, heads, K)` from what each worker has of it: other heads, or other layers.

    Raises:
        CofError: it is no longer kept.
    """
    joined = []
    for wanted in layers:
        parts = [part for worker in workers for part in worker if part[0] == wanted]
        if not parts:
            raise CofError("The engine is full: ask again in a moment.")
        heads = [np.frombuffer(data, np.float32).reshape(count, -1) for _, count, data in parts]
        joined.append(np.concatenate(heads))
    return np.stack(joined)
