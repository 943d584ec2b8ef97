"""Processors: loaded for PIL, or refused with a sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from models import picture
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo import folder, zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.loading import load
from cof.errors import CofError
from cof.families.processors import TORCHVISION, PixtralProcessor, image_options, load_processor
from cof.geometry.regions import Region
from cof.types import Decoding, Highlight, Request

UNPROVEN = ["llama4", "cohere2_vision", "lfm2_vl", "perception_lm"]


@pytest.mark.parametrize("kind", [*UNPROVEN, *TORCHVISION])
def test_torchvision_alone_is_refused(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    monkeypatch.setattr("cof.families.processors.is_torchvision_available", lambda: False)
    config = CONFIG_MAPPING[kind]()
    told = "need torchvision: pip install" if kind in TORCHVISION else "not proven"
    with pytest.raises(CofError, match=f"of type '{kind}' .*{told}"):
        load_processor(str(tmp_path), config)
    config.save_pretrained(tmp_path)  # the same from a folder, before weights are looked for
    with pytest.raises(CofError, match=told):
        load(str(tmp_path))


def test_pixtrals_rows_end_in_breaks() -> None:
    made = load_processor(str(zoo("pixtral")), CONFIG_MAPPING["mistral3"]())
    assert type(made) is PixtralProcessor
    sizes = {"image_sizes": [(28, 42)]}
    text = made.replace_image_token(sizes, 0)
    assert text == "[IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]"


def test_image_options_are_those_the_image_processor_takes() -> None:
    kosmos = load_processor(str(zoo("kosmos2")), CONFIG_MAPPING["kosmos-2"]())
    assert not image_options(kosmos)  # num_image_tokens and its like are for the processor
    smol = load_processor(str(zoo("smolvlm")), CONFIG_MAPPING["smolvlm"]())
    assert image_options(smol)["return_row_col_info"] is True


ASKED = Request(
    picture((200, 140)), "which?", Highlight(Region(boxes=((0.1, 0.1, 0.5, 0.5),)), 4.0)
)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("qwen2_vl", "size", {"shortest_edge": 16 * 14**2, "longest_edge": 40 * 14**2}),
        ("internvl", "max_patches", 2),
        ("idefics3", "do_image_splitting", False),
        ("llava", "do_pad", False),
    ],
)
def test_an_option_changed_after_the_first_question(name: str, option: str, value: Any) -> None:
    made, fresh = (TransformersEngine.from_pretrained(folder(name)) for _ in "ab")
    known = made.encode([ASKED.image], prefill=True)[0]
    before = made.generate([ASKED, replace(ASKED, image=known)], Decoding(3))
    for each in (made, fresh):
        setattr(each.processor.image_processor, option, value)
    (expected,) = fresh.generate([ASKED], Decoding(3))
    for image in (ASKED.image, known):
        assert made.generate([replace(ASKED, image=image)], Decoding(3)) == [expected]
    assert expected.logprobs != before[0].logprobs


def test_the_most_pixels_of_an_image() -> None:
    made = TransformersEngine.from_pretrained(folder("qwen2_vl"), max_pixels=60 * 28**2)
    less = TransformersEngine.from_pretrained(folder("qwen2_vl"), max_pixels=12 * 28**2)
    sizes = [math.prod(each.tokens.layout((900, 600))) for each in (made, less)]
    assert 40 < sizes[0] <= 60
    assert 6 < sizes[1] <= 12
    assert less.generate([ASKED], Decoding(2))
    with pytest.raises(CofError, match="max_pixels must be a whole number above 0"):
        load(str(folder("qwen2_vl")), max_pixels=0)
    with pytest.raises(CofError, match="no limit of pixels to set: leave max_pixels out"):
        load(str(folder("llava")), max_pixels=1000)
