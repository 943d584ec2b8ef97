"""A second image after the first: against transformers' own processors, and its effect."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint, picture, prompts_of
from transformers import AutoModelForImageTextToText
from zoo import BUILDERS, zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofWarning
from cof.families import family_of
from cof.focuses import Beside, Crop
from cof.geometry.regions import EVERYTHING, Region
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import Decoding, Generation, Highlight, Request

SHORT = Decoding(max_new_tokens=4)
REGION = Region(boxes=((0.1, 0.2, 0.5, 0.6),))


def folder(name: str) -> Any:
    return checkpoint(name) if name in ("llava", "blip-2") else zoo(name)


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(folder(name))


def two(name: str) -> bool:
    return engine(name).family.takes_two


def asked(seed: int = 0, **more: Any) -> Request:
    return Request(
        picture((150, 60), seed), "which digit?", beside=picture((70, 90), seed + 1), **more
    )


def assert_same(one: list[Generation], other: list[Generation]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", ["llava", *BUILDERS])
class TestEveryFamilyThatTakesTwo:
    @pytest.fixture(autouse=True)
    def _takes_two(self, name: str) -> None:
        if not two(name):
            pytest.skip("takes one image")

    def test_is_transformers_own_prompt_with_two_images(self, name: str) -> None:
        made, request = engine(name), asked()
        text = made.chat.render(request.prompt, 2)
        arrays = made.processor(
            images=[request.image, request.beside], text=text, return_tensors="np"
        )
        inputs = {key: torch.as_tensor(np.asarray(value)) for key, value in arrays.items()}
        model = AutoModelForImageTextToText.from_pretrained(folder(name)).eval()
        with torch.inference_mode():
            theirs = model.generate(
                **inputs,
                max_new_tokens=4,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        (ours,) = made.generate([request], SHORT)
        length = inputs["input_ids"].shape[1]
        tokens = theirs.sequences[0, length:].tolist()
        assert tokens[: len(ours.token_ids)] == list(ours.token_ids)
        chosen = [
            float(logits[0].log_softmax(-1)[token])
            for logits, token in zip(theirs.logits, ours.token_ids, strict=False)
        ]
        assert ours.logprobs == pytest.approx(chosen, abs=1e-4)

    def test_batch_is_single_beside_rows_of_one_image(self, name: str) -> None:
        rows = [
            asked(),
            Request(picture((70, 190), 2), "a longer question about it?"),
            asked(5, highlight=Highlight(REGION, 9.0)),
            asked(5),
        ]
        together = engine(name).generate(rows, SHORT)
        assert_same(together, [engine(name).generate([row], SHORT)[0] for row in rows])
        assert abs(together[2].logprobs[0] - together[3].logprobs[0]) > 1e-4

    def test_the_second_image_is_seen(self, name: str) -> None:
        request = asked()
        one, other, without = engine(name).generate(
            [request, replace(request, beside=picture((70, 90), 9)), replace(request, beside=None)],
            SHORT,
        )
        assert one.logprobs[0] != pytest.approx(other.logprobs[0], abs=1e-4)
        assert one.logprobs[0] != pytest.approx(without.logprobs[0], abs=1e-4)

    def test_what_is_encoded_changes_nothing(self, name: str) -> None:
        made, request = engine(name), asked()
        plain = Request(request.image, "a first question?")
        expected = made.generate([plain, request, plain], SHORT)
        (first,) = made.encode([request.image], prefill=True)
        (second,) = made.encode([request.beside])
        kept = [
            made.generate([row], SHORT)[0]
            for row in (
                replace(plain, image=first),
                replace(request, image=first, beside=second),
                replace(plain, image=first),
            )
        ]
        assert_same(kept, expected)
        # the same tokens, another second image: nothing of the first one's may be left
        other = replace(request, beside=picture((70, 90), 9))
        assert_same(
            made.generate([replace(other, image=first)], SHORT), made.generate([other], SHORT)
        )

    def test_the_highlight_falls_on_the_first_image_alone(self, name: str) -> None:
        made = engine(name)
        request = asked(highlight=Highlight(EVERYTHING, 4.0))
        prompts = prompts_of(made, [request])
        assert prompts.bias is not None
        (marked,) = prompts.bias.values.nonzero()[:, 1][None].tolist()
        ids = prompts.inputs["input_ids"][0]
        is_image = (ids == made.model.config.image_token_id).nonzero().ravel().tolist()
        alone = made.encode([request.image])[0].features.shape[0]
        assert marked == is_image[:alone]
        assert len(is_image) > alone


@pytest.mark.parametrize("name", ["blip-2", "paligemma"])
def test_a_model_that_takes_one_is_shown_the_second(name: str) -> None:
    request = asked(highlight=Highlight(REGION, 9.0))
    with pytest.warns(CofWarning, match="takes one image at a time"):
        (shown,) = engine(name).generate([request], SHORT)
    (alone,) = engine(name).generate([Request(request.beside, request.prompt)], SHORT)
    assert_same([shown], [alone])


def test_every_supported_decoder_says_whether_it_takes_two() -> None:
    taking = {name for name in BUILDERS if family_of(engine(name).model.config).takes_two}
    assert {"qwen2_5_vl", "internvl", "idefics3", "llava_onevision"} <= taking
    assert "paligemma" not in taking


def test_the_focus_shows_image_and_crop() -> None:
    image = picture((112, 80))
    cof = CoF(engine("llava"), Settings(grounder="given", focus="beside", expand=1.0))
    answer = cof(image, "which digit?", boxes=[(0.25, 0.25, 0.75, 0.75)])
    crop = Crop().apply(Request(image, "x"), Region(boxes=answer.boxes)).image
    (direct,) = engine("llava").generate([Request(image, "which digit?", beside=crop)], Decoding())
    assert answer.text == direct.text
    request = Request(image, "x")
    assert Beside().apply(request, EVERYTHING) is request
