"""Boxes decoded by a template equal token-by-token constrained decoding, in fewer passes."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from models import picture, prompts_of, tokenizer
from zoo import engine

from cof.engines.transformers import box_decoding
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.prefix_cache import extend_prompts
from cof.engines.vllm import boxes as vllm_boxes
from cof.errors import CofWarning
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import Region
from cof.grounders import Prompt
from cof.prompting.box_parsing import parse_boxes
from cof.prompting.box_template import BoxTemplate, compile_box_template
from cof.prompting.dialects import GEMMA4, LLAVA, QWEN2_5, TINY, Dialect
from cof.types import Decoding, Generation, Highlight, Request
from lab.training.tokenizer import coordinate_tokens, make_tokenizer

INTEGERS = BoxTemplate('{{"box": [{}, {}, {}, {}]}}', tuple(map(str, range(200))))
"""As JSON, numbers of one to three digits: rows of a batch fall out of step."""

IMAGES = [picture((60, 40)), picture((40, 90), 1), picture((64, 64), 2)]
QUESTIONS = ["Where is it?", "Where?", "And where is the other one, if there is one at all?"]
ONE = Decoding(max_new_tokens=1)
TEMPLATES = {"llava": LLAVA.box_template, "integers": INTEGERS}


def requests(images: Any = IMAGES) -> list[Request]:
    highlight = Highlight(Region(boxes=((0.4, 0.6, 0.6, 0.9),)), 8.0)
    rows = [Request(image, question) for image, question in zip(images, QUESTIONS, strict=True)]
    return [*rows, Request(images[0], QUESTIONS[1], highlight)]


def constrained(
    made: TransformersEngine, request: Request, template: BoxTemplate
) -> tuple[str, list[float]]:
    """The box and its chosen tokens' log-probabilities; a whole pass without a cache for each."""
    compiled = made._compile(template)
    assert compiled is not None
    prompts = prompts_of(made, [request])
    box, logprobs = made._start(compiled, request), []
    while not box.done:
        longer = extend_prompts(prompts, [box.tokens], 0)
        with torch.inference_mode():
            (logits,) = made.adapter.generate(
                longer, generation_config=made._generation_config(ONE), use_cache=False
            ).logits
        ranked = {token: float(logits[0].log_softmax(-1)[token]) for token in box.choices}
        best = max(ranked, key=ranked.__getitem__)
        logprobs.append(ranked[best])
        box = box.choose(best)
    return box.text, logprobs


@functools.cache
def expected(template: BoxTemplate) -> list[tuple[str, list[float]]]:
    return [constrained(engine("llava"), request, template) for request in requests()]


def assert_expected(boxes: list[Generation], template: BoxTemplate) -> None:
    for box, (text, logprobs) in zip(boxes, expected(template), strict=True):
        assert box.text == text
        assert box.logprobs == pytest.approx(logprobs, abs=2e-5)


def written(
    template: BoxTemplate, row_branches: int, branches: int, rows: list[Request] | None = None
) -> list[Generation]:
    """Boxes with trees of a given size."""
    made, asked = engine("llava"), rows or requests()
    compiled = made._compile(template)
    assert compiled is not None
    with torch.inference_mode():
        starts = [made._start(compiled, request) for request in asked]
        prompts = prompts_of(made, asked)
        with patch.multiple(box_decoding, ROW_BRANCHES=row_branches, BRANCHES=branches):
            boxes, _ = box_decoding.decode_boxes(made.adapter, prompts, starts, 0)
    return boxes


class TestCompiling:
    def test_a_token_for_each_character_or_for_each_number(self) -> None:
        for words, template in ((tokenizer("left"), LLAVA), (make_tokenizer(), TINY)):
            compiled = compile_box_template(
                template.box_template,
                lambda texts, words=words: words(texts, add_special_tokens=False).input_ids,
                "ASSISTANT:",
            )
            assert compiled is not None
            if template is LLAVA:
                assert [len(slot[0]) for slot in compiled.slots] == [6, 6, 6, 6]
                continue
            x1, middle, y2 = (words.convert_tokens_to_ids(names) for names in coordinate_tokens())
            expected = [[(token,) for token in names] for names in (x1, middle, middle, y2)]
            assert [list(slot) for slot in compiled.slots] == expected

    @pytest.mark.parametrize(
        "encode",
        [
            lambda text: [hash(text[i : i + 2]) for i in range(0, len(text), 2)],
            lambda text: [hash(word) for word in text.split(", ")],
            lambda text: [hash(text)],
        ],
    )
    def test_tokens_across_numbers_are_refused(self, encode: Callable[[str], list[int]]) -> None:
        def encode_all(texts: list[str]) -> list[list[int]]:
            return [encode(text) for text in texts]

        assert compile_box_template(INTEGERS, encode_all, "ASSISTANT:") is None

    def test_every_box_can_be_decoded_and_nothing_else(self) -> None:
        template = BoxTemplate("[{}, {}, {}, {}]", ("0", "1", "12", "2"))
        compiled = compile_box_template(
            template, lambda texts: [[ord(c) for c in t] for t in texts], "Where?"
        )
        assert compiled is not None
        texts, waiting = [], [compiled.start()]
        while waiting:
            box = waiting.pop()
            if box.done:
                texts.append(box.text)
                assert f" {box.text}".startswith("".join(map(chr, box.tokens)))
            else:
                assert len(box.choices) > 1
                waiting += [box.choose(token) for token in box.choices]
        expected = [
            template.text((a, b, c, d))
            for a in range(4)
            for b in range(4)
            for c in range(a + 1, 4)
            for d in range(b + 1, 4)
        ]
        assert sorted(texts) == sorted(expected)


@pytest.mark.parametrize(
    ("numbers", "knows"),
    [(["0", "1", "12", "2"], True), (["0", "1", "12", "2"], False), (map(str, range(400)), True)],
    ids=["knows the format", "writes anything", "more tokens than vLLM takes"],
)
def test_vllm_chooses_among_what_the_template_allows(numbers: Iterable[str], knows: bool) -> None:
    """Given one set of allowed tokens for a request; a model that knows the format needs one."""
    template = BoxTemplate("[{}, {}, {}, {}]", tuple(numbers))
    few = len(template.numbers) == 4
    words: dict[str, int] = {}

    def encode(texts: list[str]) -> list[list[int]]:
        pieces = (re.findall("." if few else r"[ \[,]+\d+|.", text) for text in texts)
        return [[words.setdefault(piece, len(words)) for piece in each] for each in pieces]

    compiled = compile_box_template(template, encode, "Where?")
    assert compiled is not None

    def logprob(seed: int, before: tuple[int, ...], token: int) -> float:
        (wish,) = encode([f"Where? {template.text((seed % 2, 0, 2, 1 + seed % 3))}"])
        wanted = knows and wish[6:][len(before) :][:1] == [token]
        return random.Random(f"{seed}{before}{token}").random() + wanted

    def ask(parts: Mapping[int, vllm_boxes.Part]) -> list[Any]:
        counts.update(list(parts))
        return [write(row, *part) for row, part in parts.items()]

    def write(row: int, before: tuple[int, ...], fields: dict[str, Any]) -> Any:
        ids, logprobs = list(before), []
        while len(logprobs) < fields["max_tokens"]:
            values = {
                token: logprob(row, tuple(ids), token) for token in fields["allowed_token_ids"]
            }
            ids.append(max(values, key=values.__getitem__))
            logprobs.append({ids[-1]: SimpleNamespace(logprob=values[ids[-1]])})
            if ids[-1] in fields.get("stop_token_ids", ()):
                break
        return SimpleNamespace(token_ids=ids[len(before) :], logprobs=logprobs)

    counts: Counter[int] = Counter()
    for row, box in enumerate(
        vllm_boxes.decode_boxes([compiled.start()] * (20 if few else 2), ask)
    ):
        one, logprobs = compiled.start(), []
        while not one.done:
            values = {token: logprob(row, one.tokens, token) for token in one.choices}
            best = max(values, key=values.__getitem__)
            logprobs.append(values[best])
            one = one.choose(best)
        assert (box.text, list(box.logprobs)) == (one.text, logprobs)
    assert (max(counts.values()) == 1) == knows


LIMITED = {
    "pixels": (QWEN2_5, Frame.pixels((252, 9))),
    "thousand": (GEMMA4, Frame.of_image(1000)),
    "padding": (LLAVA, Frame.padded_square((1000, 1))),
    "crop": (LLAVA, Frame.centre_crop((300, 50))),
    "odd": (TINY, Frame.padded_square((101, 100))),
}


@pytest.mark.parametrize(("dialect", "frame"), LIMITED.values(), ids=LIMITED)
def test_every_box_of_a_template_lies_on_the_image(dialect: Dialect, frame: Frame) -> None:
    """The first and the last numbers at each place, and some between."""
    template = dialect.box_template
    assert template is not None
    limits = dialect.limits(template, frame)
    assert limits is not None
    compiled = compile_box_template(
        template, lambda texts: [list(map(ord, text)) for text in texts], "Where?"
    )
    assert compiled is not None
    rng = random.Random(0)

    def boxes(text: str) -> tuple[XYXY, ...]:
        read = {
            "units": dialect.units,
            "order": dialect.order,
            "step": 1 if "." not in template.numbers[0] else 0.01,
        }
        return parse_boxes(text, frame, **read).boxes

    ends = [[0, 1, -1, -2, *rng.sample(range(-len(each), len(each)), 2)] for each in limits]
    for places in itertools.product(*ends):
        text = template.text([limit[at] for limit, at in zip(limits, places, strict=True)])
        assert len(boxes(text)) == 1, text
    for choose in (min, max, *[rng.choice] * 20):
        box = compiled.start(limits)
        while not box.done:
            box = box.choose(choose(box.choices))
        assert len(boxes(box.text)) == 1


def test_a_template_of_ones_own_has_no_limits() -> None:
    assert LLAVA.limits(INTEGERS, Frame.of_image()) is None


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
class TestDecoding:
    @pytest.mark.parametrize("sizes", [(0, 0), (16, 64), (16, 30), (60, 1000), (300, 9999)])
    def test_trees_of_any_size_choose_the_same(
        self, template: BoxTemplate, sizes: tuple[int, int]
    ) -> None:
        """None, of one level in every row or in none, of several."""
        assert_expected(written(template, *sizes), template)
        alone = [written(template, *sizes, [request])[0] for request in requests()]
        assert_expected(alone, template)


def test_how_likely_each_number_is() -> None:
    """Against the model's probabilities of all hundred numbers, each read in a pass of its own."""
    tree, one_by_one = (written(LLAVA.box_template, *sizes)[0] for sizes in ((16, 64), (0, 0)))
    assert tree.likely is not None
    assert one_by_one.likely is not None
    assert tree.likely.shape == (4, 100)
    np.testing.assert_allclose(tree.likely.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(one_by_one.likely.sum(1), 1, atol=1e-5)

    chosen = [int(number[2:]) for number in tree.text[1:-1].split(", ")]
    text = "["
    for place, number in enumerate(chosen):
        # of 60 x 40 pixels in a square, 0.17 to 0.83 show the image
        allowed = (range(99), range(84), range(1, 100), range(17, 100))[place]
        allowed = [n for n in allowed if place < 2 or n > chosen[place - 2]]
        first = among(text + "0.", sorted({n // 10 for n in allowed}))
        expected, known = np.zeros(100), np.zeros(100)
        for digit, share in first.items():
            group = [n for n in allowed if n // 10 == digit]
            second = among(f"{text}0.{digit}", [n % 10 for n in group])
            for n in group:
                expected[n] = share * second[n % 10]
                known[n] = expected[n] if digit == number // 10 else share / len(group)
        np.testing.assert_allclose(tree.likely[place], expected, atol=1e-5)
        np.testing.assert_allclose(one_by_one.likely[place], known, atol=1e-5)
        text += f"0.{number:02d}, "


def among(text: str, digits: list[int]) -> dict[int, float]:
    """The probability of each of some digits after the first row's prompt and a text."""
    made = engine("llava")
    prompts = prompts_of(made, requests()[:1])
    words = made.processor.tokenizer
    tokens = words(" " + text, add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([prompts.inputs["input_ids"], tokens], dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs = made.adapter._new_inputs(replace(prompts, inputs=longer))
    with torch.inference_mode():
        logits = made.model(**inputs).logits[0, -1]
    wanted = torch.tensor(words.convert_tokens_to_ids([str(digit) for digit in digits]))
    return dict(zip(digits, logits[wanted].softmax(0).tolist(), strict=True))


@pytest.mark.parametrize(
    "name", ["glm4v", "internvl", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"]
)
def test_other_families(name: str) -> None:
    """Those that have a box template, one for each dialect."""
    made = engine(name)
    template = made.dialect.box_template
    assert template is not None
    asked = requests()[:3]
    for request, decoded in zip(
        asked, made.generate(asked, Decoding(box_template=template)), strict=True
    ):
        text, logprobs = constrained(made, request, template)
        assert decoded.text == text
        assert decoded.logprobs == pytest.approx(logprobs, abs=2e-5)
        frame, units = made.frame(request.image.size), made.dialect.units
        parsed = parse_boxes(decoded.text, frame, units=units, order=made.dialect.order)
        assert len(parsed.boxes) == 1


def test_four_passes_for_eight_digits() -> None:
    made, forwards = engine("llava"), []
    handle = made.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: forwards.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    made.generate(requests()[:1], Decoding(box_template=LLAVA.box_template))
    handle.remove()
    assert len(forwards) == 4
    # two digits, `, 0.` and the ten digits that may follow; fewer of them leave the box an area
    assert all(6 + 2 <= tokens <= 6 + 10 for tokens in forwards[1:])


def test_falls_back_with_a_warning() -> None:
    question, short = [Request(IMAGES[0], "Where?")], Decoding(max_new_tokens=3)
    templated = replace(short, box_template=LLAVA.box_template)
    # no decoder that is seen, and states that cannot be cropped (Qwen3.5's linear attention)
    qwen = engine("qwen3_5")
    for made in (engine("instructblip"), qwen):
        with pytest.warns(CofWarning, match="cannot decode boxes by a template"):
            freely = made.generate(question, templated)
        assert freely == made.generate(question, short)
    with pytest.warns(CofWarning, match="No box template is known for paper models"):
        Prompt(boxes="template", grounding_max_new_tokens=3).locate(
            engine("instructblip"), question
        )
