"""What does not fit into a model's context is refused before the model runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import BUILDERS as PAPER
from models import checkpoint, picture
from zoo import BUILDERS, CROSS_ATTENTION, zoo

from cof.engines.base import LengthChecker
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.pipeline import CoF
from cof.prompting.dialects import LLAVA
from cof.settings import Settings
from cof.types import Decoding, Highlight, Request

IMAGE = picture((90, 60))
MIDDLE = Region(boxes=((0.4, 0.4, 0.6, 0.6),))
SHORT = Decoding(max_new_tokens=4)
LIMITED = [name for name in (*BUILDERS, *CROSS_ATTENTION, *PAPER) if name != "blip-2 with T5"]


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name) if name in PAPER else zoo(name))


@contextmanager
def forward_passes(made: TransformersEngine) -> Iterator[list[Any]]:
    """The modules that run inside."""
    ran: list[Any] = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: ran.append(module)
    )
    try:
        yield ran
    finally:
        handle.remove()


def room(made: TransformersEngine, prompt: str) -> int:
    """How many tokens an answer may have."""
    limit = made.context_length
    assert limit is not None
    ((_, batch),) = made.plan([Request(IMAGE, prompt)], [1])
    return limit - batch.lengths[0]


@pytest.mark.parametrize("name", LIMITED)
class TestEveryFamily:
    def test_a_long_question_is_refused_at_once(self, name: str) -> None:
        made, long = engine(name), Request(IMAGE, "which digit is it? " * 5000)
        with (
            forward_passes(made) as ran,
            pytest.raises(CofError, match=r"is too long: [\d,]+ tokens with its image and 4 for"),
        ):
            made.generate([long], SHORT)
        with pytest.raises(CofError, match=r"Question 2 of 3 \('which digit"):
            made.generate([Request(IMAGE, "hi"), long, Request(IMAGE, "x")], SHORT)
        assert not ran

    def test_the_last_token_that_fits(self, name: str) -> None:
        made, asked = engine(name), Request(IMAGE, "hi", Highlight(MIDDLE, 4.0))
        most = room(made, "hi")
        fits = Decoding(max_new_tokens=most)
        made.check_lengths([asked], fits)
        with pytest.raises(CofError, match=f"and {most + 1:,} for the answer, where"):
            made.generate([asked], Decoding(max_new_tokens=most + 1))


@pytest.mark.parametrize("name", ["llava", "blip-2"])
def test_a_model_runs_to_its_last_position(name: str) -> None:
    """OPT's positions are learned: beyond them there are none."""
    made = TransformersEngine.from_pretrained(checkpoint(name))
    made.model.generation_config.eos_token_id = 10**6  # it never ends by itself
    most = room(made, "hi" * 150)
    (reply,) = made.generate([Request(IMAGE, "hi" * 150)], Decoding(max_new_tokens=most))
    assert len(reply.token_ids) == most


def test_distances_have_no_limit() -> None:
    made = engine("blip-2 with T5")
    assert made.context_length is None
    assert made.generate([Request(IMAGE, "which digit? " * 100)], SHORT)


def test_two_images_count() -> None:
    made = engine("llava")
    most = Decoding(max_new_tokens=room(made, "hi"))
    made.check_lengths([Request(IMAGE, "hi")], most)
    with pytest.raises(CofError, match="is too long"):
        made.check_lengths([Request(IMAGE, "hi", beside=IMAGE)], most)


@pytest.mark.parametrize(
    "call",
    [
        lambda made, long: made.score_replies([long], ["red"]),
        lambda made, long: made.score_replies([Request(IMAGE, "hi")], ["red" * 400]),
        lambda made, long: made.image_attention(long),
        lambda made, long: made.phrase_similarities([long], ["digit"]),
        lambda made, long: made.generate([long], Decoding(box_template=LLAVA.box_template)),
        lambda made, long: made.check_lengths([long], SHORT),
    ],
)
def test_whatever_is_asked_of_it(call: Any) -> None:
    made = engine("llava")
    with forward_passes(made) as ran, pytest.raises(CofError, match="is too long"):
        call(made, Request(IMAGE, "which digit is it? " * 30))
    assert not ran


def test_the_pipeline_asks_nothing_before() -> None:
    """Stage 1 reads the first line alone, which would fit."""
    made = engine("llava")
    assert isinstance(made, LengthChecker)
    cof = CoF(made, Settings(grounding_max_new_tokens=8))
    long = "which?\n" + "A. a digit\n" * 60
    image = cof.encode(IMAGE)
    with forward_passes(made) as ran, pytest.raises(CofError, match="Question 2 of 2"):
        cof.batch([(image, "which?"), (image, long)], decoding=SHORT)
    assert not ran
    good, bad = cof.batch([(image, "which?"), (image, long)], decoding=SHORT, on_error="return")
    assert not good.error
    assert "The question ('which?" in bad.error
