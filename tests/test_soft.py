"""The graded highlight: the binary one at 0 and 1, and its formula between them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from models import GRID, PATCH, checkpoint, picture

from cof.engines.transformers.engine import TransformersEngine
from cof.focuses import Attention, Soft
from cof.geometry.regions import EVERYTHING, Region
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import Decoding, Highlight, Request

STRENGTH = 8.0
CELLS = (0.25, 0.25, 0.625, 0.5)  # of a square image: 3 x 2 whole tokens


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name))


def of_pixels(tokens: np.ndarray) -> np.ndarray:
    return np.kron(tokens, np.ones((PATCH, PATCH))).astype(np.float32)


def heat() -> np.ndarray:
    """Weights over the whole image, the same for all pixels of a token."""
    return of_pixels(np.random.default_rng(0).random((GRID, GRID)))


def marked() -> np.ndarray:
    mask = np.zeros((GRID, GRID))
    mask[2:4, 2:5] = 1.0
    return mask


def request() -> Request:
    return Request(picture((112, 112)), "which digit?")


@pytest.mark.parametrize("name", ["llava", "blip-2", "instructblip"])
@pytest.mark.parametrize("scope", ["all", "text"])
def test_with_zeros_and_ones_it_is_the_binary_focus(name: str, scope: str) -> None:
    soft, hard = Soft(STRENGTH, scope), Attention(STRENGTH, scope)  # type: ignore[arg-type]
    asked = [
        soft.apply(request(), Region(boxes=((0.0, 0.0, 0.1, 0.1),), heat_map=of_pixels(marked()))),
        soft.apply(request(), Region(boxes=(CELLS,), mask=of_pixels(marked()))),
        soft.apply(request(), Region(boxes=(CELLS,))),
        hard.apply(request(), Region(boxes=(CELLS,))),
        request(),
    ]
    *same, binary, plain = engine(name).generate(asked, Decoding(max_new_tokens=5))
    for one in same:
        assert one.token_ids == binary.token_ids
        assert one.logprobs == pytest.approx(binary.logprobs, abs=2e-5)
    assert abs(plain.logprobs[0] - binary.logprobs[0]) > 0.01


def test_the_whole_image_likewise() -> None:
    asked = [focus(STRENGTH).apply(request(), EVERYTHING) for focus in (Soft, Attention)]
    soft, binary = engine("llava").generate(asked, Decoding(max_new_tokens=5))
    assert soft.logprobs == pytest.approx(binary.logprobs, abs=2e-5)


def test_the_first_layers_attention_follows_the_formula() -> None:
    """Layer 0 sees the plain keys in scope text: a' = (1 + m (lambda - 1)) a / sum."""
    made = engine("llava")
    region = Region(boxes=(CELLS,), heat_map=heat())
    plain = made.image_attention(request())[0]
    biased = made.image_attention(Soft(STRENGTH, "text").apply(request(), region))[0]
    weights = made.tokens.weights((112, 112), region)
    np.testing.assert_allclose(weights, heat()[::PATCH, ::PATCH], atol=0.51 / 255)
    factor = 1 + weights * (STRENGTH - 1)
    total = 1 + ((factor - 1) * plain).sum((1, 2))
    np.testing.assert_allclose(biased, factor * plain / total[:, None, None], rtol=1e-4)


def test_without_heat_tokens_at_the_edge_count_by_their_share() -> None:
    half = Region(boxes=((0.25, 0.25, 0.5625, 0.5),))  # the third column of tokens half inside
    weights = engine("llava").tokens.weights((112, 112), half)
    expected = marked()
    expected[2:4, 4] = 0.5
    np.testing.assert_allclose(weights, expected, atol=0.05)


def test_padding_has_no_weight() -> None:
    made = engine("llava")
    weights = made.tokens.weights((112, 56), Region(heat_map=np.ones((4, 4), dtype=np.float32)))
    np.testing.assert_array_equal(weights > 0, made.tokens.visibility((112, 56)).visible)


def test_heat_goes_through_the_pipeline_as_it_is() -> None:
    region = Region(boxes=((0.0, 0.0, 0.5, 0.5),), heat_map=heat())
    for settings in (
        Settings(expand=2.0),
        Settings(min_box=0.9),
        Settings(released=True),
    ):
        after = settings.post_process(region, (60, 40))
        np.testing.assert_array_equal(after.heat_map, heat())
    cof = CoF(engine("llava"), Settings(grounder="attention", focus="soft", strength=STRENGTH))
    answer = cof(picture((60, 40)), "Where is the bus?")
    assert answer.region is not None
    highlight = Soft(STRENGTH).apply(request(), answer.region).highlight
    assert isinstance(highlight, Highlight)
    assert highlight.graded
    (direct,) = cof.engine.generate(
        [Request(picture((60, 40)), "Where is the bus?", highlight)], Decoding()
    )
    assert answer.text == direct.text


def test_strength_1_skips_grounding() -> None:
    cof = CoF(engine("llava"), Settings(grounder="attention", focus="soft", strength=1.0))
    answer = cof(picture((60, 40)), "Where is the bus?")
    assert not answer.found
    assert "changes nothing" in answer.reason
