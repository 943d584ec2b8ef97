"""Focuses that edit the picture: what the model is shown."""

from __future__ import annotations

import numpy as np
import pytest
from models import picture
from PIL import Image

from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.focuses import FOCUSES, Crop, Overlay
from cof.geometry.regions import EVERYTHING, Region
from cof.images import load_image
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import EncodedImage, Request

BOXES = Region(boxes=((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.9)))


def shown(request: Request) -> np.ndarray:
    assert isinstance(request.image, Image.Image)
    return np.asarray(request.image)


@pytest.mark.parametrize("encoded", [False, True])
def test_crop_is_the_box_around_all_boxes(encoded: bool) -> None:
    whole = picture((200, 100))
    request = Request(EncodedImage(whole) if encoded else whole, "x")
    np.testing.assert_array_equal(
        shown(Crop().apply(request, BOXES)), np.asarray(whole)[20:90, 20:140]
    )


@pytest.mark.parametrize("box", [(0.0, 0.0, 0.001, 0.001), (1.0, 1.0, 1.0, 1.0), (0.9, 0.9, 2, 2)])
def test_crop_is_never_empty_nor_outside(box: tuple[float, float, float, float]) -> None:
    request = Request(picture((40, 30)), "x")
    height, width, _ = shown(Crop().apply(request, Region(boxes=(box,)))).shape
    assert 1 <= width <= 4
    assert 1 <= height <= 3


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_crops_are_no_longer_and_thinner_than_pictures_may_be(where: float) -> None:
    """Qwen's processors refuse what is."""
    whole = picture((1000, 30))
    region = Region(boxes=((0.0, where - 0.01, 1.0, where + 0.01),))
    crop = Crop().apply(Request(whole, "x"), region).image
    assert crop.size == (1000, 5)
    load_image(crop)
    top = {0.0: 0, 0.5: 13, 1.0: 25}[where]
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(whole)[top : top + 5])
    tall = Region(boxes=((0.5, 0.0, 0.5, 1.0),))
    assert Crop().apply(Request(picture((30, 1000)), "x"), tall).image.size == (5, 1000)


def test_overlay_frames_each_box_and_leaves_the_rest() -> None:
    whole = picture((200, 100))
    before = np.asarray(whole).copy()
    after = shown(Overlay().apply(Request(whole, "x"), BOXES))
    red = (after == (255, 0, 0)).all(-1)
    expected = np.zeros_like(red)
    for top, bottom, left, right in ((20, 40, 20, 60), (60, 90, 100, 140)):
        expected[top:bottom, left:right] = True
        expected[top + 2 : bottom - 2, left + 2 : right - 2] = False
    np.testing.assert_array_equal(red, expected)
    np.testing.assert_array_equal(after[~red], before[~red])
    np.testing.assert_array_equal(np.asarray(whole), before)  # the caller's picture is untouched


@pytest.mark.parametrize("style", ["blur", "dim"])
def test_overlays_change_all_but_the_region(style: str) -> None:
    whole = picture((200, 100))
    before = np.asarray(whole).astype(int)
    after = shown(Overlay(style).apply(Request(whole, "x"), BOXES)).astype(int)  # type: ignore[arg-type]
    inside = np.zeros(before.shape[:2], dtype=bool)
    for top, bottom, left, right in ((20, 40, 20, 60), (60, 90, 100, 140)):
        inside[top:bottom, left:right] = True
    np.testing.assert_array_equal(after[inside], before[inside])
    changed = np.abs(after - before)[~inside]
    assert changed.mean() > 20
    if style == "dim":
        np.testing.assert_allclose(after[~inside], before[~inside] * 0.4, atol=1)
    else:
        assert after[~inside].std() < before[~inside].std() / 3
        assert after[~inside].mean() == pytest.approx(before[~inside].mean(), abs=5)
    np.testing.assert_array_equal(np.asarray(whole), before)


def test_overlays_follow_a_mask() -> None:
    mask = np.zeros((100, 200), dtype=np.float32)
    mask[30:60, 50:70] = mask[40:50, 30:110] = 1.0
    region = Region(boxes=((0.15, 0.3, 0.55, 0.6),), mask=mask)
    whole = picture((200, 100))
    after = shown(Overlay("dim").apply(Request(whole, "x"), region))
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


@pytest.mark.parametrize("focus", ["crop", "overlay"])
def test_in_the_pipeline(focus: str) -> None:
    engine = FakeEngine(lambda request: "[0.2, 0.2, 0.4, 0.4]")
    cof = CoF(engine, Settings(expand=1.0, focus=focus))
    answer = cof(Image.new("RGB", (50, 50)), "Which digit?")
    (last,), _ = engine.calls[-1]
    assert last.highlight is None
    assert answer.found
    assert last.image.size == ((10, 10) if focus == "crop" else (50, 50))
    assert np.asarray(last.image).any() == (focus == "overlay")
