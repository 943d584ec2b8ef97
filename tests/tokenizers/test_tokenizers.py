"""What real vocabularies and published chat templates do to us: `make test-tokenizers`."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, checkpoint
from models import picture
from transformers import LogitsProcessorList

from cof import CoF, Query, Settings
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.generation import Forced
from cof.families.chat import adds_special_tokens
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region
from cof.grounders import Prompt
from cof.prompting.box_parsing import parse_boxes
from cof.prompting.dialects import fill
from cof.query import Sample
from cof.types import Decoding, Generation, Highlight, Request

WIDE, TALL = picture((150, 60), 0), picture((70, 190), 1)
LOOK = Highlight(Region(boxes=((0.2, 0.2, 0.7, 0.8),)), 8.0)
QUESTIONS = ("What digit is on the red star?", "图片里有什么？", "ما هذا؟ 👩‍🚀🇯🇵")
TEXTS = (
    "图片里有三只小猫，它们在睡觉。𠮷野家",
    "هذه قطة صغيرة، واللَّوْن أحمر.",
    "👍🏽 👩‍👩‍👧 🇯🇵 naïve façade Ωmega",
    "It's  a\n\n\tred <0x41> star, isn't it ?",
)
SHORT = Decoding(max_new_tokens=6)
every = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def engine(family: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(family))


def ids_of(family: str, request: Request) -> list[int]:
    """A prompt's tokens, as the model gets them."""
    ((_, batch),) = engine(family).plan([request], [1])
    return batch.inputs["input_ids"][0].tolist()


def by_template(family: str, image: Any, prompt: str) -> list[int]:
    """The same by the processor's own chat template, tokenized by it."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    inputs = engine(family).processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs["input_ids"][0].tolist()


def close(one: Sequence[Generation], other: Sequence[Generation]) -> bool:
    return all(
        a.token_ids == b.token_ids
        and a.text == b.text
        and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        for a, b in zip(one, other, strict=True)
    )


@every
def test_both_stages_read_what_the_chat_template_writes(family: str, monkeypatch: Any) -> None:
    made, asked = engine(family), []
    generate = made.generate
    monkeypatch.setattr(
        made, "generate", lambda rows, *more: asked.extend(rows) or generate(rows, *more)
    )
    settings = Settings(Prompt(grounding_max_new_tokens=6))
    for question in QUESTIONS:
        CoF(made, settings)(WIDE, question, decoding=SHORT)
    assert [request.prompt for request in asked[::2]] == [
        fill(made.dialect.template, question)[0] for question in QUESTIONS
    ]
    assert {request.prompt for request in asked} >= set(QUESTIONS)
    for request in asked:
        assert ids_of(family, request) == by_template(family, WIDE, request.prompt)


def test_the_chat_of_the_released_code() -> None:
    """LLaVA's own conversation `vicuna_v1`: the numbers that its code gives to the model. The texts
    before and after the image are tokenized apart, so that each begins with a blank of its own."""
    question = "Is there a cat?\nAnswer the question using a single word or phrase."
    sample = Sample.from_query(Query(WIDE, question), Settings(system="vicuna_v1"), False, {})
    ids = ids_of("LLaVA-1.5", sample.request)
    before = """1 319 13563 1546 263 12758 1404 322 385 23116 21082 20255 29889 450 20255 4076 8444
        29892 13173 29892 322 1248 568 6089 304 278 1404 29915 29879 5155 29889 3148 1001 29901
        29871"""
    start = list(map(int, before.split()))
    image = engine("LLaVA-1.5").model.config.image_token_id
    assert ids[: len(start)] == start
    assert ids[len(start) :][: ids.count(image)] == [image] * ids.count(image)
    assert ids[len(start) + ids.count(image) :][:3] == [29871, 13, 3624]  # " ", "\n", "Is"
    assert ids[-5:] == [319, 1799, 9047, 13566, 29901]


@every
def test_special_tokens_of_users_are_text(family: str) -> None:
    made = engine(family)
    tokenizer, special = made.processor.tokenizer, made.chat.special.texts
    own = {token for token in special if token in made.chat.opening()}
    some = sorted(own | {*FAMILIES[family].ends} | {*sorted(special)[:5]} | {*sorted(special)[-5:]})
    numbers = set(tokenizer.convert_tokens_to_ids(some))
    plain = ids_of(family, Request(WIDE, "What does it say?"))
    for typed in (*some, "".join(some)):
        ids = ids_of(family, Request(WIDE, f"What does {typed} say?"))
        assert sum(number in numbers for number in ids) == sum(
            number in numbers for number in plain
        )
        assert typed in tokenizer.decode(ids)


@every
def test_boxes_by_template(family: str) -> None:
    made = engine(family)
    dialect, template = made.dialect, made.dialect.box_template
    if template is None or not made.adapter.reuses_states:
        assert family in ("Gemma 3", "Llama 3.2 Vision")
        return
    asked = [Request(image, fill(dialect.template, QUESTIONS[0])[0]) for image in (WIDE, TALL)]
    assert made._compile(template)
    boxes = made.generate(asked, Decoding(box_template=template))
    frame = Frame.of_image(float(template.numbers[-1]))
    for box in boxes:
        read = parse_boxes(box.text, frame, units=dialect.units, order=dialect.order)
        assert len(read.boxes) == 1, box.text
    again = [made.generate([one], Decoding(box_template=template))[0] for one in asked]
    assert close(again, boxes)


@every
def test_streams_are_the_whole_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is made to say each text, all of them in one batch."""
    made, pieces = engine(family), [[] for _ in TEXTS]
    tokenizer = made.processor.tokenizer
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    end = made._generation_config(SHORT).eos_token_id[0]
    forced = LogitsProcessorList([Forced([[*ids, end] for ids in wanted], end)])
    say = functools.partial(made.adapter.generate, logits_processor=forced)
    monkeypatch.setattr(made.adapter, "generate", say)
    rows = [Request(WIDE, QUESTIONS[0]) for _ in TEXTS]
    longest = Decoding(max_new_tokens=max(map(len, wanted)) + 1)
    replies = made.generate(rows, longest, lambda place, piece: pieces[place].append(piece))
    assert [reply.text for reply in replies] == [text.strip() for text in TEXTS]
    assert ["".join(told) for told in pieces] == [reply.text for reply in replies]
    assert all(len(told) > 3 for told in pieces)


@every
def test_replies_are_scored_as_the_model_does(family: str) -> None:
    made = engine(family)
    replies, asked = ("Yes", "a red 7", *TEXTS[:3]), Request(WIDE, QUESTIONS[1])
    scores = made.score_replies([asked] * len(replies), replies)
    tokenizer, chat = made.processor.tokenizer, made.chat.text(asked)
    for reply, score in zip(replies, scores, strict=True):
        assert tokenizer.decode(score.token_ids[:-1]).strip() == reply
        (alone,) = made.score_replies([asked], [reply])
        assert close([alone], [score])
        text = chat + ("" if chat[-1:].isspace() else " ") + reply
        special = adds_special_tokens(made.processor, text) and made.family.adapter == "decoder"
        inputs = made.processor(
            images=[WIDE], text=text, return_tensors="pt", add_special_tokens=special
        )
        count = len(score.token_ids) - 1
        assert inputs["input_ids"][0, -count:].tolist() == list(score.token_ids[:-1])
        with torch.inference_mode():
            logprobs = made.model(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
        found = logprobs[torch.arange(count), inputs["input_ids"][0, -count:]]
        assert score.logprobs[:-1] == pytest.approx(found.tolist(), abs=1e-4)


@every
def test_batches_are_their_rows(family: str) -> None:
    made, looks = engine(family), (LOOK, None, replace(LOOK, scope="text"))
    rows = [
        Request(image, question, look)
        for image in (WIDE, TALL)
        for question, look in zip(QUESTIONS, looks, strict=True)
    ]
    alone = [made.generate([row], SHORT)[0] for row in rows]
    assert close(made.generate(rows, SHORT), alone)
    looked, plain = alone[0], made.generate([replace(rows[0], highlight=None)], SHORT)[0]
    assert not close([looked], [plain])


def test_times_with_a_large_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    family = "Gemma 3"
    pipeline, times = CoF(engine(family), Settings(focus="none")), []
    for question in ("What is it?", "And what is this?"):
        start = time.perf_counter()
        pipeline(TALL.resize((200, 100)), question, decoding=SHORT)
        times.append(time.perf_counter() - start)
    size = len(engine(family).processor.tokenizer)
    with capsys.disabled():
        print(f"\n{size:,} tokens: first question {times[0]:.2f} s, second {times[1]:.2f} s")
