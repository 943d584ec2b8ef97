"""Boxes decoded by a template equal token-by-token constrained decoding, in fewer passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint, picture, prompts_of, tokenizer
from zoo import BUILDERS, zoo

from cof.engines.transformers.box_decoding import decode_boxes
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.prefix_cache import extend_prompts
from cof.errors import CofWarning
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region
from cof.grounders import Prompt
from cof.pipeline import CoF
from cof.prompting import box_template as box_template
from cof.prompting.box_parsing import parse_boxes
from cof.prompting.box_template import BoxTemplate, compile_box_template
from cof.prompting.dialects import LLAVA, TINY
from cof.settings import Settings
from cof.types import Decoding, Generation, Highlight, Request, confidence
from lab.training.tokenizer import coordinate_tokens, make_tokenizer

INTEGERS = BoxTemplate('{{"box": [{}, {}, {}, {}]}}', tuple(map(str, range(200))))
"""As JSON, numbers of one to three digits: rows of a batch fall out of step."""

IMAGES = [picture((60, 40)), picture((40, 90), 1), picture((64, 64), 2)]
QUESTIONS = ["Where is it?", "Where?", "And where is the other one, if there is one at all?"]
ONE = Decoding(max_new_tokens=1)
TEMPLATES = {"llava": LLAVA.box_template, "integers": INTEGERS}


def zoo_templates() -> set[str]:
    """Tiny models of families that have a box template, one for each dialect."""
    made = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "glm4v", "paligemma"}
    assert made <= set(BUILDERS)
    return made


@functools.cache
def engine(name: str = "llava") -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name))


def requests(images: Any = IMAGES) -> list[Request]:
    highlight = Highlight(Region(boxes=((0.4, 0.6, 0.6, 0.9),)), 8.0)
    rows = [Request(image, question) for image, question in zip(images, QUESTIONS, strict=True)]
    return [*rows, Request(images[0], QUESTIONS[1], highlight)]


def characters(template: BoxTemplate, written: str) -> set[str]:
    """Which characters may follow, spelled out from all the boxes that there are."""
    literals = [part.format() for part in template.pattern.split("{}")]
    text, values = "", []
    for place in range(4):
        numbers = template.numbers[:-1]
        if place >= 2:
            numbers = template.numbers[template.numbers.index(values[place - 2]) + 1 :]
        whole = [text + literals[place] + n + literals[place + 1] for n in numbers]
        fits = [w for w in whole if w.startswith(written) and w != written]
        over = [n for n, w in zip(numbers, whole, strict=True) if written.startswith(w)]
        if not over:
            return {w[len(written)] for w in fits}
        text, values = text + literals[place] + over[0], [*values, over[0]]
    return set()


@functools.cache
def by_characters(template: BoxTemplate, row: int) -> tuple[str, float]:
    """The box and its chosen characters' log-probability; a whole pass for every character."""
    made, request = engine(), requests()[row]
    prompts = prompts_of(made, [request])
    vocabulary = made.processor.tokenizer.get_vocab()
    ids, text, total, choices = prompts.inputs["input_ids"], "", 0.0, 0
    blank = torch.tensor([made.processor.tokenizer(" ", add_special_tokens=False)["input_ids"]])
    ids = torch.cat([ids, blank], dim=1)
    while allowed := characters(template, text):
        prompts.inputs.update(input_ids=ids, attention_mask=torch.ones_like(ids))
        with torch.inference_mode():
            logits = (
                made.adapter.generate(
                    prompts,
                    max_new_tokens=1,
                    return_dict_in_generate=True,
                    output_logits=True,
                    do_sample=False,
                    pad_token_id=0,
                    use_cache=False,
                )
                .logits[0][0]
                .log_softmax(-1)
            )
        ranked = {c: float(logits[vocabulary["\u0120" if c == " " else c]]) for c in allowed}
        best = max(ranked, key=ranked.__getitem__)
        if len(ranked) > 1:
            total, choices = total + ranked[best], choices + 1
        text += best
        token = vocabulary["\u0120" if best == " " else best]
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return text, total / choices


def written(
    template: BoxTemplate, row_branches: int, branches: int, rows: list[Request] | None = None
) -> list[Generation]:
    """Boxes with trees of a given size."""
    made, asked = engine(), rows or requests()
    compiled = made._compile(template)
    assert compiled is not None
    with torch.inference_mode():
        prompts = prompts_of(made, asked)
        boxes, _ = decode_boxes(
            made.adapter, prompts, compiled, 0, row_branches=row_branches, branches=branches
        )
    return boxes


@contextmanager
def counted(made: TransformersEngine) -> Iterator[list[int]]:
    forwards: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        forwards.append(kwargs["inputs_embeds"].shape[1])

    decoder = made.model.model.language_model
    handle = decoder.register_forward_pre_hook(count, with_kwargs=True)
    yield forwards
    handle.remove()


class TestCompiling:
    def test_a_token_for_each_character(self) -> None:
        words = tokenizer("left")
        compiled = compile_box_template(
            LLAVA.box_template, lambda t: words(t, add_special_tokens=False).input_ids, "ASSISTANT:"
        )
        assert compiled is not None
        assert [len(slot[0]) for slot in compiled.slots] == [6, 6, 6, 6]

    def test_the_embedded_model_has_a_token_for_each_number(self) -> None:
        words = make_tokenizer()
        compiled = compile_box_template(
            TINY.box_template, lambda t: words(t, add_special_tokens=False).input_ids, " ASSISTANT:"
        )
        assert compiled is not None
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


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
class TestDecoding:
    def test_equals_constrained_decoding(self, template: BoxTemplate) -> None:
        written = engine().generate(requests(), Decoding(box_template=template))
        for row, box in enumerate(written):
            text, mean = by_characters(template, row)
            assert box.text == text
            assert confidence(box) == pytest.approx(math.exp(mean), rel=1e-4)
        assert len({box.text for box in written}) > 1

    def test_one_by_one_and_from_a_prefix(self, template: BoxTemplate) -> None:
        made, decoding = engine(), Decoding(box_template=template)
        together = made.generate(requests(), decoding)
        prefilled = made.encode(IMAGES, prefill=True)
        for other in (
            [made.generate([request], decoding)[0] for request in requests()],
            made.generate(requests(prefilled), decoding),
        ):
            for a, b in zip(together, other, strict=True):
                assert (a.text, a.token_ids) == (b.text, b.token_ids)
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)

    def test_is_always_parsed(self, template: BoxTemplate) -> None:
        frame = Frame.of_image(1.0 if template is LLAVA.box_template else 200.0)
        units = "unit" if template is LLAVA.box_template else "pixels"
        for box in engine().generate(requests(), Decoding(box_template=template)):
            assert len(parse_boxes(box.text, frame, units=units).boxes) == 1


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("sizes", [(0, 0), (16, 64), (16, 30), (60, 1000), (300, 9999)])
def test_trees_of_any_size_choose_the_same(template: BoxTemplate, sizes: tuple[int, int]) -> None:
    """None, of one level in every row or in none, of several."""
    alone = [written(template, *sizes, [request])[0] for request in requests()]
    for boxes in (written(template, *sizes), alone):
        for row, box in enumerate(boxes):
            text, mean = by_characters(template, row)
            assert box.text == text
            assert confidence(box) == pytest.approx(math.exp(mean), rel=1e-4)


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
        allowed = [n for n in range(100) if (n < 99 if place < 2 else n > chosen[place - 2])]
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
    made = engine()
    prompts = prompts_of(made, requests()[:1])
    words = made.processor.tokenizer
    tokens = words(" " + text, add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([prompts.inputs["input_ids"], tokens], dim=1)
    inputs = made.adapter._inputs({"input_ids": ids}, prompts.features)
    with torch.inference_mode():
        logits = made.model(**inputs).logits[0, -1]
    wanted = torch.tensor(words.convert_tokens_to_ids([str(digit) for digit in digits]))
    return dict(zip(digits, logits[wanted].softmax(0).tolist(), strict=True))


@pytest.mark.parametrize("name", sorted(zoo_templates()))
def test_other_families(name: str) -> None:
    """Against a whole pass for every token, from transformers' own `generate` without a cache."""
    made = TransformersEngine.from_pretrained(zoo(name))
    template = made.dialect.box_template
    assert template is not None
    asked = [Request(image, question) for image, question in zip(IMAGES, QUESTIONS, strict=True)]
    boxes = made.generate(asked, Decoding(box_template=template))
    compiled = made._compile(template)
    assert compiled is not None
    for request, decoded in zip(asked, boxes, strict=True):
        prompts = prompts_of(made, [request])
        box, logprobs = compiled.start(), []
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
        assert decoded.text == box.text
        assert decoded.logprobs == pytest.approx(logprobs, abs=2e-5)
        frame, units = made.frame(request.image.size), made.dialect.units
        parsed = parse_boxes(decoded.text, frame, units=units, order=made.dialect.order)
        assert len(parsed.boxes) == 1 or parsed.reason


def test_four_passes_for_eight_digits() -> None:
    made = engine()
    with counted(made) as forwards:
        made.generate(requests()[:1], Decoding(box_template=LLAVA.box_template))
    assert len(forwards) == 4
    # two digits, `, 0.` and the ten digits that may follow; fewer of them leave the box an area
    assert all(6 + 2 <= tokens <= 6 + 10 for tokens in forwards[1:])


def test_setting() -> None:
    decoding = Decoding(max_new_tokens=3)
    cof = CoF(engine(), Settings(boxes="template"))
    answer = cof(IMAGES[0], "Which digit?", decoding=decoding)
    assert parse_boxes(answer.grounding_text, Frame.padded_square((60, 40))).boxes or answer.reason
    assert answer.grounding_text.startswith("[0.")
    free = CoF(engine(), Settings(grounding_max_new_tokens=5))
    assert not free.locate(IMAGES[0], "Which digit?").text.startswith("[0.")


def test_falls_back_with_a_warning() -> None:
    question = [Request(IMAGES[0], "Where?")]
    made = engine("instructblip")
    with pytest.warns(CofWarning, match="cannot decode boxes by a template"):
        freely = made.generate(
            question, Decoding(max_new_tokens=3, box_template=LLAVA.box_template)
        )
    assert freely == made.generate(question, Decoding(max_new_tokens=3))
    with pytest.warns(CofWarning, match="No box template is known for paper models"):
        Prompt(boxes="template", grounding_max_new_tokens=3).locate(made, question)


def test_states_that_cannot_be_cropped_have_no_branches() -> None:
    """Qwen3.5's linear attention: it writes boxes freely."""
    made = TransformersEngine.from_pretrained(zoo("qwen3_5"))
    with pytest.warns(CofWarning, match="cannot decode boxes by a template"):
        (box,) = made.generate(
            requests()[:1], Decoding(max_new_tokens=3, box_template=LLAVA.box_template)
        )
    assert box.likely is None
