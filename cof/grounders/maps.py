"""What grounders that read a heat map from the model's states share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import Engine, StateReader
from cof.errors import CofError
from cof.geometry.heatmap import HeatMap, sliding_window
from cof.geometry.regions import Region
from cof.types import Grounding, Request


def state_reader(engine: Engine, grounder: str) -> StateReader:
    """The engine, known to tell of its states.

    Raises:
        CofError: it does not.
    """
    if not isinstance(engine, StateReader):
        raise CofError(
            f"grounder {grounder!r} reads the model's states, which the engine {engine.name!r} "
            "does not tell; use grounder 'prompt'."
        )
    return engine


def image_id(request: Request) -> int:
    """The same for requests about the same image, encoded or not."""
    return id(request.pil_image)


def chosen_layers(wanted: Sequence[int] | None, default: Sequence[int], layers: int) -> list[int]:
    """The layers to read of a model that has so many.

    Raises:
        CofError: it has no such layer.
    """
    if wanted is None:
        return list(default)
    if max(wanted) >= layers:
        raise CofError(
            f"grounder_layers must be numbers from 0 to {layers - 1}, not {list(wanted)}."
        )
    return list(wanted)


def scaled(maps: NDArray[np.floating], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each map `(..., *tokens)` from 0, its lowest value, to 1; 0 for what is not `seen`.

    >>> scaled(np.array([[1.0, 3.0, 2.0, 9.0]]), np.array([True, True, True, False])).tolist()
    [[0.0, 1.0, 0.5, 0.0]]
    """
    tokens = tuple(range(maps.ndim - seen.ndim, maps.ndim))
    low = np.where(seen, maps, np.inf).min(axis=tokens, keepdims=True)
    high = np.where(seen, maps, -np.inf).max(axis=tokens, keepdims=True)
    return np.asarray(np.where(seen, (maps - low) / np.maximum(high - low, 1e-12), 0.0))


def grounding(heat: HeatMap, image_wh: tuple[int, int], min_confidence: float) -> Grounding:
    """The box that a heat map points at, the map beside it; its confidence is the share of the
    map's heat inside the box."""
    if heat.flat:
        return Grounding(None, reason="The question makes the model look nowhere in particular.")
    box = sliding_window(heat, image_wh)
    sure = heat.inside(box)
    if sure < min_confidence:
        reason = f"The box's confidence of {sure:.2f} is below {min_confidence:g}."
        return Grounding(None, confidence=sure, reason=reason)
    return Grounding(Region(boxes=(box,), heat=heat.mask()), confidence=sure)
