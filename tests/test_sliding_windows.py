"""Sliding windows: prefixes and branches equal what is computed from the start.

Every test runs with a window that is shorter than the prompts, with one that the answers outgrow,
and with one that nothing fills.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from models import prompts_of
from test_prefix_cache import BOX, IMAGES, MIDDLE, SHORT, assert_same, counted, fill, requests
from zoo import zoo

from cof.engines.transformers.box_decoding import decode_boxes
from cof.engines.transformers.engine import TransformersEngine
from cof.geometry.regions import Region
from cof.types import Decoding, EncodedImage, Highlight, Request

LONG = Decoding(max_new_tokens=12)
WINDOWS = {"short": 24, "outgrown": 0, "ample": 4096}
NAMES = ["gemma3", "gemma4", "aya_vision"]
BOTH_WAYS = ["gemma3", "gemma4"]
"""Image tokens attend to earlier and later tokens of their image."""


@functools.cache
def engine(name: str, window: str = "short") -> TransformersEngine:
    made = TransformersEngine.from_pretrained(zoo(name))
    size = WINDOWS[window]
    if not size:  # the longest prompt and three more tokens
        rows = requests(IMAGES, "plain")
        size = prompts_of(made, rows).inputs["input_ids"].shape[1] + 3
    made.model.config.get_text_config().sliding_window = size
    return made


def known(made: TransformersEngine, images: Any = IMAGES) -> list[EncodedImage]:
    """Images with their prefixes, computed in a pass of their own."""
    encoded = made.encode(images, prefill=True)
    assert all(image.prefix is not None for image in encoded)
    with torch.inference_mode():
        fill(made, encoded)
    return encoded


@pytest.mark.parametrize("name", NAMES)
def test_windows_matter(name: str) -> None:
    """The windows of these tests change answers."""
    row = requests(IMAGES, "plain")[2]
    short, ample = (engine(name, window).generate([row], SHORT)[0] for window in ("short", "ample"))
    assert short.logprobs != pytest.approx(ample.logprobs, abs=1e-3)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", NAMES)
class TestReuse:
    @pytest.mark.parametrize("kind", ["plain", "text", "all", "whole"])
    def test_a_batch_equals_itself_without_reuse(self, name: str, window: str, kind: str) -> None:
        made = engine(name, window)
        rows, reused = requests(IMAGES, kind), requests(known(made), kind)
        for some in ([0], [0, 3], [0, 1, 2, 3]):
            expected = made.generate([rows[i] for i in some], LONG)
            assert_same(made.generate([reused[i] for i in some], LONG), expected)

    @pytest.mark.parametrize("kind", ["text", "all"])
    def test_beams(self, name: str, window: str, kind: str) -> None:
        made, decoding = engine(name, window), Decoding(max_new_tokens=8, num_beams=3)
        expected = made.generate(requests(IMAGES, kind), decoding)
        assert_same(made.generate(requests(known(made), kind), decoding), expected)

    @pytest.mark.parametrize("kind", ["plain", "text", "all"])
    @pytest.mark.parametrize("decoding", [LONG, BOX], ids=["answer", "box"])
    def test_the_first_question_fills_the_prefixes(
        self, name: str, window: str, kind: str, decoding: Decoding
    ) -> None:
        made = engine(name, window)
        expected = made.generate(requests(IMAGES, kind)[:3], decoding)
        images = made.encode(IMAGES, prefill=True)
        assert_same(made.generate(requests(images, kind)[:3], decoding), expected)
        for image, other in zip(images, known(made), strict=True):
            assert image.prefix.token_ids == other.prefix.token_ids
            pairs = zip(image.prefix.states, other.prefix.states, strict=True)
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)

    @pytest.mark.parametrize("kind", ["plain", "text", "all"])
    def test_boxes(self, name: str, window: str, kind: str) -> None:
        made = engine(name, window)
        expected = made.generate(requests(IMAGES, kind), BOX)
        assert_same(made.generate(requests(known(made), kind), BOX), expected)

    def test_states_are_read_alike(self, name: str, window: str) -> None:
        made, images = engine(name, window), IMAGES[:2]
        rows = [Request(image, "is the red bus here?") for image in images]
        rows[1] = Request(images[1], "and a bus that is farther away?")
        reused = [
            Request(image, row.prompt) for image, row in zip(known(made, images), rows, strict=True)
        ]
        alone = [made.phrase_similarities([row], ["bus"])[0] for row in rows]
        for asked in (rows, reused):
            for one, other in zip(made.phrase_similarities(asked, ["bus"] * 2), alone, strict=True):
                assert np.isfinite(one).all()
                np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", [*NAMES, "exaone4_5"])
class TestBranches:
    @pytest.mark.parametrize("kind", ["plain", "text", "all"])
    def test_a_batch_of_boxes_is_single(self, name: str, window: str, kind: str) -> None:
        made, rows = engine(name, window), requests(IMAGES, kind)
        assert_same(made.generate(rows, BOX), [made.generate([row], BOX)[0] for row in rows])

    def test_read_the_same_as_alone(self, name: str, window: str) -> None:
        made = engine(name, window)
        form, rows = made._compile(BOX.box_template), requests(IMAGES, "text")[:1]
        assert form is not None
        with torch.inference_mode():
            prompts = prompts_of(made, rows)
            expected, _ = decode_boxes(made.adapter, prompts, form, 0, row_branches=0)
            for budget in (16, 200):
                boxes, _ = decode_boxes(made.adapter, prompts, form, 0, row_branches=budget)
                assert_same(boxes, expected)


@pytest.mark.parametrize("name", NAMES)
class TestWhatIsComputed:
    def test_nothing_of_the_image_in_scope_text(self, name: str) -> None:
        made = engine(name)
        (image,) = known(made, IMAGES[:1])
        highlight = Highlight(MIDDLE, 8.0, "text")
        with counted(made) as lengths:
            made.generate([Request(IMAGES[0], "hi", highlight)], SHORT)
            made.generate([Request(image, "hi", highlight)], SHORT)
        assert lengths[5] == lengths[0] - len(image.prefix.token_ids)
        assert lengths[6:] == [1] * 4

    def test_nothing_for_the_prefix_after_a_first_question(self, name: str) -> None:
        made = engine(name)
        images = made.encode(IMAGES, prefill=True)
        with counted(made) as lengths:
            made.generate(requests(images, "text")[:3], SHORT)
        assert len(lengths) == 5

    def test_bidirectional_images_are_reused_whole(self, name: str) -> None:
        made = engine(name)
        (image,) = known(made, IMAGES[:1])
        highlight = Highlight(Region(boxes=((0.5, 0.5, 1.0, 1.0),)), 8.0)
        assert not made.token_mask(IMAGES[0].size, highlight).ravel()[0]
        with counted(made) as lengths:
            made.generate([Request(IMAGES[0], "hi", highlight)], SHORT)
            made.generate([Request(image, "hi", highlight)], SHORT)
        assert (lengths[5] == lengths[0]) == (name in BOTH_WAYS)


def test_a_small_gemma_4_is_causal() -> None:
    """Larger ones are bidirectional; the config says so."""
    made = TransformersEngine.from_pretrained(zoo("gemma4"))
    assert made.family.bidirectional(made.model.config)
    made.model.config.text_config.use_bidirectional_attention = None
    assert not made.family.bidirectional(made.model.config)
