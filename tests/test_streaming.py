"""Text as it is decoded: the pieces of an answer are its text, and they come while it is made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import zoo
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from models import picture, tokenizer
from PIL import Image
from test_matrix import Heard
from test_special_tokens import KINDS

from cof.answer import SentText
from cof.engines.text_stream import BatchStreamer, TextStream
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError, OutOfMemory
from cof.geometry.regions import Region
from cof.pipeline import CoF, Query
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.tiny import resolve_model
from cof.types import Decoding, Generation, Highlight, OnText, Request

MIDDLE = Region(boxes=((0.4, 0.4, 0.6, 0.6),))
LONG = Decoding(max_new_tokens=24)
SAMPLED = Decoding(max_new_tokens=24, temperature=2.0, seed=4)
BOX_QUESTION = "What letter is on the green square?\nWhere?"  # the reply is four tokens


TOKENIZERS = {
    "bytes": functools.cache(lambda: tokenizer("left")),
    "llama": functools.cache(KINDS["normalizer"]),
    "t5": functools.cache(KINDS["unigram"]),
}


def pieces(words: Any, ids: list[int]) -> list[str]:
    stream = TextStream(words)
    found = [stream.feed(ids[:end]) for end in range(1, len(ids) + 1)]
    return [*found, stream.feed(ids, done=True)]


class TestTextStream:
    @pytest.mark.parametrize("name", TOKENIZERS)
    @given(data=st.data())
    def test_the_pieces_joined_are_the_text(self, name: str, data: st.DataObject) -> None:
        words = TOKENIZERS[name]()
        last = len(words) - 1
        # often words, which come last in the vocabulary
        token = st.integers(0, last) | st.integers(max(0, last - 10), last)
        ids = data.draw(st.lists(token, max_size=30))
        text = words.decode(ids, skip_special_tokens=True).strip()
        assert "".join(pieces(words, ids)) == text

    def test_a_character_comes_with_its_last_byte(self) -> None:
        words = tokenizer("left")
        ids = words(" a €中b ", add_special_tokens=False).input_ids
        assert pieces(words, ids) == ["", "a", "", "", "", " €", "", "", "中", "b", "", ""]

    def test_bytes_are_held_back_until_a_word_follows(self) -> None:
        """They are decoded together: a byte too many, and all of them are unknown characters."""
        words = TOKENIZERS["llama"]()
        names = ["▁i", "<0xE2>", "<0x82>", "<0xAC>", "<0xE2>", "b"]
        ids = words.convert_tokens_to_ids(names)
        assert pieces(words, ids[:4]) == ["i", "", "", "", "€"]
        assert pieces(words, ids) == ["i", "", "", "", "", "����b", ""]


@functools.cache
def tiny() -> TransformersEngine:
    return TransformersEngine.from_pretrained(resolve_model("tiny-early"))


def requests() -> list[Request]:
    """Rows with different questions, images, regions and strengths."""
    images = [picture((60, 40)), picture((40, 90), 1)]
    return [
        Request(images[0], "which digit?", Highlight(MIDDLE, 8.0)),
        Request(images[1], "hi"),
        Request(images[0], "a longer question about it", Highlight(MIDDLE, 0.2, "text")),
    ]


class TestTransformersEngine:
    @pytest.mark.parametrize(
        "decoding",
        [
            Decoding(max_new_tokens=8, num_beams=3),
            Decoding(box_template=TINY.box_template),
        ],
        ids=["beams", "a box"],
    )
    def test_what_is_one_piece(self, decoding: Decoding) -> None:
        heard = Heard()
        replies = tiny().generate(requests(), decoding, heard)
        heard.check(replies)
        assert len(heard.pieces) == len(replies)

    def test_pieces_come_while_tokens_are_computed(self) -> None:
        made, events = tiny(), []
        handle = made.model.register_forward_pre_hook(lambda *_: events.append("pass"))
        try:
            asked = Request(picture((60, 40)), BOX_QUESTION)
            (reply,) = made.generate([asked], LONG, lambda _, piece: events.append(piece))
        finally:
            handle.remove()
        passes = ["pass"] * (len(reply.token_ids) + 1)  # the last one gives the end token
        assert [event for event in events if event == "pass"] == passes
        assert events.index("pass") < events.index(reply.text[:5]) < events.index("pass", 1)

    def test_an_end_token_ends_a_reply(self) -> None:
        words, heard = tokenizer("left"), Heard()
        ends = words.convert_tokens_to_ids(["."])
        streamer = BatchStreamer(words, ends, [7, 8], heard)
        streamer.put(torch.tensor([[1, 1], [1, 1], [1, 1]]))
        for step in ("aab", "\ufffdac", ".ad", "ab.", "aaa"):
            columns = [words.encode(of, add_special_tokens=False)[-1] for of in step]
            streamer.put(torch.tensor(columns))
        assert heard.of(7) == ["a", "�"]
        assert heard.of(8) == ["a", "a", "a", "b", "a"]

    def test_what_is_raised_ends_the_call(self) -> None:
        made, asked = zoo.engine("llava"), requests()
        expected = made.generate(asked, LONG)
        for decoding in (LONG, SAMPLED):
            with pytest.raises(Stop):
                made.generate(asked, decoding, stop)
        assert made.generate(asked, LONG) == expected


class Stop(Exception):
    """Raised by a listener."""


def stop(place: int, piece: str) -> None:
    raise Stop


SQUARE = Image.new("RGB", (64, 64))
BOX = "[0.2, 0.2, 0.4, 0.4]"


def say(request: Request) -> str:
    """Boxes where they are asked for, else words that tell whether it looks."""
    if request.prompt.endswith("Where?"):
        return "none" if "nowhere" in request.prompt else BOX
    return f"{request.prompt} with care" if request.highlight else f"plain {request.prompt}"


def fake(**options: Any) -> FakeEngine:
    return FakeEngine(say, dialect=TINY, **options)


class TestPipeline:
    def test_the_pieces_of_the_answer_alone(self) -> None:
        told: list[str] = []
        answer = CoF(fake(), Settings())(SQUARE, "a b c", on_text=told.append)
        assert (answer.text, told) == ("a b c with care", ["a", " b", " c", " with", " care"])
        answer.plain()
        assert len(told) == 5

    def test_places_are_those_of_the_queries(self) -> None:
        heard = Heard()
        texts = ["a b", "", "c d", "nowhere", "e", "f g h"]
        answers = CoF(fake(), Settings()).batch(
            [(SQUARE, text) for text in texts], batch_size=4, on_error="return", on_text=heard
        )
        heard.check(answers)
        assert [bool(answer.error) for answer in answers] == [text == "" for text in texts]
        assert heard.of(3) == ["plain", " nowhere"]
        assert heard.of(5) == ["f", " g", " h", " with", " care"]

    def test_several_looks_are_one_piece(self) -> None:
        heard = Heard()
        own = Query(SQUARE, "c d", settings=Settings(grounder="whole"))
        made = CoF(fake(), Settings(grounder="prompt+whole"))
        answers = made.batch([(SQUARE, "a b"), own, (SQUARE, "nowhere")], on_text=heard)
        heard.check(answers)
        assert [len(heard.of(place)) for place in range(3)] == [1, 4, 3]

    @pytest.mark.parametrize(("probability", "pieces"), [(0.9, 1), (0.1, 4)])
    def test_a_draft_that_is_kept_is_one_piece(self, probability: float, pieces: int) -> None:
        heard = Heard()
        cof = CoF(fake(probability=probability), Settings(max_plain_confidence=0.5))
        answers = cof.batch([(SQUARE, "a b")], on_text=heard)
        heard.check(answers)
        assert answers[0].text == ("plain a b" if probability > 0.5 else "a b with care")
        assert len(heard.pieces) == pieces

    def test_what_is_raised_ends_the_call(self) -> None:
        engine = fake()
        with pytest.raises(Stop):
            CoF(engine, Settings()).batch(
                [(SQUARE, "a")] * 3, batch_size=1, on_error="return", on_text=stop
            )
        assert len(engine.calls) == 2  # the box, and an answer


class Failing(FakeEngine):
    """Fails after some pieces, unless it is asked about one thing at a time; answers may be other
    ones then."""

    def __init__(self, alone: Callable[[Request], str] = say, after: int = 3) -> None:
        super().__init__(say, dialect=TINY)
        self.alone, self.after = alone, after

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, on_text: OnText | None = None
    ) -> list[Generation]:
        if on_text is None:
            return super().generate(requests, decoding)
        if len(requests) == 1:
            return FakeEngine(self.alone).generate(requests, decoding, on_text)
        left = self.after

        def tell(place: int, piece: str) -> None:
            nonlocal left
            if left == 0:
                raise OutOfMemory("Out of memory.")
            left -= 1
            on_text(place, piece)

        return super().generate(requests, decoding, tell)


class TestRunAgain:
    """A batch that fails is run again in halves."""

    @pytest.mark.parametrize("after", [0, 1, 4, 7])
    def test_nothing_is_sent_twice(self, after: int) -> None:
        heard, once = Heard(), Heard()
        asked = [(SQUARE, text) for text in ("a b", "c", "d e f")]
        answers = CoF(Failing(after=after), Settings()).batch(
            asked, on_error="return", on_text=heard
        )
        CoF(fake(), Settings()).batch(asked, on_text=once)
        heard.check(answers)
        assert sorted(heard.pieces) == sorted(once.pieces)

    def test_another_text_than_the_one_sent_is_an_error_of_its_query(self) -> None:
        def alone(request: Request) -> str:
            return say(request).replace("a b", "a c")

        heard = Heard()
        answers = CoF(Failing(alone, after=4), Settings()).batch(
            [(SQUARE, "a b"), (SQUARE, "c")], on_error="return", on_text=heard
        )
        assert "another text than the one sent" in answers[0].error
        assert (answers[1].error, "".join(heard.of(1))) == ("", "c with care")
        assert "".join(heard.of(0)) == "a b"

    def test_raising(self) -> None:
        with pytest.raises(CofError, match="Out of memory"):
            CoF(Failing(), Settings()).batch([(SQUARE, "a b")] * 2, on_text=Heard())

    def test_a_text_that_ends_too_early(self) -> None:
        text = SentText(lambda _: None)
        text.grow("two words")
        text.begin()
        with pytest.raises(CofError, match="another text"):
            text.finish("two")
