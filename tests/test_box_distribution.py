"""The expected mask of a box whose coordinates are distributions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cof.geometry.boxes import Frame
from cof.geometry.heatmap import expected_mask
from cof.prompting.dialects import Order

NUMBERS = tuple(str(n) for n in range(0, 101, 10))
FRAMES = {"image": Frame.of_image(100.0), "padded": Frame(0.0, 50 / 3, 100.0, 250 / 3)}


def certain(*places: int) -> np.ndarray:
    probabilities = np.zeros((4, len(NUMBERS)))
    probabilities[range(4), places] = 1
    return probabilities


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("order", ["xyxy", "yxyx"])
def test_a_certain_box_is_its_own_mask(frame: Frame, order: Order) -> None:
    places = {"xyxy": (2, 3, 7, 6), "yxyx": (3, 2, 6, 7)}[order]
    mask = expected_mask(certain(*places), NUMBERS, frame, order, (50, 60))
    x1, y1, x2, y2 = frame.to_image((20.0, 30.0, 70.0, 60.0))
    x, y = (np.arange(60) + 0.5) / 60, (np.arange(50) + 0.5) / 50
    inside = ((y1 <= y) & (y < y2))[:, None] & ((x1 <= x) & (x < x2))[None, :]
    np.testing.assert_array_equal(mask, inside.astype(np.float32))
    assert 0 < mask.mean() < 1


def test_is_the_expectation_over_all_boxes() -> None:
    frame = FRAMES["padded"]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(NUMBERS)), 4)
    few = np.where(probabilities >= np.sort(probabilities)[:, -3:-2], probabilities, 0)
    few /= few.sum(1, keepdims=True)
    expected = np.zeros((9, 8))
    for places in itertools.product(*(row.nonzero()[0] for row in few)):
        weight = np.prod(few[range(4), list(places)])
        expected += weight * expected_mask(certain(*places), NUMBERS, frame, shape=(9, 8))
    np.testing.assert_allclose(
        expected_mask(few, NUMBERS, frame, shape=(9, 8)), expected, atol=1e-6
    )
