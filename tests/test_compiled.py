"""Compiled decoding: the same answers, and no new graph for another region, lambda or box."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from models import checkpoint, picture
from torch._dynamo.utils import counters
from transformers import CompileConfig
from zoo import zoo

from cof.engine import TransformersEngine
from cof.errors import CofError
from cof.types import Decoding, EncodedImage, Highlight, Region, Request

SHORT = Decoding(max_new_tokens=5)
IMAGES = [picture((60, 40)), picture((40, 90), 1)]
REGIONS = [Region(boxes=((0.4, 0.6, 0.6, 0.9),)), Region(boxes=((0.0, 0.0, 0.3, 0.5),))]


@functools.cache
def engine(compiled: bool) -> TransformersEngine:
    # graphs are captured as ever, but no C++ compiler is needed
    config = CompileConfig(backend="eager", mode=None) if compiled else False
    return TransformersEngine.from_pretrained(checkpoint("llava"), compile=config)


def requests(
    images: Any = IMAGES, strengths: tuple[float, float] = (8.0, 0.3), swap: bool = False, **of: Any
) -> list[Request]:
    regions = REGIONS[::-1] if swap else REGIONS
    lights = [Highlight(*pair, **of) for pair in zip(regions, strengths, strict=True)]
    questions = ["which digit?", "what, in this picture, is red?"]
    return [Request(*row) for row in zip(images, questions, lights, strict=True)]


def assert_same(rows: list[Request], decoding: Decoding = SHORT) -> None:
    """Behind prefixes, if images are encoded, and without."""
    fresh = [
        replace(row, image=row.image.image) if isinstance(row.image, EncodedImage) else row
        for row in rows
    ]
    ours, theirs = engine(True).generate(rows, decoding), engine(False).generate(fresh, decoding)
    for a, b in zip(ours, theirs, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("scope", ["all", "text"])
def test_no_new_graph_for_another_region_strength_or_question(scope: Any) -> None:
    before = graphs()
    assert_same(requests(scope=scope))
    first = graphs()
    if scope == "all":
        assert first > before
    assert_same(requests(scope=scope, strengths=(22.0, 3.0)))
    assert_same(requests(scope=scope, swap=True))
    assert_same([Request(r.image, f"So: {r.prompt}", r.highlight) for r in requests(scope=scope)])
    assert_same([Request(r.image, r.prompt) for r in requests()])  # and none
    plain = graphs()
    assert_same(requests(scope=scope, strengths=(2.0, 1.0)))
    assert_same([Request(r.image, "what?") for r in requests()])
    assert graphs() == plain <= first + 1


@pytest.mark.parametrize("scope", ["all", "text"])
def test_behind_a_prefix(scope: Any) -> None:
    made = engine(True)
    images = made.encode(IMAGES, prefill=True)
    plain = [
        Request(image, request.prompt) for image, request in zip(images, requests(), strict=True)
    ]
    expected = engine(False).generate([Request(r.image.image, r.prompt) for r in plain], SHORT)
    assert [of.token_ids for of in made.generate(plain, SHORT)] == [of.token_ids for of in expected]
    assert all(image.prefix.prefix is not None for image in images)
    rows = requests(images, scope=scope)
    assert_same(rows)


@pytest.mark.parametrize(
    ("decoding", "chosen"),
    [(Decoding(max_new_tokens=4, num_beams=2), {}), (SHORT, {"layers": (1,)})],
)
def test_what_runs_as_usual(decoding: Decoding, chosen: dict[str, Any]) -> None:
    before = graphs()
    assert_same(requests(**chosen), decoding)
    assert graphs() == before


def test_is_refused_where_the_decoder_is_not_reweighted() -> None:
    with pytest.raises(CofError, match="compile is not for InstructBLIP models"):
        TransformersEngine.from_pretrained(checkpoint("instructblip"), compile=True)


def test_is_refused_where_masks_would_forget_the_image() -> None:
    with pytest.raises(CofError, match="compile is not for Gemma 4 models"):
        TransformersEngine.from_pretrained(zoo("gemma4"), compile=True)


@pytest.mark.parametrize("scope", ["text", "all"])
@pytest.mark.parametrize("window", [24, 4096])
@pytest.mark.parametrize("name", ["gemma3", "aya_vision"])
def test_sliding_windows(name: str, window: int, scope: str) -> None:
    """With a first question that leaves the prefixes, and others that use them."""
    config = CompileConfig(backend="eager", mode=None)
    made, other = (
        TransformersEngine.from_pretrained(zoo(name), compile=of) for of in (config, False)
    )
    for of in (made, other):
        of.model.config.get_text_config().sliding_window = window
    images = made.encode(IMAGES, prefill=True)
    for strengths in ((1.0, 1.0), (8.0, 0.3)):
        ours = made.generate(requests(images, strengths, scope=scope), SHORT)
        theirs = other.generate(requests(IMAGES, strengths, scope=scope), SHORT)
        for a, b in zip(ours, theirs, strict=True):
            assert a.token_ids == b.token_ids
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert all(image.prefix.prefix is not None for image in images)
