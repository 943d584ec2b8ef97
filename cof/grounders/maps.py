"""What the grounders share that read a heat map from the model's states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cof.engines.base import Engine, StateReader
from cof.errors import CofError
from cof.geometry.heatmap import HeatMap, make_heat_map, sliding_window
from cof.geometry.regions import Region
from cof.grounders.base import Grounder
from cof.types import Grounding, Request

LAYERS = "Decoder layers to read, such as 12-16; default: the method's own"
UNSURE = "A box that holds a smaller part of the map (0..1) counts as not found"

Visible = NDArray[np.bool_]
"""`(*tokens,)`: which image tokens show a part of the image, and not padding alone."""


class MapGrounder(Grounder):
    """Looks where a heat map of the image is highest (`heatmap.sliding_window`).

    Attributes:
        depth: where the default layers begin, as a share of all layers: ViCrop and FOCUS begin at
            layer 14 of LLaVA-1.5-7B's 32.
        min_confidence: the least part of the map's sum in the box, 0..1, that counts as found.
    """

    depth: ClassVar[float] = 14 / 32
    min_confidence: float

    @abstractmethod
    def heat(
        self, reader: StateReader, requests: Sequence[Request], visible: Sequence[Visible]
    ) -> Iterable[NDArray[np.floating]]:
        """For each request the heat of the image tokens, `(*tokens,)`; padding does not count."""

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        """
        Raises:
            CofError: the engine does not tell its model's states.
        """
        if not isinstance(engine, StateReader):
            raise CofError(
                f"grounder {self.name!r} reads the model's states, which the engine "
                f"{engine.name!r} does not offer; use grounder 'prompt'."
            )
        sizes = [request.image.size for request in requests]
        centres = [engine.token_centres(size) for size in sizes]
        visible = [np.isfinite(each.sum(-1)) for each in centres]
        heat = self.heat(engine, requests, visible)
        return [
            ground_heat_map(make_heat_map(values, places, size), size, self.min_confidence)
            for values, places, size in zip(heat, centres, sizes, strict=True)
        ]


def image_id(request: Request) -> int:
    """The same number for all requests about one image, encoded or not."""
    return id(request.pil_image)


def select_layers(
    states: NDArray[np.float32], wanted: Sequence[int] | None, default: Sequence[int]
) -> NDArray[np.float32]:
    """The wanted layers of `(layers, ...)` states; None: the default ones.

    Raises:
        CofError: the model has no such layer.
    """
    chosen = list(default if wanted is None else wanted)
    if max(chosen) >= len(states):
        raise CofError(
            f"grounder_layers must be numbers from 0 to {len(states) - 1}, not {chosen}."
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
    region = Region(boxes=(box,), heat_map=heat_map.mask())
    return Grounding(region, confidence=confidence).if_sure(min_confidence)
