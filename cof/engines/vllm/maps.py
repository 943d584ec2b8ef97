"""Maps of attention: what a prompt's last token gives to an image, which vLLM's workers read in the
prompt's own pass, and keep until it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, TypeAdapter

from cof.engines.vllm.bias import PlacedBias, positions_of, span_of
from cof.errors import CofError

KEY = "cof_map"
"""The name in `SamplingParams.extra_args` of what a request asks for: a name of its own, the number
of the image among its images, and the layers."""

ORDER = TypeAdapter(tuple[str, NonNegativeInt, list[NonNegativeInt]])

MOST = 1024
"""The maps that a worker keeps if nobody takes them."""


@dataclass(frozen=True, eq=False)
class PlacedMap:
    """What is read for a request.

    Attributes:
        name, layers: see `KEY`.
        query: the position of the prompt's last token.
        keys: `(K,)`, those of the image's embeddings.
        bias: what is added to the scores.
        found: `(heads, K)` float32 by layer, once it has been read.
    """

    name: str
    layers: Sequence[int]
    query: int
    keys: NDArray[np.intp]
    bias: PlacedBias | None
    found: dict[int, Any] = field(default_factory=dict)


def place_map(request: Any, bias: PlacedBias | None) -> PlacedMap | None:
    """What a vLLM `NewRequestData` asks for; None for most."""
    asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
    if asked is None or asked[1] >= len(request.mm_features):
        return None
    name, image, layers = asked
    query, keys = request.prompt_len - 1, positions_of(*span_of(request.mm_features[image]))
    return PlacedMap(name, layers, query, keys, bias if bias and bias.start <= query else None)


def join_parts(workers: Any, layers: Sequence[int], heads: int) -> NDArray[np.float32]:
    """A map `(layers, heads, K)` from what `BiasedWorker.take_map` gives, in the order of ranks.

    Raises:
        CofError: it is no longer kept.
    """
    found = [part[layer] for layer in layers for part in workers if layer in part]
    if not found:
        raise CofError("The engine is full: ask again in a moment.")
    return np.frombuffer(b"".join(found), np.float32).reshape(len(layers), heads, -1)
