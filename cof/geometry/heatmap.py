"""Heat maps: a number for each image token, laid over the image, and the box they point at.

Pure geometry. Coordinates are 0..1 of the original image; heat is any number from 0 on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cof.geometry.boxes import XYXY

_SAMPLES = 8  # of each cell of a heat map in a mask: edges lie within a sixteenth of a cell
_LARGEST = 512  # side of a mask


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Cells of an image with the heat of each.

    Attributes:
        values: `(h, w)`, 0 or more.
        x_edges: `(w + 1,)`, where the columns begin and end, 0..1 of the original image.
        y_edges: `(h + 1,)`, the same of the rows.
    """

    values: NDArray[np.float64]
    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]

    @property
    def flat(self) -> bool:
        """Whether it says nothing: no heat, or the same everywhere."""
        low, high = float(self.values.min()), float(self.values.max())
        return not high - low > 1e-6 * high

    def mask(self) -> NDArray[np.float32]:
        """`(H, W)` over the whole image, its highest value 1; 0 where the model sees nothing.

        >>> heat = HeatMap(np.array([[1.0, 4.0]]), np.array([0, 0.5, 1]), np.array([0, 1.0]))
        >>> mask = heat.mask()
        >>> mask.shape, mask[0, ::4].tolist()
        ((8, 16), [0.25, 0.25, 1.0, 1.0])
        """
        rows, columns = (_cells_at(edges) for edges in (self.y_edges, self.x_edges))
        framed = np.pad(self.values, 1)  # a cell of nothing all around
        heat = framed[np.ix_(rows + 1, columns + 1)]
        return np.asarray(heat / max(float(heat.max()), 1e-30), dtype=np.float32)

    def inside(self, xyxy: XYXY) -> float:
        """The share of all heat that lies in a box, 0..1.

        >>> heat = HeatMap(np.array([[1.0, 3.0]]), np.array([0, 0.5, 1]), np.array([0, 1.0]))
        >>> heat.inside((0.5, 0.0, 1.0, 0.5))
        0.375
        """
        x1, y1, x2, y2 = xyxy
        share = np.outer(_overlaps(self.y_edges, y1, y2), _overlaps(self.x_edges, x1, x2))
        return float((self.values * share).sum() / self.values.sum())


def heat_map(
    heat: NDArray[np.floating], centres: NDArray[np.float64], image_wh: tuple[int, int]
) -> HeatMap:
    """The heat of image tokens as a heat map of the image.

    A raster of tokens keeps its cells. Tokens in any other layout (tiles, with or without a
    thumbnail) are averaged in the cells of a raster with half as many cells as there are tokens;
    a cell that no token looks at gets the nearest token's heat.

    Args:
        heat: `(grid_h, grid_w)` or `(tokens,)`, 0 or more.
        centres: the same and a last axis `(x, y)`: where each token looks, 0..1 of the original
            image; NaN for padding (`token_coverage.token_centres`).
        image_wh: size of the original image.

    Example: a 100x50 image in the middle of a square of 4x4 tokens.

        >>> x, y = np.meshgrid([0.125, 0.375, 0.625, 0.875], [np.nan, 0.25, 0.75, np.nan])
        >>> found = heat_map(np.arange(16.0).reshape(4, 4), np.stack([x, y], -1), (100, 50))
        >>> found.values.tolist(), found.y_edges.tolist()
        ([[4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]], [0.0, 0.5, 1.0])
    """
    seen = np.isfinite(centres.sum(-1))
    values = np.where(seen, heat, 0.0).astype(np.float64)
    if heat.ndim == 2:
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        kept = np.ix_(rows, columns)
        return HeatMap(
            values[kept],
            _edges(np.nanmean(centres[kept][..., 0], axis=0)),
            _edges(np.nanmean(centres[kept][..., 1], axis=1)),
        )
    return _averaged(values[seen], centres[seen], image_wh)


def sliding_window(
    heat: HeatMap,
    image_wh: tuple[int, int],
    side: float = 0.2,
    ratios: Sequence[float] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0),
) -> XYXY:
    """The box that a heat map points at, by ViCrop's rule (arXiv 2502.17422, section 5.1).

    Of each size of window the one with most heat is taken, and of those the sharpest: whose heat
    exceeds most, for its area, that of the windows one cell beside it. ViCrop's smallest window
    has the size of the model's input in pixels of the original image, because it is to be cropped
    there without loss; here it is a share of the image.

    Args:
        image_wh: size of the original image.
        side: of the smallest window, as a share of the square root of the image's area.
        ratios: of the windows' sides to the smallest one's.

    Returns:
        0..1 of the original image, along the edges of the map's cells.

        >>> cells = np.linspace(0, 1, 11)
        >>> values = np.zeros((10, 10)); values[3:5, 6:8] = 1
        >>> [round(x, 6) for x in sliding_window(HeatMap(values, cells, cells), (100, 100))]
        [0.6, 0.3, 0.8, 0.5]
    """
    width, height = image_wh
    length = side * math.sqrt(width * height)
    cell_w = float(np.diff(heat.x_edges).max()) * width
    cell_h = float(np.diff(heat.y_edges).max()) * height
    sums = np.pad(heat.values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = heat.values.shape
    best, sharpest = (0, 0, columns, rows), -math.inf
    for ratio in ratios:
        across = min(max(1, round(length * ratio / cell_w)), columns)
        down = min(max(1, round(length * ratio / cell_h)), rows)
        heats = (sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across]) + sums[
            :-down, :-across
        ]
        top, left = divmod(int(heats.argmax()), heats.shape[1])
        beside = [
            heats[y, x]
            for y, x in ((top - 1, left), (top + 1, left), (top, left - 1), (top, left + 1))
            if 0 <= y < heats.shape[0] and 0 <= x < heats.shape[1]
        ]
        if not beside:  # it covers everything
            continue
        sharpness = (heats[top, left] - float(np.mean(beside))) / (across * down)
        if sharpness > sharpest:
            best = (left, top, left + across, top + down)
            sharpest = sharpness
    left, top, right, bottom = best
    return (
        float(heat.x_edges[left]),
        float(heat.y_edges[top]),
        float(heat.x_edges[right]),
        float(heat.y_edges[bottom]),
    )


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where evenly spaced cells begin and end, from their centres.

    The outermost cells may show padding too, so that the centre of what they show of the image is
    not their own.
    """
    numbers = np.arange(len(centres))
    if len(centres) == 1:
        return np.array([0.0, 1.0])
    inner = slice(1, -1) if len(centres) >= 4 else slice(None)
    step, start = np.polyfit(numbers[inner], centres[inner], 1)
    return np.asarray((start + step * (np.arange(len(centres) + 1) - 0.5)).clip(0.0, 1.0).round(6))


def _cells_at(edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """The cell at each of evenly spaced points over 0..1; -1 and len for before and behind."""
    cells = len(edges) - 1
    size = min(cells * _SAMPLES, _LARGEST)
    points = (np.arange(size) + 0.5) / size
    return np.asarray(np.searchsorted(edges, points, side="right") - 1)


def _overlaps(edges: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The share of each cell that is between two places."""
    starts, ends = edges[:-1], edges[1:]
    both = np.minimum(ends, high) - np.maximum(starts, low)
    return np.asarray(both.clip(0.0) / (ends - starts).clip(1e-9))


def _averaged(
    values: NDArray[np.float64], centres: NDArray[np.float64], image_wh: tuple[int, int]
) -> HeatMap:
    """`(tokens,)` heat at `(tokens, 2)` places in the cells of a raster."""
    width, height = image_wh
    cells = max(1.0, len(values) / 2)
    high = max(1.0, math.sqrt(cells * height / width))
    rows, columns = round(high), max(1, round(cells / high))
    x = np.minimum((centres[:, 0] * columns).astype(int), columns - 1)
    y = np.minimum((centres[:, 1] * rows).astype(int), rows - 1)
    total, number = np.zeros((rows, columns)), np.zeros((rows, columns))
    np.add.at(total, (y, x), values)
    np.add.at(number, (y, x), 1)
    for row, column in np.argwhere(number == 0):
        place = ((column + 0.5) / columns, (row + 0.5) / rows)
        total[row, column] = values[((centres - place) ** 2).sum(1).argmin()]
    return HeatMap(
        total / number.clip(min=1),
        np.linspace(0.0, 1.0, columns + 1),
        np.linspace(0.0, 1.0, rows + 1),
    )
