"""Geometry: worked examples, properties on random boxes, and refusals."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from cof.errors import CofError
from cof.geometry.boxes import (
    XYXY,
    Frame,
    area,
    centre,
    contains_point,
    expand,
    iou,
    union,
    widen,
)
from cof.geometry.regions import (
    EVERYTHING,
    Region,
    coverage_image,
    expand_region,
    region_from_boxes,
    region_from_mask,
    region_from_polygon,
)


def random_box(rng: random.Random) -> XYXY:
    x1, x2 = sorted((rng.random(), rng.random()))
    y1, y2 = sorted((rng.random(), rng.random()))
    return (x1, y1, x2, y2)


def test_frame_corners() -> None:
    assert Frame.padded_square((480, 640)) == Frame(0.125, 0, 0.875, 1)
    assert Frame.pixels((640, 480)).to_image((320, 120, 640, 480)) == (0.5, 0.25, 1.0, 1.0)
    crop = Frame.centre_crop((500, 300))
    assert (crop.left, crop.right) == pytest.approx((-1 / 3, 4 / 3))
    assert Frame.centre_crop((300, 500)).top == pytest.approx(-1 / 3)
    # 101 - 100 = 1 pixel of padding: all of it after the image (integer division, as LLaVA's)
    assert Frame.padded_square((101, 100)).top == 0


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.3, 2.0, 10.0])
def test_expand_keeps_the_size_and_stays_inside(alpha: float) -> None:
    rng = random.Random(1)
    for _ in range(200):
        box = random_box(rng)
        x1, y1, x2, y2 = expand(box, alpha)
        assert 0 <= x1 <= x2 <= 1
        assert 0 <= y1 <= y2 <= 1
        assert x2 - x1 == pytest.approx(min(1, alpha * (box[2] - box[0])))
        assert y2 - y1 == pytest.approx(min(1, alpha * (box[3] - box[1])))
        assert alpha != 1 or (x1, y1, x2, y2) == box


def test_at_least() -> None:
    assert widen((0.1, 0.1, 0.4, 0.4), 0.2) == pytest.approx((0.1, 0.1, 0.4, 0.4))
    assert widen((0.0, 0.0, 0.01, 1.0), 0.1) == (0.0, 0.0, 0.1, 1.0)


def test_small_measures() -> None:
    box = (0.25, 0.0, 0.75, 0.5)
    assert area(box) == 0.25
    assert area((0.5, 0.5, 0.4, 0.9)) == 0
    assert centre(box) == (0.5, 0.25)
    assert contains_point(box, (0.25, 0.5))
    assert not contains_point(box, (0.2, 0.4))
    assert iou(box, box) == 1
    assert iou(box, (0.8, 0.8, 0.9, 0.9)) == 0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert union([box]) == box


def polygon(points: Any) -> Region:
    return region_from_polygon(points, (10, 10))


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (region_from_boxes, [], "at least one"),
        (region_from_boxes, [(0.1, 0.1, 0.2)], "x1, y1, x2, y2"),
        *((region_from_boxes, of, "list of") for of in (5, [0.1, 0.1, 0.2, 0.3], [[*"abcd"]])),
        (region_from_boxes, [(0.1, 0.1, 0.1, 0.3)], "no area"),
        *((region_from_boxes, [(x, 0, 1, 1)], "outside 0..1") for x in (math.nan, -0.1, 10)),
        (polygon, [(0, 0), (1, 1)], "three"),
        *((polygon, [(0, 0), (1, 1), (x, 0)], "0..1") for x in (2, math.nan)),
        *((polygon, [(0, 0), (1, 1), of], "list of") for of in ((1, 0, 1), ("a", "b"), 0.3)),
        (polygon, 3, "list of"),
        (region_from_mask, np.zeros((4, 4)), "empty"),
        *((region_from_mask, np.zeros(shape), "shape") for shape in ((4, 4, 3), (0, 4))),
        *((region_from_mask, np.full((4, 4), of), "0..1") for of in (2.0, np.nan)),
        (region_from_mask, np.full((4, 4), -1), "0..255"),
        (region_from_mask, np.full((4, 4), "x"), "bool"),
        (region_from_mask, [[1, 0], [1]], "rows of equal length"),
    ],
)
def test_refusals(make: Any, given: Any, says: str) -> None:
    with pytest.raises(CofError, match=says):
        make(given)


def test_region_from_boxes_orders_corners() -> None:
    region = region_from_boxes([(0.9, 0.2, 0.1, 0.6), (0, 0, 1, 1)])
    assert region.boxes == ((0.1, 0.2, 0.9, 0.6), (0.0, 0.0, 1.0, 1.0))


def test_polygon_covers_what_it_encloses() -> None:
    region = region_from_polygon([(0, 0), (1, 0), (0, 1)], (60, 40))
    pixels = np.asarray(coverage_image(region, (60, 40)))
    assert pixels.shape == (40, 60)
    assert pixels[2, 2] == 255
    assert pixels[-2, -2] == 0
    assert pixels.mean() / 255 == pytest.approx(0.5, abs=0.03)


def test_masks_of_every_kind_agree() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 1:5] = True
    expected = np.asarray(coverage_image(region_from_mask(mask), (8, 6)))
    assert (expected == np.where(mask, 255, 0)).all()
    for other in (mask.astype(np.uint8) * 255, mask.astype(int), mask.astype(float)):
        assert (np.asarray(coverage_image(region_from_mask(other), (8, 6))) == expected).all()


def test_mask_expands_like_its_box() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[40:60, 0:20] = True
    region = region_from_mask(mask)
    assert expand_region(region, 1.0) is region
    grown = expand_region(region, 2.0)
    assert grown.boxes == (pytest.approx((0.0, 0.3, 0.4, 0.7)),)
    assert grown.mask is not None
    assert grown.mask[30:70, 0:40].mean() == pytest.approx(1, abs=0.05)
    assert grown.mask.sum() == pytest.approx(4 * mask.sum(), rel=0.06)


def test_coverage_counts_pixel_centres() -> None:
    pixels = np.asarray(coverage_image(Region(boxes=((0.25, 0.5, 0.75, 1.0),)), (8, 4)))
    expected = np.zeros((4, 8), dtype=np.uint8)
    expected[2:4, 2:6] = 255
    assert (pixels == expected).all()


def test_coverage_never_loses_a_region() -> None:
    speck = (0.5001, 0.5001, 0.5002, 0.5002)
    assert np.count_nonzero(coverage_image(Region(boxes=(speck,)), (10, 10))) == 1
    assert np.count_nonzero(coverage_image(Region(boxes=((0.9999, 0, 1, 1),)), (3, 1))) == 1
    mask = np.zeros((1000, 1000), dtype=np.float32)
    mask[999, 999] = 0.001
    assert np.count_nonzero(coverage_image(region_from_mask(mask), (5, 5))) >= 1


def test_coverage_of_several_boxes_and_of_everything() -> None:
    both = Region(boxes=((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)))
    assert np.count_nonzero(coverage_image(both, (10, 10))) == 50
    assert np.asarray(coverage_image(EVERYTHING, (7, 5))).min() == 255
    assert np.asarray(coverage_image(Region(), (7, 5))).max() == 0
    outside = Region(boxes=((-0.5, -0.5, -0.1, -0.1),))
    assert np.asarray(coverage_image(outside, (7, 5))).max() == 0
