"""Focuses: what the model is shown of the picture, and how much of a bias each token gets."""

from __future__ import annotations

import numpy as np
import pytest
from models import GRID, PATCH, picture
from zoo import assert_same, engine

from cof.errors import CofError
from cof.focuses import FOCUSES, Attention, Crop, Overlay, Soft
from cof.geometry.regions import EVERYTHING, Region
from cof.images import load_image
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Request

BOXES = Region(boxes=((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.9)))


def shown(focus: object, whole: object, region: Region = BOXES) -> np.ndarray:
    """What is shown of a picture, which the focus leaves as it is."""
    before = np.asarray(getattr(whole, "image", whole)).copy()
    after = np.asarray(focus.apply(Request(whole, "x"), region).image)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.asarray(getattr(whole, "image", whole)), before)
    return after


@pytest.mark.parametrize("encoded", [False, True])
def test_crop_is_the_box_around_all_boxes(encoded: bool) -> None:
    whole = picture((200, 100))
    crop = shown(Crop(), EncodedImage(whole) if encoded else whole)
    np.testing.assert_array_equal(crop, np.asarray(whole)[20:90, 20:140])


@pytest.mark.parametrize("box", [(0.0, 0.0, 0.001, 0.001), (1.0, 1.0, 1.0, 1.0), (0.9, 0.9, 2, 2)])
def test_crop_is_never_empty_nor_outside(box: tuple[float, float, float, float]) -> None:
    height, width, _ = shown(Crop(), picture((40, 30)), Region(boxes=(box,))).shape
    assert 1 <= width <= 4
    assert 1 <= height <= 3


@pytest.mark.parametrize(("where", "top"), [(0.0, 0), (0.5, 13), (1.0, 25)])
def test_crops_are_no_longer_and_thinner_than_pictures_may_be(where: float, top: int) -> None:
    """Qwen's processors refuse what is."""
    whole = picture((1000, 30))
    region = Region(boxes=((0.0, where - 0.01, 1.0, where + 0.01),))
    load_image(Crop().apply(Request(whole, "x"), region).image)
    np.testing.assert_array_equal(shown(Crop(), whole, region), np.asarray(whole)[top : top + 5])
    tall = Region(boxes=((0.5, 0.0, 0.5, 1.0),))
    assert shown(Crop(), picture((30, 1000)), tall).shape == (1000, 5, 3)


def inside(border: int = 0) -> np.ndarray:
    """The pixels of `BOXES` in a picture of 200 x 100, or their borders alone."""
    mask = np.zeros((100, 200), dtype=bool)
    for top, bottom, left, right in ((20, 40, 20, 60), (60, 90, 100, 140)):
        mask[top:bottom, left:right] = True
        if border:
            mask[top + border : bottom - border, left + border : right - border] = False
    return mask


def test_overlay_frames_each_box_and_leaves_the_rest() -> None:
    whole = picture((200, 100))
    after = shown(Overlay(), whole)
    red = (after == (255, 0, 0)).all(-1)
    np.testing.assert_array_equal(red, inside(border=2))
    np.testing.assert_array_equal(after[~red], np.asarray(whole)[~red])


@pytest.mark.parametrize("style", ["blur", "dim"])
def test_overlays_change_all_but_the_region(style: str) -> None:
    whole = picture((200, 100))
    before, after = np.asarray(whole).astype(int), shown(Overlay(style), whole).astype(int)  # type: ignore[arg-type]
    np.testing.assert_array_equal(after[inside()], before[inside()])
    changed = np.abs(after - before)[~inside()]
    assert changed.mean() > 20
    if style == "dim":
        np.testing.assert_allclose(after[~inside()], before[~inside()] * 0.4, atol=1)
    else:
        assert after[~inside()].std() < before[~inside()].std() / 3
        assert after[~inside()].mean() == pytest.approx(before[~inside()].mean(), abs=5)


def test_overlays_follow_a_mask() -> None:
    mask = np.zeros((100, 200), dtype=np.float32)
    mask[30:60, 50:70] = mask[40:50, 30:110] = 1.0
    whole = picture((200, 100))
    after = shown(Overlay("dim"), whole, Region(boxes=((0.15, 0.3, 0.55, 0.6),), mask=mask))
    same = (after == np.asarray(whole)).all(-1)
    assert same[mask > 0].all()
    assert same[mask == 0].mean() < 0.1


def test_the_overlay_is_a_setting() -> None:
    assert Settings(focus="overlay", overlay="blur").focus == Overlay("blur")
    with pytest.raises(CofError, match="overlay must be one of frame, blur, dim"):
        Overlay("glow")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FOCUSES)
def test_the_whole_image_is_shown_as_it_is(name: str) -> None:
    request = Request(picture((20, 10)), "x")
    focused = FOCUSES[name]().apply(request, EVERYTHING)
    assert focused.image is request.image
    assert not focused.others


CELLS = (0.25, 0.25, 0.625, 0.5)  # of a square image: 3 x 2 whole tokens


def of_pixels(tokens: np.ndarray) -> np.ndarray:
    return np.kron(tokens, np.ones((PATCH, PATCH))).astype(np.float32)


def marked() -> np.ndarray:
    mask = np.zeros((GRID, GRID))
    mask[2:4, 2:5] = 1.0
    return mask


class TestSoft:
    @pytest.mark.parametrize("name", ["llava", "instructblip"])
    def test_with_zeros_and_ones_it_is_the_binary_focus(self, name: str) -> None:
        plain = Request(picture((112, 112)), "which digit?")
        elsewhere = ((0.0, 0.0, 0.1, 0.1),)
        asked = [
            Soft(8.0).apply(plain, Region(boxes=elsewhere, heat_map=of_pixels(marked()))),
            Soft(8.0).apply(plain, Region(boxes=(CELLS,), mask=of_pixels(marked()))),
            Soft(8.0).apply(plain, Region(boxes=(CELLS,))),
            Attention(8.0).apply(plain, Region(boxes=(CELLS,))),
            *(focus(8.0).apply(plain, EVERYTHING) for focus in (Soft, Attention)),
        ]
        *same, binary, whole, all_of_it = engine(name).generate(asked, Decoding(5))
        assert_same([*same, whole], [binary] * 3 + [all_of_it])

    def test_weights_of_tokens(self) -> None:
        """Those of the heat map; without one the share of a token that is inside."""
        tokens = engine("llava").tokens
        heat = np.random.default_rng(0).random((GRID, GRID))
        weights = tokens.weights((112, 112), Region(boxes=(CELLS,), heat_map=of_pixels(heat)))
        np.testing.assert_allclose(weights, heat, atol=0.51 / 255)
        half = Region(boxes=((0.25, 0.25, 0.5625, 0.5),))  # half of the third column of tokens
        expected = marked()
        expected[2:4, 4] = 0.5
        np.testing.assert_allclose(tokens.weights((112, 112), half), expected, atol=0.05)
        everywhere = Region(heat_map=np.ones((4, 4), dtype=np.float32))
        weights = tokens.weights((112, 56), everywhere)  # padding has none
        np.testing.assert_array_equal(weights > 0, tokens.visibility((112, 56)).visible)

    def test_heat_goes_through_the_pipeline_as_it_is(self) -> None:
        heat = of_pixels(marked())
        region = Region(boxes=((0.0, 0.0, 0.5, 0.5),), heat_map=heat)
        for settings in (Settings(expand=2.0), Settings(min_box=0.9), Settings(released=True)):
            after = settings.post_process(region, (60, 40))
            np.testing.assert_array_equal(after.heat_map, heat)
