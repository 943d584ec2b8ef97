"""What the grounders share that read a heat map from the model's states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import Engine, StateReader
from cof.errors import CofError
from cof.geometry.heatmap import HeatMap, sliding_window
from cof.geometry.regions import Region
from cof.types import Grounding, Request

LAYERS = "Decoder layers to read, such as 12-16; default: the method's own"
UNSURE = "A box that holds a smaller part of the map (0..1) counts as not found"


def require_state_reader(engine: Engine, grounder: str) -> StateReader:
    """The engine as a reader of its model's states.

    Raises:
        CofError: it does not offer them.
    """
    if not isinstance(engine, StateReader):
        raise CofError(
            f"grounder {grounder!r} reads the model's states, which the engine {engine.name!r} "
            "does not offer; use grounder 'prompt'."
        )
    return engine


def image_id(request: Request) -> int:
    """The same number for all requests about one image, encoded or not."""
    return id(request.pil_image)


def select_layers(
    wanted: Sequence[int] | None, default: Sequence[int], num_layers: int
) -> list[int]:
    """The layers to read.

    Args:
        wanted: the caller's; None: the default.
        default: the method's own.
        num_layers: how many the model has.

    Raises:
        CofError: the model has no such layer.
    """
    if wanted is None:
        return list(default)
    if max(wanted) >= num_layers:
        raise CofError(
            f"grounder_layers must be numbers from 0 to {num_layers - 1}, not {list(wanted)}."
        )
    return list(wanted)


def scale_to_unit(maps: NDArray[np.floating], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale each map to 0..1, from its lowest to its highest value at visible tokens.

    Args:
        maps: `(..., *tokens)`.
        visible: `(*tokens,)`, which tokens show a part of the image; all others become 0.

    >>> visible = np.array([True, True, True, False])
    >>> scale_to_unit(np.array([[1.0, 3.0, 2.0, 9.0]]), visible).tolist()
    [[0.0, 1.0, 0.5, 0.0]]
    """
    tokens = tuple(range(maps.ndim - visible.ndim, maps.ndim))
    low = np.where(visible, maps, np.inf).min(axis=tokens, keepdims=True)
    high = np.where(visible, maps, -np.inf).max(axis=tokens, keepdims=True)
    return np.asarray(np.where(visible, (maps - low) / np.maximum(high - low, 1e-12), 0.0))


def ground_heat_map(
    heat_map: HeatMap, image_wh: tuple[int, int], min_confidence: float
) -> Grounding:
    """The box where a heat map is highest (`sliding_window`), with the map.

    Its confidence is the part of the map's sum that lies in the box, 0..1.
    """
    if heat_map.flat:
        return Grounding(None, reason="The question makes the model look nowhere in particular.")
    box = sliding_window(heat_map, image_wh)
    confidence = heat_map.inside(box)
    if confidence < min_confidence:
        reason = f"The box's confidence of {confidence:.2f} is below {min_confidence:g}."
        return Grounding(None, confidence=confidence, reason=reason)
    return Grounding(Region(boxes=(box,), heat_map=heat_map.mask()), confidence=confidence)
