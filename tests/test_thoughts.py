"""What a reasoning model thinks is no part of its answer, nor of its boxes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from fakes import FakeEngine
from models import picture
from zoo import engine

from cof import CoF, Settings
from cof.engines.text_stream import TextStream, apart_from_thoughts
from cof.families.chat import Chat
from cof.prompting.thoughts import TAGS, Thoughts, decode, tags_in
from cof.types import Generation, Request, Thought, confidence

IMAGE = picture((40, 30), 0)
REPLIES = {
    "<think>It may be [0, 0, 1, 1]...</think> [0.5, 0.6, 0.7, 0.8]": (
        "It may be [0, 0, 1, 1]...",
        "[0.5, 0.6, 0.7, 0.8]",
    ),
    " <think>\n\n</think>\n\nRed.": ("", "Red."),
    "Red <think>?</think>": ("", "Red <think>?</think>"),
    "<think>cut </thin": ("cut </thin", ""),
    "<thin": ("", "<thin"),
    "": ("", ""),
}


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("width", [1, 2, 5, 100])
def test_a_reply_is_split_alike_however_it_comes(
    tags: tuple[str, str], reply: str, width: int
) -> None:
    def of(text: str) -> str:
        return text.replace("<think>", tags[0]).replace("</think>", tags[1])

    whole = of(reply)
    thoughts = Thoughts(tags)
    parts = [thoughts.feed(whole[i : i + width]) for i in range(0, len(whole), width)]
    parts.append(thoughts.feed("", done=True))
    told, text = ("".join(each) for each in zip(*parts, strict=True))
    if "cut" not in reply or tags == TAGS[0]:
        assert (told, text.strip()) == tuple(map(of, REPLIES[reply]))
    assert Thoughts(tags).feed(whole, done=True)[0].strip() == told


def test_a_prompt_that_opens_the_thoughts() -> None:
    thoughts = Thoughts(TAGS[0], inside=True)
    assert thoughts.feed("hm</think>\n\nRed.", done=True) == ("hm", "Red.")


def test_tags_that_are_special_tokens() -> None:
    """Mistral's: they are skipped with all others where tokens become text."""
    words = copy.deepcopy(engine("qwen3_vl").processor.tokenizer)
    words.add_special_tokens({"extra_special_tokens": ["[THINK]", "[/THINK]"]})
    said = "[THINK]hm, [b][/THINK]Red."
    ids = words(said + words.eos_token, add_special_tokens=False)["input_ids"]
    assert decode(words, ids) == said
    assert "THINK" not in words.decode(ids, skip_special_tokens=True)
    stream, thoughts = TextStream(words), Thoughts(TAGS[-1])
    pieces = [stream.feed(ids[:n], done=n == len(ids)) for n in range(1, len(ids) + 1)]
    assert "".join(pieces) == said
    told = [thoughts.feed(piece) for piece in pieces]
    assert tuple(map("".join, zip(*told, strict=True))) == ("hm, [b]", "Red.")
    assert tags_in("{{ '[THINK]' + each.thinking + '[/THINK]' }}") == TAGS[-1]


@pytest.fixture
def chat() -> Chat:
    """Of a model whose template opens the thoughts, unless it is told not to."""
    made = engine("qwen3_vl")
    processor = copy.copy(made.processor)
    processor.chat_template = made.processor.chat_template + (
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% else %}<think>\n{% endif %}"
    )
    return Chat(made.family, made.dialect, processor)


def test_generations_and_streams(chat: Chat) -> None:
    tokenizer = chat.processor.tokenizer
    whole = "hm, <b></think>Red."
    ids = tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])
    reply = Generation(whole, ids, tuple(-1.0 * n for n in range(len(ids))))
    told: list[tuple[int, str]] = []

    def generate(on_text: Any) -> list[Generation]:
        for piece in ("hm, <b>", "</thi", "nk>R", "ed."):
            on_text(0, piece)
        return [reply, Generation("</think>Blue.", (), ())]

    asked = [Request(IMAGE, "what?"), Request(IMAGE, "what?")]
    first, second = apart_from_thoughts(
        chat, asked, lambda place, piece: told.append((place, piece)), generate
    )
    assert (first.reasoning, first.text) == ("hm, <b>", "Red.")
    assert tokenizer.decode(first.token_ids[first.start :]) == "Red."
    rest = reply.logprobs[first.start :]
    assert confidence(first) == pytest.approx(math.exp(sum(rest) / len(rest)))
    assert (second.reasoning, second.text) == ("", "Blue.")
    assert [piece for _, piece in told if isinstance(piece, Thought)] == ["hm, <b>"]
    assert "".join(piece for _, piece in told if not isinstance(piece, Thought)) == "Red."


def test_stage_one_does_not_think(chat: Chat) -> None:
    assert chat.text(Request(IMAGE, "what?")).endswith("<think>\n")
    assert chat.text(Request(IMAGE, "what?", thinks=False)).endswith("</think>\n\n")
    seen = FakeEngine(lambda asked: "[0.1, 0.1, 0.5, 0.5]")
    CoF(seen, Settings())(IMAGE, "what?")
    assert [asked[0].thinks for asked, _ in seen.calls] == [False, True]


class Reasoning(FakeEngine):
    """Thinks, and may not come to an end."""

    def _reply(self, request: Request) -> Generation:
        ended = "box" not in request.prompt
        return Generation("red" if ended else "", (1, 2), (-1.0, -2.0), "It may be [0, 0, 1, 1]")


def test_a_reply_that_ends_within_its_thoughts() -> None:
    answer = CoF(Reasoning({}), Settings())(IMAGE, "what?")
    assert not answer.found
    assert "ended within its thoughts" in answer.reason
    assert (answer.text, answer.reasoning) == ("red", "It may be [0, 0, 1, 1]")
    assert answer.as_dict()["reasoning"] == answer.reasoning
