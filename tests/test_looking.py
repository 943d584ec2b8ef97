"""`cof.look`: the idea alone, on a model of one's own, is what CoF does with the same boxes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from models import picture
from zoo import EVERY, engine, stock

import cof
from cof import CoF, Settings
from cof.errors import CofError
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
    options["add_special_tokens"] = not (bos and texts[0].startswith(bos)) and name != "mllama"
    arrays = made.processor(
        images=[[image] for image in images], text=texts, return_tensors="np", **options
    )
    return {key: torch.as_tensor(np.asarray(value)) for key, value in arrays.items()}


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


def test_rows_of_a_batch_have_their_own() -> None:
    made, model = engine("qwen2_vl"), stock("qwen2_vl")
    mask = np.zeros((8, 8))
    mask[4:, 4:] = 1
    inputs = inputs_of("qwen2_vl", WIDE, TALL)
    want = [
        expected("qwen2_vl", WIDE, 8.0, mask=mask),
        expected("qwen2_vl", TALL, 30.0, boxes=OTHER),
    ]
    square = [(0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0)]
    for region, own in [
        ({"mask": [mask, None], "boxes": [None, OTHER]}, [8.0, 30.0]),
        ({"polygon": [square, None], "boxes": [None, OTHER]}, [8.0, 30.0]),
    ]:
        with cof.look(model, made.processor, inputs, [WIDE, TALL], strength=own, **region):
            assert answers("qwen2_vl", model, inputs) == want
    with cof.look(model, made.processor, inputs, [WIDE, TALL], [None, OTHER], strength=30.0):
        plain, looked = answers("qwen2_vl", model, inputs)
    assert looked == want[1]
    assert plain == answers("qwen2_vl", model, inputs)[0]


def test_forward_alone_in_threads_after_an_error_and_with_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    made, model = engine("llava"), copy.deepcopy(stock("llava"))
    inputs = inputs_of("llava", WIDE)
    config = peft.LoraConfig(r=4, target_modules="all-linear")  # it begins as no change
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    before = model.config.text_config._attn_implementation

    def logits(used: Any, boxes: Any) -> torch.Tensor:
        with torch.no_grad(), cof.look(used, made.processor, inputs, [WIDE], boxes, strength=8.0):
            return used(**inputs).logits

    alone = [logits(model, boxes) for boxes in (BOXES, OTHER)]
    assert not torch.allclose(*alone)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            together = pool.map(lambda boxes: logits(model, boxes), (BOXES, OTHER))
            assert all(map(torch.equal, alone, together))
    with pytest.raises(ZeroDivisionError), cof.look(model, made.processor, inputs, [WIDE], BOXES):
        raise ZeroDivisionError
    assert model.config.text_config._attn_implementation == before
    assert torch.allclose(logits(wrapped, BOXES), alone[0], atol=1e-5)


def test_what_is_refused() -> None:
    made, model = engine("llava"), stock("llava")
    inputs = inputs_of("llava", WIDE)
    for images, options, says in [
        ([WIDE, TALL], {}, "images more than the inputs show"),
        ([], {}, "pass the images that the inputs were made of"),
        ([WIDE], {"boxes": [(2.0, 2.0, 3.0, 3.0)]}, "outside 0..1"),
        ([WIDE], {"strength": 0.0}, "strength"),
        ([WIDE], {"layers": (99,)}, "layers must be numbers"),
        ([WIDE], {"image": 1}, "no image 1"),
    ]:
        looking = cof.look(model, made.processor, inputs, images, **{"boxes": BOXES, **options})
        with pytest.raises(CofError, match=says), looking:
            pass
    looking = cof.look(model, made.processor, inputs, [WIDE], BOXES)
    with pytest.raises(CofError, match="did not run"), looking:
        pass
    other, two = stock("qwen2_vl"), inputs_of("qwen2_vl", WIDE, TALL)
    processor = engine("qwen2_vl").processor
    looking = cof.look(other, processor, two, [WIDE, TALL], [BOXES, OTHER], strength=[1.0])
    with pytest.raises(CofError, match="2 rows, and strength 1"), looking:
        pass


def test_for_vllm_it_is_what_the_engine_sends() -> None:
    from zoo import folder

    from cof.engines.vllm.bias import KEY, RequestBias

    args = cof.look_args(str(folder("qwen2_vl")), [WIDE, TALL], BOXES, strength=3.0)
    bias = RequestBias.from_json(args[KEY])
    assert bias.image == 1
    marked = sum(length for _, length, _ in bias.runs)
    highlight = cof.types.Highlight(cof.Region(boxes=tuple(BOXES)), 3.0)
    assert marked == engine("qwen2_vl").token_mask(TALL.size, highlight).sum()
    assert {round(value, 6) for *_, value in bias.runs} == {round(float(np.log(3.0)), 6)}
    with pytest.raises(CofError, match="Say where to look"):
        cof.look_args(str(folder("qwen2_vl")), [WIDE])
