"""What is reused of an image, how much is computed, and that it is what it would be otherwise.

That answers stay the same is held for every family in `test_matrix`.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import GRID, picture, prompts_of
from zoo import assert_same, counted, engine, folder

from cof.engines.transformers import box_decoding
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.prefix_cache import Prefix
from cof.geometry.regions import EVERYTHING, Region
from cof.prompting.dialects import LLAVA
from cof.types import ALONE, Decoding, EncodedImage, Highlight, Request, Turn

SHORT = Decoding(max_new_tokens=5)
BOX = Decoding(box_template=LLAVA.box_template)
IMAGES = [picture((60, 40)), picture((40, 90), 1), picture((64, 64), 2)]
MIDDLE = Region(boxes=((0.4, 0.6, 0.6, 0.9),))
LOWER = Region(boxes=((0.1, 0.8, 0.5, 1.0), (0.7, 0.7, 0.9, 0.9)))
SLIDING = ["gemma3", "gemma4", "aya_vision"]
BOTH_WAYS = ["gemma3", "gemma4"]
"""Image tokens attend to earlier and later tokens of their image."""


def known(made: TransformersEngine, images: Any = IMAGES) -> list[EncodedImage]:
    """Images with their prefixes, computed in a pass of their own."""
    encoded = made.encode(images, prefill=True)
    with torch.inference_mode():
        asked = made.plan([Request(image, "") for image in encoded], [0] * len(encoded))
        made._prompts(asked[0][1])
    return encoded


def prefix_of(image: EncodedImage) -> Prefix:
    """The only one."""
    (prefix,) = image.prefix.values()
    return prefix


def requests(images: Any, kind: str) -> list[Request]:
    """Rows with different questions, images, regions and strengths."""
    highlights: dict[str, list[Highlight | None]] = {
        "plain": [None] * 4,
        "text": [
            Highlight(MIDDLE, 8.0, "text"),
            None,
            Highlight(EVERYTHING, 0.2, "text"),
            Highlight(LOWER, 30.0, "text", layers=(1,)),
        ],
        "all": [
            Highlight(MIDDLE, 8.0),
            None,
            Highlight(LOWER, 0.2, "text"),
            Highlight(LOWER, 30.0, heads=(0, 2)),
        ],
    }
    questions = ["which digit?", "hi", "a longer question about it", "hi"]
    rows = zip((0, 1, 2, 0), questions, highlights[kind], strict=True)
    return [Request(images[i], question, highlight) for i, question, highlight in rows]


def assert_same_prefixes(one: list[EncodedImage], other: list[EncodedImage]) -> None:
    for a, b in zip(one, other, strict=True):
        assert prefix_of(a).token_ids == prefix_of(b).token_ids
        for ours, theirs in zip(prefix_of(a).states, prefix_of(b).states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


@pytest.mark.parametrize("decoding", [SHORT, BOX], ids=["answer", "box"])
@pytest.mark.parametrize("kind", ["plain", "text", "all"])
@pytest.mark.parametrize("name", ["llava", *SLIDING])
def test_the_first_question_fills_the_prefixes(name: str, kind: str, decoding: Decoding) -> None:
    """In its own pass; but biased states are not kept."""
    made = engine(name)
    images = made.encode(IMAGES, prefill=True)
    with counted(made) as lengths:
        made.generate(requests(images, kind)[:3], decoding)
    assert_same_prefixes(images, known(made))
    if decoding is SHORT:
        assert len(lengths) == 5 + (kind == "all")


@pytest.mark.parametrize("name", ["llava", *SLIDING])
def test_how_much_is_computed(name: str) -> None:
    made = engine(name)
    image = known(made)[2]
    with counted(made) as lengths:
        made.generate([Request(IMAGES[2], "hi")], SHORT)
        for highlight in (None, Highlight(LOWER, 8.0, "text"), Highlight(LOWER, 8.0)):
            made.generate([Request(image, "hi", highlight)], SHORT)
    whole, plain, text, biased = lengths[::5]
    assert lengths[1:5] == lengths[6:10] == [1] * 4
    assert plain == text == whole - len(prefix_of(image).token_ids)
    first = int(made.token_mask(IMAGES[2].size, Highlight(LOWER, 8.0)).ravel().argmax())
    tokens = made.token_mask(IMAGES[2].size, Highlight(LOWER, 8.0)).size
    if name in BOTH_WAYS:  # all of an image or nothing
        assert biased == whole
    elif name == "llava":  # up to the first token with the bias
        assert first > 0
        assert biased == whole - (len(prefix_of(image).token_ids) - tokens) - first


def test_a_grid_is_resumed_in_its_middle() -> None:
    """Qwen's positions in a grid can be resumed before the first highlighted token."""
    made, highlight = engine("qwen2_5_vl"), Highlight(MIDDLE, 8.0)
    with counted(made) as lengths:
        expected = made.generate([Request(IMAGES[0], "hi", highlight)], SHORT)
    (image, *_) = known(made)
    with counted(made) as later:
        assert_same(made.generate([Request(image, "hi", highlight)], SHORT), expected)
    first = made.token_mask(IMAGES[0].size, highlight).ravel().argmax()
    assert lengths[0] - later[0] > first > 0


def test_a_prefix_is_not_used_up() -> None:
    made = engine("llava")
    images = known(made)
    before = [state.clone() for layer in prefix_of(images[0]).states for state in layer]
    first = made.generate(requests(images, "all"), SHORT)
    assert made.generate(requests(images, "all"), SHORT) == first
    after = [state for layer in prefix_of(images[0]).states for state in layer]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_another_text_before_the_image_is_noticed() -> None:
    made, images = engine("llava"), known(engine("llava"))
    system = (Turn("system", ("Be brief.",)), *ALONE)
    rows, reused = (
        [replace(row, chat=system) for row in requests(shown, "text")] for shown in (IMAGES, images)
    )
    assert_same(made.generate(reused, SHORT), made.generate(rows, SHORT))
    assert len(images[0].prefix) == 2


@pytest.mark.parametrize("kind", ["text", "all"])
def test_some_are_known_some_are_not_and_some_are_not_encoded(kind: str) -> None:
    made = engine("llava")
    images = [IMAGES[0], known(made)[1], made.encode(IMAGES[2:], prefill=True)[0]]
    expected = made.generate(requests(IMAGES, kind), SHORT)
    assert_same(made.generate(requests(images, kind), SHORT), expected)
    assert prefix_of(images[2]).token_ids


def test_several_questions_about_one_image_share_its_prefix() -> None:
    made = engine("llava")
    (image,) = made.encode([IMAGES[0]], prefill=True)
    with counted(made) as lengths:
        made.generate([Request(image, question) for question in ("hi", "which digit?")], SHORT)
    assert len(lengths) == 1 + 5
    assert lengths[1] < GRID * GRID < lengths[0]


def test_positions_are_those_of_the_rows_own_images() -> None:
    """Qwen's models keep the positions after the images that they saw last."""
    made = engine("qwen2_5_vl")
    pictures = [picture((150, 60)), picture((70, 190), 1)]
    expected = made.generate([Request(image, "which digit?") for image in pictures], SHORT)
    for image, answer in zip(reversed(known(made, pictures)), reversed(expected), strict=True):
        assert_same(made.generate([Request(image, "which digit?")], SHORT), [answer])


@functools.cache
def windowed(name: str, window: str) -> TransformersEngine:
    """The zoo's windows are shorter than the prompts; answers outgrow these, or nothing does."""
    made = TransformersEngine.from_pretrained(folder(name))
    longest = prompts_of(made, requests(IMAGES, "plain")).inputs["input_ids"].shape[1]
    made.model.config.get_text_config().sliding_window = longest + 3 if window else 4096
    return made


@pytest.mark.parametrize("name", SLIDING)
class TestWindows:
    def test_they_matter(self, name: str) -> None:
        row = requests(IMAGES, "plain")[2]
        short, ample = (m.generate([row], SHORT)[0] for m in (engine(name), windowed(name, "")))
        assert short.logprobs != pytest.approx(ample.logprobs, abs=1e-3)

    @pytest.mark.parametrize("kind", ["text", "all"])
    @pytest.mark.parametrize("decoding", [Decoding(12), Decoding(8, num_beams=3), BOX])
    def test_answers_outgrow_them(self, name: str, kind: str, decoding: Decoding) -> None:
        made = windowed(name, "outgrown")
        rows, reused = requests(IMAGES, kind), requests(known(made), kind)
        expected = made.generate(rows, decoding)
        assert_same(made.generate(reused, decoding), expected)
        assert_same([made.generate([row], decoding)[0] for row in rows], expected)


@pytest.mark.parametrize("name", [*SLIDING, "exaone4_5"])
def test_branches_read_the_same_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = engine(name), requests(IMAGES, "text")[:1]
    starts, found = [made._start(made._compile(BOX.box_template), asked[0])], []
    with torch.inference_mode():
        prompts = prompts_of(made, asked)
        for budget in (0, 16, 200):
            monkeypatch.setattr(box_decoding, "ROW_BRANCHES", budget)
            found.append(box_decoding.decode_boxes(made.adapter, prompts, starts, 0)[0])
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_a_small_gemma_4_is_causal() -> None:
    """Larger ones are bidirectional; the config says so."""
    made = TransformersEngine.from_pretrained(folder("gemma4"))
    assert made.family.bidirectional(made.model.config)
    made.model.config.text_config.use_bidirectional_attention = None
    assert not made.family.bidirectional(made.model.config)
