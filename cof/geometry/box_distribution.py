"""A box of which every number is a distribution, as a mask with degrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cof.geometry.boxes import Frame
from cof.prompting.dialects import Order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SIDE = 96
"""Cells in a row and in a column: finer than the token grids of today's models."""


def soft_mask(
    likely: ArrayLike,
    numbers: Sequence[str],
    frame: Frame,
    order: Order = "xyxy",
    shape: tuple[int, int] = (SIDE, SIDE),
) -> NDArray[np.float32]:
    """How likely each place is inside the box, the four numbers being taken as independent.

    `P(x1 <= x < x2) P(y1 <= y < y2)` at the middle of every cell: the expectation of the box's own
    mask. Where the model is sure of all four numbers it is that mask.

    Args:
        likely: `(4, N)` probabilities of the N numbers at a box's four places, rows summing to 1
            (`cof.types.Generation.likely`).
        numbers: what they are, as written, in native coordinates (`BoxTemplate.numbers`).
        frame: where the original image lies in these.
        order: of the four numbers.
        shape: `(H, W)` of the mask.

    Returns:
        `(H, W)` float32 in 0..1, laid over the whole original image.

    Example: the left edge is at 0 or in the middle, as likely; the others are certain.

        >>> likely = [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
        >>> soft_mask(likely, ("0", "5", "10"), Frame.of_image(10.0), shape=(1, 4)).tolist()
        [[0.5, 0.5, 1.0, 1.0]]
    """
    first_x, first_y, last_x, last_y = np.asarray(likely, dtype=np.float64)
    if order == "yxyx":
        first_x, first_y, last_x, last_y = first_y, first_x, last_y, last_x
    values = np.array([float(number) for number in numbers])
    places = [frame.to_image((value, value, value, value)) for value in values]
    xs, ys = np.array(places)[:, :2].T
    rows, columns = shape
    across = _inside(first_x, last_x, xs, columns)
    down = _inside(first_y, last_y, ys, rows)
    return (down[:, None] * across[None, :]).astype(np.float32)


def _inside(
    first: NDArray[np.float64], last: NDArray[np.float64], at: NDArray[np.float64], cells: int
) -> NDArray[np.float64]:
    """`P(first <= x) P(last > x)` at the middles of `cells` cells of 0..1."""
    begun = at[None, :] <= ((np.arange(cells) + 0.5) / cells)[:, None]  # (cells, N)
    return np.minimum(1.0, begun @ first) * np.minimum(1.0, ~begun @ last)
