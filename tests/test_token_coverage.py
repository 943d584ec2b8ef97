"""Where boxes land among the image tokens, against the model's own features."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from models import GRID, checkpoint, picture
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofWarning
from cof.families.token_coverage import INSIDE, corner_cells, token_coverage
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import EVERYTHING, Region, coverage_image, region_from_mask
from cof.types import Highlight


def _local(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """Attention that mixes nothing: a feature then depends on its own patch alone."""
    return value.transpose(1, 2), None


AttentionInterface.register("test_local", _local)

MODELS = [("llava", True), ("llava", False), ("blip-2", None), ("instructblip", None)]
SIZES = [(60, 40), (150, 333), (64, 64), (113, 97)]
BOXES: dict[str, XYXY] = {
    "middle": (0.37, 0.41, 0.66, 0.7),
    "left edge": (0.0, 0.3, 0.2, 0.6),
    "right edge": (0.8, 0.3, 1.0, 0.6),
    "top left corner": (0.0, 0.0, 0.1, 0.1),
    "bottom right corner": (0.9, 0.9, 1.0, 1.0),
    "smaller than a token": (0.5, 0.5, 0.53, 0.53),
    "a line": (0.1, 0.5, 0.9, 0.5001),
    "all": (0.0, 0.0, 1.0, 1.0),
}


@functools.cache
def engine(name: str, pad_to_square: bool | None) -> TransformersEngine:
    made = TransformersEngine.from_pretrained(
        checkpoint(name), pad_to_square=pad_to_square, dtype="float64"
    )
    made.model.set_attn_implementation({"vision_config": "test_local"})
    return made


def coverage(made: TransformersEngine, region: Region, wh: tuple[int, int]) -> Any:
    return token_coverage(made.tokens.token_means, made.tokens.visibility(wh), region)


def change(made: TransformersEngine, one: Image.Image, other: Image.Image) -> Any:
    """`(GRID, GRID)`: how much the image features differ between two images."""
    before, after = (encoded.features for encoded in made.encode([one, other]))
    differs = (before - after).norm(dim=-1)
    return differs[-GRID * GRID :].reshape(GRID, GRID).numpy()


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("wh", SIZES, ids=str)
@pytest.mark.parametrize(("name", "pad"), MODELS)
def test_coverage_is_where_the_features_change(
    name: str, pad: bool | None, wh: tuple[int, int], box: XYXY
) -> None:
    made, region = engine(name, pad), Region(boxes=(box,))
    share = np.nan_to_num(coverage(made, region, wh))
    white_box = coverage_image(region, wh)
    black = Image.new("RGB", wh)
    touched = change(made, black, white_box.convert("RGB")) > 1e-11
    np.testing.assert_array_equal(share > 0, touched)

    noise = picture(wh)
    painted = noise.copy()
    painted.paste((255, 0, 255), mask=white_box)
    moved = change(made, noise, painted)
    assert (moved[share >= INSIDE] > 0.05 * moved.max()).all()
    faint = max(0.05 * moved.max(), 1e-11)  # a bicubic kernel's negative lobes; float64 noise
    assert (moved[share == 0] < faint).all()


@pytest.mark.parametrize("wh", SIZES, ids=str)
def test_padding_has_no_coverage(wh: tuple[int, int]) -> None:
    made = engine("llava", True)
    share = coverage(made, EVERYTHING, wh)
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
    made = engine("llava", True)
    box = (2 / GRID, 3 / GRID, 5 / GRID, 4 / GRID)
    for name, pad in MODELS:
        mask = engine(name, pad).token_mask((224, 224), Highlight(Region(boxes=(box,)), 2.0))
        expected = np.zeros((GRID, GRID), bool)
        expected[3:4, 2:5] = True
        np.testing.assert_array_equal(mask, expected)
    both = Region(boxes=(box, (0.0, 0.0, 1 / GRID, 1 / GRID)))
    assert made.token_mask((224, 224), Highlight(both, 2.0)).sum() == 4


def test_mask_region_and_the_whole() -> None:
    made = engine("llava", True)
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
    made = engine("llava", True)
    speck = Region(boxes=((0.52, 0.27, 0.521, 0.271),))
    mask = made.token_mask((224, 224), Highlight(speck, 2.0))
    assert np.argwhere(mask).tolist() == [[2, 4]]


def test_a_region_outside_the_crop_warns_and_has_no_token() -> None:
    left_end = Highlight(Region(boxes=((0.0, 0.2, 0.1, 0.8),)), 2.0)
    with pytest.warns(CofWarning, match="outside the part of the image that the model sees"):
        cropped = engine("llava", False).token_mask((100, 60), left_end)
    assert not cropped.any()
    assert engine("llava", True).token_mask((100, 60), left_end).any()


@pytest.mark.parametrize("wh", [(1, 1), (1, 40), (400, 3)])
def test_extreme_shapes(wh: tuple[int, int]) -> None:
    made = engine("llava", True)
    mask = made.token_mask(wh, Highlight(Region(boxes=((0.0, 0.0, 1.0, 1.0),)), 2.0))
    assert mask.any()
    assert torch.isfinite(made.encode([picture(wh)])[0].features).all()


def test_very_long_images_are_resized_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cof.families.image_tokens.MAX_SIDE", 100)
    made = TransformersEngine.from_pretrained(checkpoint("llava"))
    long = picture((400, 20))
    assert made.frame((400, 20)) == Frame.padded_square((100, 5))
    small = long.resize((100, 5), Image.Resampling.LANCZOS)
    one, other = made.encode([long, small])
    assert torch.equal(one.features, other.features)


class TestCornerCells:
    def test_rule_of_the_released_code(self) -> None:
        grid = 24
        x1, y1, x2, y2 = box = (0.31, 0.1, 0.62, 0.97)
        cells = corner_cells([box], Frame.of_image(), (grid, grid))
        for row in range(grid):
            for column in range(grid):
                inside = int(y1 * 23) <= row <= int(y2 * 23)
                inside &= int(x1 * 23) <= column <= int(x2 * 23)
                assert cells[row, column] == inside

    def test_frame_and_engine(self) -> None:
        """A 2:1 image in a square: the box's rows lie in the middle half."""
        mask = engine("llava", True).token_mask(
            (200, 100), Highlight(Region(boxes=((0.0, 0.0, 0.5, 1.0),)), 2.0, cells="corners")
        )
        rows, columns = np.nonzero(mask)
        assert (rows.min(), rows.max()) == (int(0.25 * 7), int(0.75 * 7))
        assert (columns.min(), columns.max()) == (0, int(0.5 * 7))

    def test_outside_the_crop(self) -> None:
        frame = Frame.centre_crop((300, 100))
        assert not corner_cells([(0.0, 0.0, 0.2, 1.0)], frame, (8, 8)).any()

    def test_differs_from_coverage_where_it_loses_a_cell(self) -> None:
        made, box = engine("llava", True), Region(boxes=((0.8, 0.8, 0.95, 0.95),))
        exact = made.token_mask((224, 224), Highlight(box, 2.0))
        corners = made.token_mask((224, 224), Highlight(box, 2.0, cells="corners"))
        assert exact[7, 7]
        assert not corners[7, 7]
