"""Several grounders, and the plain answer first: what is asked, and which answer is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from fakes import FakeEngine
from PIL import Image

from cof.answer import Answer
from cof.engines.base import Engine
from cof.geometry.regions import EVERYTHING, Region
from cof.grounders import GROUNDERS, Grounder
from cof.pipeline import CoF
from cof.query import Query
from cof.settings import Settings
from cof.types import Generation, Grounding, Request

QUESTION = "What digit is on the red star?"
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
SQUARE = Image.new("RGB", (64, 64))


@dataclass(frozen=True)
class Left(Grounder):
    """Finds the left half, except where the question is about nothing or the right half."""

    name: ClassVar[str] = "left"
    box: ClassVar[Any] = LEFT
    blind: ClassVar[tuple[str, ...]] = ("nothing", "right")

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        return [
            Grounding(None, reason=f"no {self.name}")
            if any(word in request.prompt for word in self.blind)
            else Grounding(Region(boxes=(self.box,)))
            for request in requests
        ]


@dataclass(frozen=True)
class Right(Left):
    name: ClassVar[str] = "right"
    box: ClassVar[Any] = RIGHT
    blind: ClassVar[tuple[str, ...]] = ("nothing", "left")


@pytest.fixture(autouse=True)
def grounders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUNDERS, "left", Left)
    monkeypatch.setitem(GROUNDERS, "right", Right)


class Sure(FakeEngine):
    """Says where it looks, with one probability for the first word and another for the rest."""

    def __init__(self, **first: float) -> None:
        super().__init__(lambda request: "")
        self.first = first

    def _reply(self, request: Request) -> Generation:
        if request.highlight is None:
            place = "plain"
        elif request.highlight.region is EVERYTHING:
            place = "whole"
        else:
            place = {LEFT: "left", RIGHT: "right"}[request.highlight.region.boxes[0]]
        first = self.first[place]
        if first == 0:
            return Generation("")
        # the second token makes the mean go the other way
        return Generation(f"{place} side", (1, 2), (math.log(first), math.log(1 - first)))


def ask(engine: FakeEngine, question: str = QUESTION, **settings: Any) -> Answer:
    options = {"grounder": "left+right", "expand": 1.0, **settings}
    return CoF(engine, Settings(**options))(SQUARE, question)


class TestSeveralGrounders:
    @pytest.mark.parametrize(("left", "right"), [(0.9, 0.6), (0.6, 0.9), (0.7, 0.7), (0, 0.01)])
    def test_the_surer_by_the_first_token_is_kept(self, left: float, right: float) -> None:
        """Of equals the first; an empty answer, of probability 0 here, never is."""
        engine = Sure(left=left, right=right)
        answer = ask(engine)
        kept, box = ("left", LEFT) if left >= right else ("right", RIGHT)
        assert (answer.text, answer.grounder, answer.boxes) == (f"{kept} side", kept, (box,))
        assert answer.raw_boxes == (box,)
        ((requests, _),) = engine.calls  # one call about one encoded image
        assert [r.highlight.region.boxes for r in requests if r.highlight] == [(LEFT,), (RIGHT,)]
        assert requests[0].image is requests[1].image
        assert len(engine.encoded) == 1

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_look_that_finds_nothing_does_not_count(self, side: str) -> None:
        engine = Sure(left=0.1, right=0.1, plain=0.99, whole=0.99)
        answer = ask(engine, f"What is {side}?")
        assert (answer.text, answer.grounder, answer.found) == (f"{side} side", side, True)
        assert [len(requests) for requests, _ in engine.calls] == [1]

    @pytest.mark.parametrize("released", [False, True])
    def test_none_finds_anything(self, released: bool) -> None:
        engine = Sure(plain=0.5, whole=0.5)
        answer = ask(engine, "nothing?", released=released)
        assert (answer.text, answer.found) == ("whole side" if released else "plain side", False)
        assert (answer.grounder, answer.reason) == ("left", "no left")
        assert [len(requests) for requests, _ in engine.calls] == [1]

    def test_batch_equals_one_by_one(self) -> None:
        questions = [QUESTION, "left?", "nothing?", "right?", QUESTION]
        queries = [Query(SQUARE, question) for question in questions]
        queries.insert(2, Query(SQUARE, QUESTION, boxes=[RIGHT]))
        queries.insert(4, Query(SQUARE, QUESTION, strength=1.0))
        engine = Sure(left=0.3, right=0.4, plain=0.5)
        cof = CoF(engine, Settings(grounder="left+right", expand=1.0))
        together, calls = cof.batch(queries), len(engine.calls)
        apart = [cof.batch([query])[0] for query in queries]
        assert [(a.text, a.grounder, a.reason) for a in together] == [
            (a.text, a.grounder, a.reason) for a in apart
        ]
        assert [a.grounder for a in together][2] == "given"
        assert calls == 1

    def test_locate_is_the_first_that_finds_something(self) -> None:
        for released in (False, True):
            cof = CoF(Sure(), Settings(grounder="left+right", released=released))
            for question, box in ((QUESTION, LEFT), ("right?", RIGHT)):
                assert cof.locate(SQUARE, question).region == Region(boxes=(box,))
            assert cof.locate(SQUARE, "nothing?").reason == "no left"


class TestPlainAnswerFirst:
    """Its confidence is the geometric mean: 0.4 for a first token of 0.8 and a second of 0.2."""

    def engine(self) -> Sure:
        return Sure(plain=0.8, left=0.9, whole=0.9)

    def test_a_sure_plain_answer_is_kept(self) -> None:
        engine = self.engine()
        answer = ask(engine, grounder="left", max_plain_confidence=0.39, released=True)
        assert (answer.text, answer.found, answer.region) == ("plain side", False, None)
        assert "confidence of 0.40 is above 0.39" in answer.reason
        assert answer.plain() == "plain side"
        assert len(engine.calls) == 1

    @pytest.mark.parametrize("limit", [0.4 + 1e-9, 0.5])
    def test_an_unsure_one_costs_one_more_answer(self, limit: float) -> None:
        engine = self.engine()
        answer = ask(engine, grounder="left", max_plain_confidence=limit)
        assert (answer.text, answer.found, answer.reason) == ("left side", True, "")
        assert answer.plain() == "plain side"
        assert [len(requests) for requests, _ in engine.calls] == [1, 1]
        first, second = (requests[0] for requests, _ in engine.calls)
        assert first.highlight is None
        assert first.image is second.image

    @pytest.mark.parametrize("released", [False, True])
    def test_an_unsure_one_is_kept_where_nothing_is_found(self, released: bool) -> None:
        """Or with the released code's switch the whole image is looked at."""
        engine = self.engine()
        options = {"grounder": "left", "max_plain_confidence": 0.5, "released": released}
        answer = ask(engine, "nothing?", **options)
        assert (answer.text, answer.reason) == (
            f"{'whole' if released else 'plain'} side",
            "no left",
        )
        assert answer.region is (EVERYTHING if released else None)
        assert len(engine.calls) == 1 + released

    @pytest.mark.parametrize(
        "settings",
        [
            {"grounder": "left", "max_plain_confidence": 1.0},
            {"grounder": "none"},
            {"grounder": "left", "strength": 1.0},
        ],
    )
    def test_it_is_not_asked_where_it_decides_nothing(self, settings: dict[str, Any]) -> None:
        engine = self.engine()
        ask(engine, **{"max_plain_confidence": 0.5, **settings})
        assert len(engine.calls) == 1

    def test_your_own_region_is_always_looked_at(self) -> None:
        engine = self.engine()
        cof = CoF(engine, Settings(max_plain_confidence=0.0, expand=1.0))
        assert cof(SQUARE, QUESTION, boxes=[LEFT]).text == "left side"
        assert len(engine.calls) == 1

    def test_only_the_unsure_are_grounded(self) -> None:
        class ByQuestion(Sure):
            def _reply(self, request: Request) -> Generation:
                self.first["plain"] = 0.5 if "sure" in request.prompt else 0.8
                return super()._reply(request)

        engine = ByQuestion(left=0.9, right=0.7)
        cof = CoF(engine, Settings(grounder="left+right", expand=1.0, max_plain_confidence=0.45))
        queries = [(SQUARE, "sure?"), (SQUARE, QUESTION), (SQUARE, "sure, right?")]
        answers = cof.batch(queries)
        assert [answer.text for answer in answers] == ["plain side", "left side", "plain side"]
        assert [len(requests) for requests, _ in engine.calls] == [3, 2]
