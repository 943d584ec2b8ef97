"""Heat maps over the image, from one value for each image token, or from a box's probabilities.

Pure geometry. Coordinates are 0..1 of the original image; values are 0 or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cof.geometry.boxes import XYXY, Frame
from cof.prompting.dialects import Order

SMALLEST = 0.2  # side of the smallest window, as a share of the square root of the image's area
RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)  # side of each window over that of the smallest: ViCrop's
SIDE = 96  # of the mask of a box, in cells: finer than the token grids of today's models
_SAMPLES = 8  # mask pixels per cell on each axis: edges are exact to a sixteenth of a cell
_LARGEST = 512  # side of a mask in pixels


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A grid of cells over an image, with a value for each."""

    values: NDArray[np.float64]  # (h, w), 0 or more
    x_edges: NDArray[np.float64]  # (w + 1,), the borders of the columns, 0..1 of the original image
    y_edges: NDArray[np.float64]  # (h + 1,), the borders of the rows, likewise

    @property
    def flat(self) -> bool:
        """Whether all values are equal, so that the map points nowhere."""
        low, high = float(self.values.min()), float(self.values.max())
        return not high - low > 1e-6 * high

    def mask(self) -> NDArray[np.float32]:
        """`(H, W)` float32 over the whole image, scaled to a maximum of 1; 0 outside the cells.

        >>> two = HeatMap(np.array([[1.0, 4.0]]), np.array([0, 0.5, 1]), np.array([0, 1.0]))
        >>> mask = two.mask()
        >>> mask.shape, mask[0, ::4].tolist()
        ((8, 16), [0.25, 0.25, 1.0, 1.0])
        """
        rows, columns = (_cells_at(edges) for edges in (self.y_edges, self.x_edges))
        padded = np.pad(self.values, 1)  # zeros for the points outside all cells
        values = padded[np.ix_(rows + 1, columns + 1)]
        return np.asarray(values / max(float(values.max()), 1e-30), dtype=np.float32)


def make_heat_map(
    values: NDArray[np.floating], centres: NDArray[np.float64], image_wh: tuple[int, int]
) -> HeatMap:
    """A heat map of the image from one value for each image token.

    A single grid of tokens keeps its cells, without rows and columns of padding alone. Tokens in
    any other layout (tiles, with or without a thumbnail) are averaged in the cells of a new grid,
    half as many as there are tokens; a cell without a token gets the value of the nearest one.

    Args:
        values: `(grid_h, grid_w)` or `(tokens,)`, 0 or more.
        centres: the same shape and a last axis `(x, y)`: the centre of what each token shows,
            0..1 of the original image; NaN for padding (`token_coverage.token_centres`).

    Example: a 100x50 image in the middle of a square of 4x4 tokens.

        >>> x, y = np.meshgrid([0.125, 0.375, 0.625, 0.875], [np.nan, 0.25, 0.75, np.nan])
        >>> made = make_heat_map(np.arange(16.0).reshape(4, 4), np.stack([x, y], -1), (100, 50))
        >>> made.values.tolist(), made.y_edges.tolist()
        ([[4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]], [0.0, 0.5, 1.0])
    """
    visible = np.isfinite(centres.sum(-1))
    finite = np.where(visible, values, 0.0).astype(np.float64)
    if values.ndim == 2:
        inside = np.ix_(np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0)))
        return HeatMap(
            finite[inside],
            _edges(np.nanmean(centres[inside][..., 0], axis=0)),
            _edges(np.nanmean(centres[inside][..., 1], axis=1)),
        )
    return _average_in_cells(finite[visible], centres[visible], image_wh)


def sliding_window(heat: HeatMap, image_wh: tuple[int, int]) -> tuple[XYXY, float]:
    """The box where a heat map is highest, by ViCrop's rule (arXiv 2502.17422, section 5.1).

    For each size of window, the position with the largest sum is taken; among those windows, the
    one whose sum exceeds most, per cell, the mean sum of the windows one cell beside it.

    Departures from ViCrop's code (`bbox_from_att_image_adaptive`): its smallest window is as large
    as the model's input in pixels (336 for LLaVA), because it is cropped there without loss, and
    here a share of the image; a window has at least one cell; and the box is the window's cells,
    not as many pixels as the window was to have (336 times its ratio) about their middle.

    Returns:
        The box in 0..1 of the original image, along borders of cells, and the part of the map's
        sum that lies in it, 0..1.

        >>> borders = np.linspace(0, 1, 11)
        >>> values = np.zeros((10, 10)); values[3:5, 6:8] = 1; values[9, 0] = 1
        >>> box, share = sliding_window(HeatMap(values, borders, borders), (100, 100))
        >>> [round(x, 6) for x in box], float(share)
        ([0.6, 0.3, 0.8, 0.5], 0.8)
    """
    width, height = image_wh
    length = SMALLEST * math.sqrt(width * height)
    cell_w = float(np.diff(heat.x_edges).max()) * width
    cell_h = float(np.diff(heat.y_edges).max()) * height
    sums = np.pad(heat.values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    grid_h, grid_w = heat.values.shape
    best, inside, sharpest = (0, 0, grid_w, grid_h), 1.0, -math.inf
    for ratio in RATIOS:
        # whole cells, and a thousandth more, since borders are rounded: 2 may come out as 1.9999
        w, h = (int(length * ratio / side + 1e-3) for side in (cell_w, cell_h))
        w, h = min(max(1, w), grid_w), min(max(1, h), grid_h)
        windows = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
        left, top = divmod(int(windows.T.argmax()), windows.shape[0])
        if windows.size == 1:  # the window covers everything
            continue
        around = np.pad(windows, 1, constant_values=np.nan)[top : top + 3, left : left + 3]
        beside = np.nanmean(around.flat[1::2])  # above, to the left, to the right, below
        sharpness = (windows[top, left] - beside) / (w * h)
        if sharpness > sharpest:
            best, inside = (left, top, left + w, top + h), windows[top, left] / sums[-1, -1]
            sharpest = sharpness
    x1, x2 = map(float, heat.x_edges[[*best[::2]]])
    y1, y2 = map(float, heat.y_edges[[*best[1::2]]])
    return (x1, y1, x2, y2), float(inside)


def expected_mask(
    probabilities: ArrayLike,
    numbers: Sequence[str],
    frame: Frame,
    order: Order = "xyxy",
    shape: tuple[int, int] = (SIDE, SIDE),
) -> NDArray[np.float32]:
    """The probability that each point is inside the box, with independent coordinates.

    `P(x1 <= x < x2) P(y1 <= y < y2)` at the centre of every cell: the expectation of the box's
    mask. If all four coordinates are certain it is that mask.

    Args:
        probabilities: `(4, N)`: of the N numbers, for each of the box's four coordinates; rows
            sum to 1 (`cof.types.Generation.likely`).
        numbers: the N numbers as written, in native coordinates (`BoxTemplate.numbers`).
        frame: the original image's rectangle in native coordinates.
        shape: `(H, W)` of the mask.

    Returns:
        `(H, W)` float32 in 0..1, over the whole original image.

    Example: the left edge is at 0 or in the middle with equal probability, the others are certain.

        >>> edges = [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
        >>> expected_mask(edges, ("0", "5", "10"), Frame.of_image(10.0), shape=(1, 4)).tolist()
        [[0.5, 0.5, 1.0, 1.0]]
    """
    first_x, first_y, last_x, last_y = np.asarray(probabilities, dtype=np.float64)
    if order == "yxyx":
        first_x, first_y, last_x, last_y = first_y, first_x, last_y, last_x
    points = [frame.to_image((value, value, value, value)) for value in map(float, numbers)]
    xs, ys = np.array(points)[:, :2].T
    inside = []  # of each column, and of each row
    axes = ((first_x, last_x, xs, shape[1]), (first_y, last_y, ys, shape[0]))
    for first, last, edges, cells in axes:
        before = edges[None, :] <= ((np.arange(cells) + 0.5) / cells)[:, None]  # (cells, N)
        inside.append(np.minimum(1.0, before @ first) * np.minimum(1.0, ~before @ last))
    return np.outer(inside[1], inside[0]).astype(np.float32)


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The borders of evenly spaced cells, from the centres of what they show of the image.

    Outermost cells that show padding too have moved centres: with enough others they are left out.
    """
    numbers = np.arange(len(centres))
    if len(centres) == 1:
        return np.array([0.0, 1.0])
    inner = slice(1, -1) if len(centres) >= 4 else slice(None)
    step, start = np.polyfit(numbers[inner], centres[inner], 1)
    return np.asarray((start + step * (np.arange(len(centres) + 1) - 0.5)).clip(0.0, 1.0).round(6))


def _cells_at(edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """The cell's number at evenly spaced points of 0..1; -1 before the first, `cells` after all."""
    cells = len(edges) - 1
    size = min(cells * _SAMPLES, _LARGEST)
    points = (np.arange(size) + 0.5) / size
    return np.asarray(np.searchsorted(edges, points, side="right") - 1)


def _average_in_cells(
    values: NDArray[np.float64], centres: NDArray[np.float64], image_wh: tuple[int, int]
) -> HeatMap:
    """The mean of the `(tokens,)` values whose `(tokens, 2)` centres lie in each cell of a grid."""
    width, height = image_wh
    cells = max(1.0, len(values) / 2)
    ideal = max(1.0, math.sqrt(cells * height / width))  # rows of square cells
    rows, columns = round(ideal), max(1, round(cells / ideal))
    x, y = centres.T
    sides = ((0.0, 1.0), (0.0, 1.0))
    number, y_edges, x_edges = np.histogram2d(y, x, (rows, columns), sides)
    total, _, _ = np.histogram2d(y, x, (rows, columns), sides, weights=values)
    for row, column in np.argwhere(number == 0):
        middle = ((column + 0.5) / columns, (row + 0.5) / rows)
        total[row, column] = values[((centres - middle) ** 2).sum(1).argmin()]
    return HeatMap(total / number.clip(min=1), x_edges, y_edges)
