"""Answers that continue from a prefix equal those computed from the start."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import GRID, checkpoint, picture, prompts_of
from torch import nn
from zoo import zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.families.chat import Chat
from cof.geometry.regions import EVERYTHING, Region
from cof.prompting.dialects import LLAVA
from cof.types import Decoding, EncodedImage, Highlight, Request

REUSED = ["llava"]
"""Checkpoints of `models.py` whose family is prefilled."""

SHORT = Decoding(max_new_tokens=5)
IMAGES = [picture((60, 40)), picture((40, 90), 1), picture((64, 64), 2)]
MIDDLE = Region(boxes=((0.4, 0.6, 0.6, 0.9),))
LOWER = Region(boxes=((0.1, 0.8, 0.5, 1.0), (0.7, 0.7, 0.9, 0.9)))


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name))


def fill(made, images):
    made._prompts(made.plan([Request(i, "") for i in images], [0] * len(images))[0][1])


@functools.cache
def encoded(name: str) -> list[EncodedImage]:
    """Images with their prefixes, computed in a pass of their own."""
    images = engine(name).encode(IMAGES, prefill=True)
    with torch.inference_mode():
        fill(engine(name), images)
    return images


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
        "whole": [Highlight(EVERYTHING, 8.0), None, None, None],
    }
    questions = ["which digit?", "hi", "a longer question about it", "hi"]
    rows = zip((0, 1, 2, 0), questions, highlights[kind], strict=True)
    return [Request(images[i], question, highlight) for i, question, highlight in rows]


@contextmanager
def counted(made: TransformersEngine) -> Iterator[list[int]]:
    """How many new tokens each forward pass of the decoder reads."""
    lengths: list[int] = []

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1])

    decoder = made.model.model.language_model
    handle = decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def assert_same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("name", REUSED)
class TestReuse:
    @pytest.mark.parametrize("kind", ["plain", "text", "all", "whole"])
    def test_a_batch_equals_itself_without_reuse(self, name: str, kind: str) -> None:
        made = engine(name)
        expected = made.generate(requests(IMAGES, kind), SHORT)
        assert_same(made.generate(requests(encoded(name), kind), SHORT), expected)

    @pytest.mark.parametrize("kind", ["plain", "text", "all"])
    def test_one_by_one_equals_the_batch(self, name: str, kind: str) -> None:
        made = engine(name)
        rows = requests(encoded(name), kind)
        assert_same([made.generate([row], SHORT)[0] for row in rows], made.generate(rows, SHORT))

    @pytest.mark.parametrize("kind", ["plain", "text", "all"])
    def test_beams_and_sampling(self, name: str, kind: str) -> None:
        made = engine(name)
        for decoding in (
            Decoding(max_new_tokens=5, num_beams=3),
            Decoding(max_new_tokens=5, temperature=1.3, seed=3),
        ):
            expected = made.generate(requests(IMAGES, kind), decoding)
            assert_same(made.generate(requests(encoded(name), kind), decoding), expected)

    def test_a_prefix_is_not_used_up(self, name: str) -> None:
        made = engine(name)
        prefix = encoded(name)[0].prefix
        before = [state.clone() for layer in prefix.states for state in layer]
        first = made.generate(requests(encoded(name), "all"), SHORT)
        assert made.generate(requests(encoded(name), "all"), SHORT) == first
        after = [state for layer in encoded(name)[0].prefix.states for state in layer]
        assert encoded(name)[0].prefix is prefix
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_how_much_is_computed(self, name: str) -> None:
        made = engine(name)
        tokens = GRID * GRID
        lead = len(encoded(name)[0].prefix.token_ids) - tokens
        for kind in ("plain", "text"):
            with counted(made) as lengths:
                made.generate(requests(encoded(name), kind), SHORT)
            assert lengths[0] < tokens  # the image is not among them
            assert lengths[1:] == [1] * 4
        highlight = Highlight(MIDDLE, 8.0)
        (first, *_) = made.token_mask(IMAGES[2].size, highlight).ravel().nonzero()[0]
        with counted(made) as lengths:
            made.generate([Request(IMAGES[2], "hi", highlight)], SHORT)
            made.generate([Request(encoded(name)[2], "hi", highlight)], SHORT)
        assert lengths[5] == lengths[0] - lead - first
        assert first > 0

    def test_with_the_whole_image_highlighted_the_text_before_it_is_reused(self, name: str) -> None:
        made = engine(name)
        lead = len(encoded(name)[0].prefix.token_ids) - GRID * GRID
        highlight = Highlight(EVERYTHING, 8.0)
        with counted(made) as lengths:
            made.generate([Request(IMAGES[0], "hi", highlight)], SHORT)
            made.generate([Request(encoded(name)[0], "hi", highlight)], SHORT)
        assert lengths[5] == lengths[0] - lead

    def test_another_text_before_the_image_is_noticed(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = engine(name)
        another = "SYSTEM: x <image>\n{} ASSISTANT:"
        monkeypatch.setattr(Chat, "render", lambda self, prompt, images: another.format(prompt))
        expected = made.generate(requests(IMAGES, "text"), SHORT)
        assert_same(made.generate(requests(encoded(name), "text"), SHORT), expected)

    def test_one_row_without_a_prefix(self, name: str) -> None:
        made = engine(name)
        mixed = requests([IMAGES[0], *encoded(name)[1:]], "text")
        assert_same(made.generate(mixed, SHORT), made.generate(requests(IMAGES, "text"), SHORT))


def test_families_that_cannot_be_prefilled_are_encoded_all_the_same() -> None:
    made = engine("instructblip")
    (image,) = made.encode([IMAGES[0]], prefill=True)
    assert image.prefix is None
    request = Request(IMAGES[0], "hi", Highlight(MIDDLE, 8.0))
    reused = Request(image, "hi", Highlight(MIDDLE, 8.0))
    assert made.generate([reused], SHORT) == made.generate([request], SHORT)


BOX = Decoding(box_template=LLAVA.box_template)


@pytest.mark.parametrize("decoding", [SHORT, BOX], ids=["answer", "box"])
@pytest.mark.parametrize("kind", ["plain", "text"])
class TestTheFirstQuestion:
    def rows(self, images: Any, kind: str) -> list[Request]:
        return requests(images, kind)[:3]  # of three images, with prompts of several lengths

    def test_fills_the_prefixes(self, kind: str, decoding: Decoding) -> None:
        made = engine("llava")
        expected = made.generate(self.rows(IMAGES, kind), decoding)
        images = made.encode(IMAGES, prefill=True)
        assert not any(image.prefix.token_ids for image in images)
        with counted(made) as lengths:
            first = made.generate(self.rows(images, kind), decoding)
        assert_same(first, expected)
        assert len(lengths) == (4 if decoding is BOX else 5)  # none for the prefixes alone
        for image, other in zip(images, encoded("llava"), strict=True):
            assert image.prefix.token_ids == other.prefix.token_ids
            pairs = zip(image.prefix.states, other.prefix.states, strict=True)
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert_same(
            made.generate(self.rows(images, "all"), decoding),
            made.generate(self.rows(IMAGES, "all"), decoding),
        )

    def test_about_an_image_that_was_there_before(self, kind: str, decoding: Decoding) -> None:
        """Some prefixes are known, some are not."""
        made = engine("llava")
        images = [encoded("llava")[0], *made.encode(IMAGES[1:], prefill=True)]
        expected = made.generate(self.rows(IMAGES, kind), decoding)
        assert_same(made.generate(self.rows(images, kind), decoding), expected)
        assert all(image.prefix.token_ids for image in images)


def test_biased_states_are_not_cached() -> None:
    made = engine("llava")
    images = made.encode(IMAGES, prefill=True)
    expected = made.generate(requests(IMAGES, "all"), SHORT)
    assert_same(made.generate(requests(images, "all"), SHORT), expected)
    for image, other in zip(images, encoded("llava"), strict=True):
        pairs = zip(image.prefix.states, other.prefix.states, strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_several_questions_about_one_image_share_its_prefix() -> None:
    made = engine("llava")
    (image,) = made.encode([IMAGES[0]], prefill=True)
    rows = [Request(image, question) for question in ("hi", "which digit?")]
    with counted(made) as lengths:
        made.generate(rows, SHORT)
    assert len(lengths) == 1 + 5
    assert lengths[1] < GRID * GRID < lengths[0]


def test_positions_are_those_of_the_rows_own_images() -> None:
    """Qwen's models keep the positions after the images that they saw last."""
    made = TransformersEngine.from_pretrained(zoo("qwen2_5_vl"))
    wide, tall = picture((150, 60)), picture((70, 190), 1)
    rows = [Request(image, "which digit?") for image in (wide, tall)]
    expected = made.generate(rows, SHORT)
    known = made.encode([wide, tall], prefill=True)
    with torch.inference_mode():
        fill(made, known)
    for image, answer in zip(reversed(known), reversed(expected), strict=True):
        assert_same(made.generate([Request(image, "which digit?")], SHORT), [answer])


@pytest.mark.parametrize(
    "name",
    [
        "llava_next",
        "llava_onevision",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "glm4v",
        "glm46v",
        "glm4v_moe",
        "internvl",
        "smolvlm",
        "idefics3",
        "vipllava",
        "pixtral",
        "mistral3",
        "qwen3_vl_moe",
        "video_llama_3",
        "janus",
        "deepseek_vl",
    ],
)
def test_other_families(name: str) -> None:
    made = TransformersEngine.from_pretrained(zoo(name))
    known = made.encode(IMAGES, prefill=True)
    assert all(image.prefix is not None for image in known)
    with torch.inference_mode():
        fill(made, known)
    for kind in ("text", "all"):
        rows, reused = requests(IMAGES, kind), requests(known, kind)
        for some in ([0], [0, 3], [0, 1, 2, 3]):
            expected = made.generate([rows[i] for i in some], SHORT)
            assert_same(made.generate([reused[i] for i in some], SHORT), expected)


def test_a_grid_is_resumed_in_its_middle() -> None:
    """Qwen's positions in a grid can be resumed before the first highlighted token."""
    made = TransformersEngine.from_pretrained(zoo("qwen2_5_vl"))
    highlight = Highlight(MIDDLE, 8.0)
    known = made.encode(IMAGES[:1], prefill=True)
    with torch.inference_mode():
        fill(made, known)
    with counted(made) as lengths:
        expected = made.generate([Request(IMAGES[0], "hi", highlight)], SHORT)
        assert_same(made.generate([Request(known[0], "hi", highlight)], SHORT), expected)
    first = made.token_mask(IMAGES[0].size, highlight).ravel().nonzero()[0][0]
    assert lengths[0] - lengths[5] > first > 0


def test_images_that_attend_to_the_question_have_no_prefix() -> None:
    """PaliGemma: the same image, another question, other states."""
    made = TransformersEngine.from_pretrained(zoo("paligemma"))
    assert made.encode([IMAGES[0]], prefill=True)[0].prefix is None
    with torch.inference_mode():
        (image,) = made.encode([IMAGES[0]])
        prompts = [prompts_of(made, [Request(image, text)]) for text in ("hi", "red?")]
        caches = [made.decode(prompt, Decoding(max_new_tokens=1))[1] for prompt in prompts]
        one, other = (
            made.adapter.split_prefixes(prompt, cache)[0]
            for prompt, cache in zip(prompts, caches, strict=True)
        )
    assert one.token_ids == other.token_ids
    deepest = zip(one.states[-1], other.states[-1], strict=True)
    assert max(float((a - b).abs().max()) for a, b in deepest) > 0.01


def test_the_state_after_two_images_is_not_that_after_the_first() -> None:
    made = engine("llava")
    fresh = made.encode(IMAGES, prefill=True)
    for image, beside in ((fresh[0], IMAGES[1]), (fresh[0], IMAGES[2])):
        (expected,) = made.generate([Request(IMAGES[0], "which digit?", beside=beside)], SHORT)
        reused = Request(image, "which digit?", beside=beside)
        assert_same(made.generate([reused], SHORT), [expected])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma4"])
def test_prefixes_of_several_lengths_are_reused_whole(name: str, beams: int) -> None:
    made, decoding = TransformersEngine.from_pretrained(zoo(name)), Decoding(5, num_beams=beams)
    pictures = [picture((150, 60)), picture((60, 40), 1), picture((70, 190), 2)]
    known = made.encode(pictures, prefill=True)
    with torch.inference_mode():
        fill(made, known)
    sizes = {len(image.prefix.token_ids) for image in known}
    assert len(sizes) > 1
    questions = ["which digit?", "hi", "a longer question"]
    highlights = [Highlight(MIDDLE, 8.0, "text"), None, Highlight(LOWER, 0.2, "text")]
    rows = list(zip(questions, highlights, strict=True))
    fresh = [Request(image, *row) for image, row in zip(pictures, rows, strict=True)]
    reused = [Request(image, *row) for image, row in zip(known, rows, strict=True)]
    lengths = [prompts_of(made, [row]).inputs["input_ids"].shape[1] for row in fresh]
    reusable = [len(image.prefix.token_ids) for image in known]
    left = max(length - count for length, count in zip(lengths, reusable, strict=True))
    expected = made.generate(fresh, decoding)
    with counted(made) as lengths:
        found = made.generate(reused, decoding)
    assert_same(found, expected)
    assert lengths[0] == left


def test_rows_that_reuse_less_do_not_change_the_others() -> None:
    """Rows have equally many tokens left; they may begin at different ones."""
    made = engine("llava")
    corner = Highlight(Region(boxes=((0.0, 0.0, 0.2, 0.2),)), 8.0)
    highlights = [corner, Highlight(LOWER, 30.0), None]
    rows, reused = (
        [
            Request(images[i], question, highlight)
            for i, question, highlight in zip(
                (0, 1, 2),
                ("hi", "a much longer question, about the digit", "which?"),
                highlights,
                strict=True,
            )
        ]
        for images in (IMAGES, encoded("llava"))
    )
    assert_same(made.generate(reused, SHORT), made.generate(rows, SHORT))
