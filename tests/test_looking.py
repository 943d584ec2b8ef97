"""`cof.look`: the idea alone, on a model of one's own, is what CoF does with the same boxes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import picture
from zoo import EVERY, engine, stock

import cof
from cof import CoF, Settings
from cof.types import Decoding

WIDE, TALL = picture((90, 60), 1), picture((70, 100), 2)
BOXES, OTHER = [(0.1, 0.1, 0.6, 0.6)], [(0.5, 0.4, 0.9, 1.0)]
SHORT = Decoding(max_new_tokens=5)
QUESTION = "which digit?"


def inputs_of(name: str, *images: Any) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of one question about each image, as one batch."""
    made = engine(name)
    asked = [cof.types.Request(image, QUESTION) for image in images]
    texts = [made.chat.text(each) for each in asked]
    bos = made.processor.tokenizer.bos_token
    options: dict[str, Any] = {"padding": True} if len(images) > 1 else {}
    if name != "paligemma":
        options["add_special_tokens"] = not (bos and texts[0].startswith(bos))
    inputs = made.processor(
        images=[[image] for image in images], text=texts, return_tensors="pt", **options
    )
    inputs.pop("labels", None)
    return dict(inputs)


def answers(name: str, model: Any, inputs: dict[str, torch.Tensor]) -> list[str]:
    out = model.generate(**inputs, max_new_tokens=SHORT.max_new_tokens, do_sample=False)
    given = out[:, -SHORT.max_new_tokens :]
    return [t.strip() for t in engine(name).processor.batch_decode(given, skip_special_tokens=True)]


def expected(name: str, image: Any, strength: float = 8.0, **region: Any) -> str:
    settings = Settings(strength=strength, scope="all", expand=1.0)
    return CoF(engine(name), settings)(image, QUESTION, decoding=SHORT, **region).text


# the processor of PaliGemma and the pipeline of Kosmos-2 write another prompt around a question
@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("paligemma", "kosmos2", "blip2")])
def test_it_is_what_cof_does(name: str) -> None:
    made, model = engine(name), copy.deepcopy(stock(name))
    inputs = inputs_of(name, WIDE)
    before = answers(name, model, inputs)
    with cof.look(model, made.processor, inputs, [WIDE], boxes=BOXES, strength=8.0):
        looked = answers(name, model, inputs)
    assert looked == [expected(name, WIDE, boxes=BOXES)]
    assert answers(name, model, inputs) == before
