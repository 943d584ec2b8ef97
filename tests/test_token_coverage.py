"""Where boxes land among the image tokens, against the model's own features."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from models import GRID, checkpoint, picture
from PIL import Image

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofWarning
from cof.families.table import FAMILIES
from cof.families.token_coverage import TokenVisibility, corner_cells
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import EVERYTHING, Region, region_from_mask
from cof.types import Highlight

SIZES = [(60, 40), (150, 333), (64, 64), (113, 97)]


@functools.cache
def engine(name: str = "llava", pad_to_square: bool | None = True) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name), pad_to_square=pad_to_square)


def mask_of(box: XYXY, wh: tuple[int, int] = (224, 224), **options: Any) -> Any:
    highlight = Highlight(Region(boxes=(box,)), 2.0, **options)
    return engine().token_mask(wh, highlight)


@pytest.mark.parametrize("wh", SIZES, ids=str)
def test_padding_has_no_coverage(wh: tuple[int, int]) -> None:
    share = engine().tokens.visibility(wh).coverage(EVERYTHING)
    frame = Frame.padded_square(wh)
    edges = np.arange(GRID + 1) / GRID
    rows = (edges[1:] > frame.top) & (edges[:-1] < frame.bottom)
    columns = (edges[1:] > frame.left) & (edges[:-1] < frame.right)
    inside = rows[:, None] & columns[None, :]
    assert np.isnan(share[~inside]).all()
    assert (share[~np.isnan(share)] == 1).all()
    assert (~np.isnan(share)).sum() >= inside.sum() - 2 * GRID  # but for slivers at the border


def test_mask_of_a_box_on_whole_tokens() -> None:
    """A square image: token (row, column) shows exactly its share of the image."""
    made = engine()
    box = (2 / GRID, 3 / GRID, 5 / GRID, 4 / GRID)
    for name, pad in (("llava", True), ("llava", False), ("blip-2", None), ("instructblip", None)):
        mask = engine(name, pad).token_mask((224, 224), Highlight(Region(boxes=(box,)), 2.0))
        expected = np.zeros((GRID, GRID), bool)
        expected[3:4, 2:5] = True
        np.testing.assert_array_equal(mask, expected)
    both = Region(boxes=(box, (0.0, 0.0, 1 / GRID, 1 / GRID)))
    assert made.token_mask((224, 224), Highlight(both, 2.0)).sum() == 4


def test_mask_region_and_the_whole() -> None:
    made = engine()
    disc = np.zeros((40, 60), np.float32)
    disc[10:20, 5:15] = 1
    region = region_from_mask(disc)
    as_box = Region(boxes=region.boxes)
    np.testing.assert_array_equal(
        made.token_mask((60, 40), Highlight(region, 2.0)),
        made.token_mask((60, 40), Highlight(as_box, 2.0)),
    )
    assert made.token_mask((60, 40), Highlight(EVERYTHING, 2.0)).all()  # padding included
    full = Region(boxes=((0.0, 0.0, 1.0, 1.0),))
    assert not made.token_mask((60, 40), Highlight(full, 2.0)).all()


def test_smallest_box_gets_its_token() -> None:
    assert np.argwhere(mask_of((0.52, 0.27, 0.521, 0.271))).tolist() == [[2, 4]]


def test_a_region_outside_the_crop_warns_and_has_no_token() -> None:
    left_end = Highlight(Region(boxes=((0.0, 0.2, 0.1, 0.8),)), 2.0)
    with pytest.warns(CofWarning, match=r"outside what it sees \(its processor crops"):
        cropped = engine("llava", False).token_mask((100, 60), left_end)
    assert not cropped.any()
    assert engine().token_mask((100, 60), left_end).any()


def test_a_region_that_resizing_leaves_nothing_of_warns() -> None:
    speck = Highlight(Region(boxes=((0.5, 0.5, 0.5001, 0.5001),)), 2.0)
    with pytest.warns(CofWarning, match="too small for the model"):
        assert not engine().token_mask((4000, 3000), speck).any()


def test_very_long_images_are_resized_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cof.families.image_tokens.MAX_SIDE", 100)
    made = TransformersEngine.from_pretrained(checkpoint("llava"))
    long = picture((400, 20))
    assert made.frame((400, 20)) == Frame.padded_square((100, 5))
    small = long.resize((100, 5), Image.Resampling.LANCZOS)
    one, other = made.encode([long, small])
    assert torch.equal(one.features, other.features)


KINDS = {kind.replace("-", "") for each in FAMILIES if each.stand_in for kind in each.model_types}
STAND_INS = [name for name in zoo.EVERY if name.replace("-", "") in KINDS]


@pytest.mark.parametrize("name", STAND_INS)
def test_a_small_image_stands_for_a_large_one(name: str) -> None:
    tokens, wh = zoo.engine(name).tokens, (1203, 1601)
    large, small = TokenVisibility(tokens.token_means, wh), tokens.visibility(wh)
    assert max(small.shown_wh) < max(large.shown_wh) == max(wh)
    assert np.array_equal(large.visible, small.visible)
    assert small.centres == pytest.approx(large.centres, abs=2e-3, nan_ok=True)
    for box in ((0.1, 0.2, 0.35, 0.4), (0.0, 0.0, 0.21, 0.77)):
        region = Region(boxes=(box,))
        assert small.coverage(region) == pytest.approx(
            large.coverage(region), abs=0.02, nan_ok=True
        )


def test_where_none_stands_in() -> None:
    """A small image, a long one, and a family whose processor cuts by the size."""
    for name, wh in (("llava", (700, 900)), ("llava", (60, 4000)), ("internvl", (1203, 1601))):
        assert zoo.engine(name).tokens.visibility(wh).shown_wh == wh


class TestCornerCells:
    """Cell by cell: tests/test_parity.py."""

    def test_frame_and_engine(self) -> None:
        """A 2:1 image in a square: the box's rows lie in the middle half."""
        rows, columns = np.nonzero(mask_of((0.0, 0.0, 0.5, 1.0), (200, 100), cells="corners"))
        assert (rows.min(), rows.max()) == (int(0.25 * 7), int(0.75 * 7))
        assert (columns.min(), columns.max()) == (0, int(0.5 * 7))

    def test_outside_the_crop(self) -> None:
        frame = Frame.centre_crop((300, 100))
        assert not corner_cells([(0.0, 0.0, 0.2, 1.0)], frame, (8, 8)).any()
