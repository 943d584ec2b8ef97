"""The expected mask of a box whose coordinates are distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cof.geometry.boxes import Frame
from cof.prompting.dialects import Order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SIDE = 96
"""Side of the mask in cells: finer than the token grids of today's models."""


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
        order: of the four coordinates.
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
    values = np.array([float(number) for number in numbers])
    points = [frame.to_image((value, value, value, value)) for value in values]
    xs, ys = np.array(points)[:, :2].T
    height, width = shape
    horizontal = _inside(first_x, last_x, xs, width)
    vertical = _inside(first_y, last_y, ys, height)
    return (vertical[:, None] * horizontal[None, :]).astype(np.float32)


def _inside(
    first: NDArray[np.float64], last: NDArray[np.float64], edges: NDArray[np.float64], cells: int
) -> NDArray[np.float64]:
    """`(cells,)`: `P(first <= x) P(last > x)` at the centres x of the cells of 0..1.

    Args:
        first, last: `(N,)` probabilities of each edge to be the first or the last one.
        edges: `(N,)`, in 0..1.
        cells: how many cells 0..1 is divided into.
    """
    before = edges[None, :] <= ((np.arange(cells) + 0.5) / cells)[:, None]  # (cells, N)
    return np.minimum(1.0, before @ first) * np.minimum(1.0, ~before @ last)
