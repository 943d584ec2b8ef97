"""A grid of image tokens over the original image, pixel by pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cof.geometry.boxes import Frame


def cells_of_pixels(
    frame: Frame, grid_hw: tuple[int, int], image_wh: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The grid row of each pixel row `(H,)` and the grid column of each pixel column `(W,)`.

    Args:
        frame: the original's rectangle in 0..1 of what the grid shows.
        grid_hw: rows and columns of image tokens.
        image_wh: the original's size, or that of a copy of it at any scale.

    Returns:
        Numbers from 0; -1 for pixels that the grid does not reach (cut off by a centre crop).

    Examples: a 4x2 image padded to a square, and the same one cropped to its centre, under 4x4
    and 2x2 tokens.

        >>> rows, columns = cells_of_pixels(Frame.padded_square((4, 2)), (4, 4), (4, 2))
        >>> rows.tolist(), columns.tolist()
        ([1, 2], [0, 1, 2, 3])
        >>> rows, columns = cells_of_pixels(Frame.centre_crop((4, 2)), (2, 2), (4, 2))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [-1, 0, 1, -1])
    """
    width, height = image_wh
    return (
        _cells(frame.top, frame.bottom, grid_hw[0], height),
        _cells(frame.left, frame.right, grid_hw[1], width),
    )


def spread(
    values: NDArray[np.generic], frame: Frame, image_wh: tuple[int, int]
) -> NDArray[np.float64]:
    """Values of the tokens laid over the original: `(grid_h, grid_w)` -> `(H, W)`.

    NaN where no token shows the pixel. Tokens that show padding only do not appear.

        >>> spread(np.array([[1, 2], [3, 4]]), Frame.centre_crop((4, 2)), (4, 2))
        array([[nan,  1.,  2., nan],
               [nan,  3.,  4., nan]])
    """
    rows, columns = cells_of_pixels(frame, (values.shape[0], values.shape[1]), image_wh)
    pixels = values.astype(np.float64)[rows[:, None], columns[None, :]]
    pixels[rows < 0] = np.nan
    pixels[:, columns < 0] = np.nan
    return pixels


def lines(frame: Frame, grid_hw: tuple[int, int], image_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """`(H, W)`: the pixels just after a border between two tokens."""
    rows, columns = cells_of_pixels(frame, grid_hw, image_wh)
    horizontal = np.diff(rows, prepend=rows[:1]) != 0
    vertical = np.diff(columns, prepend=columns[:1]) != 0
    return np.asarray(horizontal[:, None] | vertical[None, :])


def _cells(low: float, high: float, cells: int, pixels: int) -> NDArray[np.int64]:
    position = low + (np.arange(pixels) + 0.5) / pixels * (high - low)
    index = np.floor(position * cells).astype(np.int64)
    index[(index < 0) | (index >= cells)] = -1
    return index
