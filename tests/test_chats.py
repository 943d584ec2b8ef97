"""Chats: system messages, earlier turns and several images, of every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeEngine
from models import picture
from PIL import Image
from zoo import EVERY, engine, stock

import cof
from cof import CoF, Query, Settings
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.messages import SYSTEMS, read_messages
from cof.types import Decoding, Highlight, Request, Slot, Turn

FIRST, SECOND = picture((90, 60), 1), picture((70, 100), 2)
SHORT = Decoding(max_new_tokens=5)
BOX = ((0.1, 0.1, 0.6, 0.6),)
LOOK = Settings(strength=8.0, scope="all", expand=1.0)


def text(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": words}]}


def user(*parts: str | Image.Image) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": part}
            for part in parts
        ],
    }


CHAT = [
    text("system", "Be brief."),
    user(FIRST, "What is it?"),
    text("assistant", "A star."),
    user(SECOND, "And what colour is this?"),
]
ALONE = [text("system", "Be brief."), user("Hello")]


def request(chat: list[dict[str, Any]], number: int | None = None, **more: Any) -> Request:
    read = read_messages(chat, number)
    return Request(read.image, read.prompt, chat=read.turns, others=read.others, **more)


def by_transformers(name: str, chat: list[dict[str, Any]]) -> str:
    """What transformers' own chat template, processor and `generate` answer."""
    made, model = engine(name), stock(name)
    processor = made.processor
    images = [p["image"] for turn in chat for p in turn["content"] if p["type"] == "image"]
    shown = [
        {**turn, "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
        for turn in chat
    ]
    prompt = processor.apply_chat_template(
        shown,
        chat_template=processor.chat_template or made.family.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    bos = processor.tokenizer.bos_token
    special = not (bos and prompt.startswith(bos))
    if images:
        # of several images LLaVA-OneVision's processor tiles none; we tile each, as if alone
        nested = images if name == "llava_onevision" else [images]
        arrays = processor(
            images=nested, text=[prompt], return_tensors="np", add_special_tokens=special
        )
        inputs = {key: torch.as_tensor(np.asarray(value)) for key, value in arrays.items()}
    else:
        inputs = processor.tokenizer(prompt, return_tensors="pt", add_special_tokens=special)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    out = model.generate(**inputs, max_new_tokens=SHORT.max_new_tokens, do_sample=False)
    answer = out[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def takes_several(name: str) -> bool:
    return bool(engine(name).takes_two)


@pytest.mark.parametrize("chat", [CHAT, ALONE], ids=["two images", "no image"])
@pytest.mark.parametrize("name", EVERY)
def test_a_chat_is_what_transformers_makes_of_it(name: str, chat: list[dict[str, Any]]) -> None:
    cof = CoF(engine(name), LOOK.changed(strength=1.0))
    if not takes_several(name):
        with pytest.raises(CofError, match=r"one image at a time|no place for|images alone"):
            cof.chat(chat, decoding=SHORT)
        return
    boxes = BOX if chat is CHAT else None
    assert cof.chat(chat, boxes=boxes, decoding=SHORT).text == by_transformers(name, chat)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", EVERY)
def test_the_bias_is_on_the_tokens_of_the_image_that_is_looked_at(name: str, number: int) -> None:
    if not takes_several(name):
        pytest.skip("it takes one image")
    made = engine(name)
    highlight = Highlight(Region(boxes=BOX), 8.0)
    asked = request(CHAT, number, highlight=highlight)
    ((_, batch),) = made.plan([asked], [1])
    bias = made.prompts(batch).bias
    assert bias is not None
    is_image = batch.inputs["input_ids"][0] == made.model.config.image_token_id
    images = [FIRST, SECOND]
    masks = [torch.from_numpy(made.token_mask(i.size, highlight).ravel()) for i in images]
    marked = torch.cat([m if at == number else m & False for at, m in enumerate(masks)])
    assert marked.any()
    assert torch.equal(bias.values[0][is_image] != 0, marked)
    assert not bias.values[0][~is_image].any()


@pytest.mark.parametrize("name", EVERY)
def test_states_are_reused_within_a_chat(name: str) -> None:
    if not takes_several(name):
        pytest.skip("it takes one image")
    made = engine(name)
    highlight = Highlight(Region(boxes=BOX), 8.0, scope="text")
    other = [text("system", "Be long."), *CHAT[1:]]
    swapped = [CHAT[0], user(SECOND, "What is it?"), CHAT[2], user(FIRST, "And what is this?")]
    chats = [request(chat, highlight=highlight) for chat in (CHAT, other, CHAT[-1:], swapped)]
    expected = [made.generate([each], SHORT)[0] for each in chats]
    first, second = made.encode([FIRST, SECOND], prefill=True)
    known = {id(FIRST): first, id(SECOND): second}
    reused = [
        Request(
            known[id(each.image)],
            each.prompt,
            highlight,
            chat=each.chat,
            others=tuple(known[id(image)] for image in each.others),
        )
        for each in chats
    ]
    for _ in range(2):
        assert [r.text for r in made.generate(reused, SHORT)] == [r.text for r in expected]
    for each, want in zip(reversed(reused), reversed(expected), strict=True):
        assert made.generate([each], SHORT)[0].text == want.text


def test_batches_of_chats_and_questions_answer_as_alone() -> None:
    cof = CoF(engine("llava"), LOOK)
    queries = [
        Query(messages=CHAT, boxes=BOX),
        Query(FIRST, "which digit?", boxes=BOX),
        Query(0, messages=CHAT, boxes=BOX),
        Query(messages=ALONE),
        Query(FIRST, "which digit?", system="Be brief.", boxes=BOX),
    ]
    together = [answer.text for answer in cof.batch(queries, decoding=SHORT)]
    assert together == [cof.batch([query], decoding=SHORT)[0].text for query in queries]
    assert len(set(together)) > 3


def test_both_stages_see_the_same_chat() -> None:
    fake = FakeEngine(lambda asked: "[0.1, 0.1, 0.5, 0.5]" if "box" in asked.prompt else "red")
    answer = CoF(fake, Settings(expand=1.0)).chat(CHAT)
    (stage_one, stage_two) = [asked for asked, _ in fake.calls]
    assert stage_one[0].chat == stage_two[0].chat == request(CHAT).chat
    assert stage_one[0].images == stage_two[0].images
    assert "And what colour is this?" in stage_one[0].prompt
    assert stage_two[0].prompt == answer.question == "And what colour is this?"
    assert stage_two[0].highlight is not None
    assert answer.image.size == SECOND.size


def test_a_system_message_is_the_settings_or_the_querys() -> None:
    fake = FakeEngine(lambda asked: "x")
    cof = CoF(fake, Settings(focus="none", system="Of the settings."))
    cof(FIRST, "what?")
    cof(FIRST, "what?", system="Of the query.")
    cof(FIRST, "what?", system="")
    cof.chat(CHAT)
    systems = [[t.parts[0] for t in asked[0].chat if t.role == "system"] for asked, _ in fake.calls]
    assert systems == [["Of the settings."], ["Of the query."], [], ["Be brief."]]


def test_messages_of_openai_and_of_transformers_are_read_alike() -> None:
    address = {"type": "image_url", "image_url": {"url": "a.png"}}
    ways = [
        [{"role": "user", "content": [address, {"type": "text", "text": "what?"}]}],
        [{"role": "user", "content": [{"type": "image", "url": "a.png"}, "what?"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}, "what?"]}],
    ]
    for way in ways:
        read = read_messages(way)
        assert read.turns == (Turn("user", (Slot.IMAGE, Slot.PROMPT)),)
        assert (read.prompt, read.image, read.others) == ("what?", "a.png", ())
    long = [{"role": "developer", "content": "x"}, user(FIRST, "a", SECOND, "b")]
    assert read_messages(long, 0).turns == (
        Turn("system", ("x",)),
        Turn("user", (Slot.IMAGE, "a", 0, Slot.PROMPT)),
    )


@pytest.mark.parametrize(
    ("chat", "options", "says"),
    [
        ("what?", {}, "list of messages"),
        ([user(FIRST)], {}, "must be the user's"),
        ([user(FIRST, "what?")], {"image": 1}, "no image 1"),
        ([user("what?")], {"image": 0}, "has no image 0: it has 0"),
    ],
)
def test_chats_that_cannot_be_read(chat: Any, options: dict[str, Any], says: str) -> None:
    """More of them: tests/test_server.py."""
    with pytest.raises(CofError, match=says):
        CoF(FakeEngine({}), Settings()).chat(chat, **options)


def test_a_query_is_a_question_or_a_chat() -> None:
    cof = CoF(FakeEngine({}), Settings())
    for query, says in [
        ({"image": FIRST, "question": "a", "messages": CHAT}, "itself"),
        (Query(FIRST, messages=CHAT), "itself"),
        (Query(question="what?"), "no image"),
    ]:
        with pytest.raises(CofError, match=says):
            cof.batch([query])


@pytest.mark.parametrize("preset", ["paper", "paper-parity"])
def test_the_paper_asks_llava_with_its_system_message(preset: str) -> None:
    seen = FakeEngine(lambda asked: "[0.1, 0.1, 0.5, 0.5]")
    for settings in (cof.preset(f"{preset}:llava-1.5-7b"), cof.preset(f"{preset}:llava-1.5-13b")):
        CoF(seen, settings)(FIRST, "what?")
    first = {asked[0].chat[0] for asked, _ in seen.calls}
    assert first == {Turn("system", (SYSTEMS["vicuna_v1"],))}
    (asked, _), *_ = seen.calls
    assert (
        engine("llava")
        .chat.text(asked[0])
        .startswith(
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        )
    )
    CoF(seen, settings.changed(system=""))(FIRST, "what?")
    assert seen.calls[-1][0][0].chat[0].role == "user"
