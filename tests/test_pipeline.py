"""The pipeline on a fake engine: what is asked, in which order, and what comes out."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from PIL import Image

from cof import pipeline
from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import EVERYTHING, Region
from cof.pipeline import CoF
from cof.presets import preset
from cof.prompting.dialects import LLAVA, PAPER_PROMPT, TINY, fill
from cof.query import Query
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Request

QUESTION = "What digit is on the red star?"
BOX = (0.2, 0.2, 0.4, 0.6)
SQUARE = Image.new("RGB", (64, 64))


def engine(box: str = str(list(BOX)), **options: Any) -> FakeEngine:
    """Answers `plain` without a highlight, `focused` with one, and says `box` when asked where."""

    def reply(request: Request) -> str:
        if request.prompt != QUESTION:
            return box
        return "focused" if request.highlight else "plain"

    return FakeEngine(reply, **{"dialect": TINY, **options})


def ask(fake: FakeEngine, image: Image.Image = SQUARE, **settings: Any) -> pipeline.Answer:
    return CoF(fake, Settings(**{"expand": 1.0, **settings}))(image, QUESTION)


def test_two_stages() -> None:
    """About an image that is encoded once."""
    fake = engine()
    answer = ask(fake, strength=3.0)
    assert isinstance(fake, Engine)
    assert [len(images) for images in fake.encoded] == [1]
    assert fake.calls[0][0][0].image is fake.calls[1][0][0].image
    (first, first_decoding), (second, second_decoding) = fake.calls
    assert [request.prompt for request in first] == [fill(TINY.template, QUESTION)[0]]
    assert first[0].highlight is None
    assert first_decoding == Decoding(max_new_tokens=128)
    assert second[0].prompt == QUESTION
    assert second[0].highlight is not None
    assert second[0].highlight.strength == 3.0
    assert second[0].highlight.region.boxes == (BOX,)
    assert second_decoding == Decoding()
    assert (answer.text, answer.boxes, answer.found) == ("focused", (BOX,), True)
    assert answer.grounding_text == str(list(BOX))
    assert answer.confidence == pytest.approx(0.5)
    assert answer.num_tokens == 1
    assert answer.reason == ""
    assert answer.timings.ground >= 0


def test_plain_is_computed_on_demand_and_once() -> None:
    fake = engine()
    answer = ask(fake)
    before = len(fake.calls)
    assert [answer.plain(), answer.plain()] == ["plain", "plain"]
    assert len(fake.calls) == before + 1

    nowhere = engine("nowhere")  # it costs nothing when the answer is plain
    answer = ask(nowhere)
    before = len(nowhere.calls)
    assert answer.plain() == answer.text == "plain"
    assert len(nowhere.calls) == before


@pytest.mark.parametrize("setting", [{"strength": 1}, {"focus": "none"}, {"grounder": "none"}])
def test_no_stage_one_where_it_changes_nothing(setting: dict[str, Any]) -> None:
    fake = engine()
    answer = ask(fake, released=True, **setting)
    assert len(fake.calls) == 1
    assert (answer.text, answer.boxes, answer.region, answer.found) == ("plain", (), None, False)
    assert answer.reason


@pytest.mark.parametrize(
    ("released", "text", "reason"),
    [(False, "plain", "no four numbers"), (True, "focused", "no [d.d, d.d, d.d, d.d]")],
)
def test_no_box(released: bool, text: str, reason: str) -> None:
    answer = ask(engine("I cannot see one."), released=released)
    assert answer.text == text
    assert (answer.region is EVERYTHING) == released
    assert not answer.found
    assert answer.raw_boxes == ()
    assert reason in answer.reason


def test_min_box_and_min_confidence() -> None:
    assert ask(engine("[0.5, 0.25, 0.5625, 0.75]"), min_box=0.25).boxes == (
        pytest.approx((0.40625, 0.25, 0.65625, 0.75)),
    )
    unsure = ask(engine(), min_confidence=0.6)
    assert (unsure.text, unsure.found, unsure.confidence) == ("plain", False, pytest.approx(0.5))
    assert "below 0.6" in unsure.reason
    assert ask(engine(), min_confidence=0.4).found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (None, LLAVA.template.replace("{first_line}", QUESTION)),
        ("paper", PAPER_PROMPT.replace("{first_line}", QUESTION)),
        ("{question} Box?", f"{QUESTION} Box?"),
    ],
)
def test_grounding_prompts(prompt: str | None, expected: str) -> None:
    fake = engine(dialect=LLAVA)
    ask(fake, grounding_prompt=prompt)
    assert fake.calls[0][0][0].prompt == expected


def test_given_regions_take_the_grounders_place() -> None:
    fake = engine()
    cof = CoF(fake, Settings(expand=1.0))
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:6, 2:4] = True
    triangle = [(0.2, 0.2), (0.4, 0.2), (0.2, 0.6)]
    for given in ({"boxes": [BOX]}, {"mask": mask}, {"polygon": triangle}):
        fake.calls.clear()
        answer = cof(SQUARE, QUESTION, **given)
        assert len(fake.calls) == 1
        assert answer.text == "focused"
        assert answer.boxes == (pytest.approx(BOX, abs=0.02),)
        assert answer.settings.grounder_name == "given"
        assert answer.confidence is None


def test_regions_made_beforehand_are_those_of_their_parts() -> None:
    mask = np.zeros((4, 8), bool)
    mask[1:3, 2:4] = True
    cof = CoF(engine(), Settings(focus="crop", expand=1.0))
    one, other = cof.batch(
        [
            Query(SQUARE, QUESTION, region=Region(mask=mask)),  # type: ignore[arg-type]
            Query(SQUARE, QUESTION, mask=mask),
        ]
    )
    assert one.boxes == other.boxes == ((0.25, 0.25, 0.5, 0.75),)


def ask_elsewhere(query: Query) -> pipeline.Answer:
    """What a process of a pool does."""
    return CoF(engine(), Settings(expand=1.0)).batch([query])[0]


def test_queries_and_answers_travel_between_processes() -> None:
    """But what an engine has computed, and the engine, stay where they are."""
    encoded = EncodedImage(SQUARE, features=lambda: None)
    chat = [{"role": "user", "content": [{"type": "image", "image": SQUARE}, QUESTION]}]
    queries = [
        Query(encoded, QUESTION, settings=Settings(strength=3.0)),
        Query(SQUARE, QUESTION, mask=np.ones((2, 2)), strength=2.0),
        Query(SQUARE, QUESTION, region=Region(boxes=(BOX,))),
        Query(messages=chat, settings=preset("paper", "llava-1.5-7b")),
        Query(encoded, QUESTION, strength=1.0),
    ]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = list(pool.map(ask_elsewhere, queries))
    for query, answer in zip(queries, there, strict=True):
        here = ask_elsewhere(query)
        assert answer.as_dict() | {"timings": 0} == here.as_dict() | {"timings": 0}
        assert (answer.text, answer.image.tobytes()) == (here.text, SQUARE.tobytes())
        assert here.plain() == pickle.loads(pickle.dumps(here)).plain() == "plain"
    assert there[-1].plain() == "plain"  # it is the answer itself
    with pytest.raises(CofError, match="to another process"):
        there[0].plain()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *(({"max_new_tokens": number}, "max_new_tokens") for number in (0, 2.5)),
        ({"num_beams": 0}, "num_beams"),
        *(({"temperature": number}, "temperature") for number in (-1.0, float("nan"))),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"top_p": 2.0}, "top_p"),
        ({"temperature": 1.0, "seed": 2**64}, "seed"),
    ],
)
def test_bad_decodings(given: dict[str, Any], says: str) -> None:
    with pytest.raises(CofError, match=says):
        Decoding(**given)


def rows() -> list[Query]:
    return [
        Query(SQUARE, QUESTION),
        Query(Image.new("RGB", (64, 32)), QUESTION, boxes=[BOX], strength=9.0),
        Query(SQUARE, QUESTION, strength=1.0),
        Query(SQUARE, QUESTION, region=EVERYTHING),
        Query(SQUARE, QUESTION, strength=4.0),
        Query(SQUARE, QUESTION, settings=Settings(grounder="whole", strength=5.0)),
        Query(SQUARE, QUESTION, settings=Settings(focus="none")),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batch_equals_one_by_one(batch_size: int) -> None:
    def outcome(answer: pipeline.Answer) -> tuple[Any, ...]:
        return (answer.text, answer.boxes, answer.region, answer.settings, answer.reason)

    cof = CoF(engine(), Settings(expand=1.5))
    together = cof.batch(rows(), batch_size=batch_size)
    apart = [cof.batch([row])[0] for row in rows()]
    assert [outcome(a) for a in together] == [outcome(a) for a in apart]
    texts = ["plain" if number in (2, 6) else "focused" for number in range(7)]
    assert [a.text for a in together] == texts
    assert [a.settings for a in together[-2:]] == [row.settings for row in rows()[-2:]]


def test_batch_asks_each_stage_once_with_every_rows_own_highlight() -> None:
    fake = engine()
    CoF(fake, Settings()).batch(rows())
    stage_one, stage_two = (requests for requests, _ in fake.calls)
    assert len(stage_one) == 2  # the two rows without a region and with a lambda that matters
    strengths = [r.highlight.strength if r.highlight else None for r in stage_two]
    assert strengths == [2.0, 9.0, None, 2.0, 4.0, 5.0, None]
    assert len(fake.encoded[0]) == 2  # two distinct images in seven queries


def test_batch_takes_pairs_and_dicts(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    SQUARE.save(path)
    fake = engine()
    answers = CoF(fake).batch(
        [(path, QUESTION), (str(path), QUESTION), {"image": path, "question": QUESTION}]
    )
    assert [a.text for a in answers] == ["focused"] * 3
    assert len(fake.encoded[0]) == 1
    assert CoF(fake).batch([]) == []


def bad_queries() -> list[tuple[Any, str]]:
    """Queries, each with a part of the sentence that refuses it."""
    return [
        ({"image": SQUARE}, "image and question"),
        ((b"\x89PNG\r\n\x1a\n", QUESTION), "not an image"),
        (("absent.png", QUESTION), "no image file"),
        ((SQUARE, " "), "question is empty"),
        ((SQUARE, "\ud800"), "surrogate"),
        (Query(SQUARE, QUESTION, boxes=[(1, 2, 3, 4)]), "outside 0..1"),
        (Query(SQUARE, QUESTION, strength=-1), "lambda"),
        (Query(SQUARE, QUESTION, settings={"strength": 2}), "takes cof.Settings"),
        (Query(SQUARE, QUESTION, grounding_question="\udfff"), "surrogate"),
        ({"image": SQUARE, "question": "?", "box": []}, "may have boxes"),
        ((SQUARE, "?", 3), "pairs"),
        (("https://example.org/a.png", QUESTION), "allow_url"),
        (Query(SQUARE, QUESTION, boxes=[BOX], mask=np.ones((2, 2))), "one of boxes, mask"),
        (Query(SQUARE, QUESTION, mask=np.zeros((2, 2))), "empty"),
        (Query(SQUARE, QUESTION, polygon=[(0, 0)]), "three"),
        *(
            (Query(SQUARE, QUESTION, region=region), says)
            for region, says in (
                (Region(), "inside the image"),
                (Region(boxes=((10, 10, 40, 40),)), "inside the image"),
                (Region(boxes=(BOX, (0.5, 0.5, 0.4, 0.4))), "inside the image"),
                (Region(boxes=((float("nan"), 0.1, 0.2, 0.3),)), "inside the image"),
                (Region(boxes=(BOX,), mask=np.zeros((4, 4), np.float32)), "mask is empty"),
                ((BOX,), "a cof.Region, not tuple"),
            )
        ),
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_refused_queries_leave_the_others_as_they_are(batch_size: int) -> None:
    good = [(SQUARE, QUESTION), Query(SQUARE, QUESTION, boxes=[BOX]), (SQUARE, QUESTION)]
    bad = bad_queries()
    items = [item for item, _ in bad]
    mixed = [good[0], *items[:4], good[1], *items[4:], good[2]]
    fake, clean = engine(), engine()
    answers = CoF(fake).batch(mixed, batch_size=batch_size, on_error="return")
    expected = CoF(clean).batch(good, batch_size=batch_size)
    assert len(answers) == len(mixed)
    kept = [answers[0], answers[5], answers[-1]]
    assert [(a.text, a.boxes, a.error) for a in kept] == [(a.text, a.boxes, "") for a in expected]
    refused = answers[1:5] + answers[6:-1]
    for answer, (_, says) in zip(refused, bad, strict=True):
        assert says in answer.error
        assert (answer.text, answer.plain(), answer.boxes, answer.found) == ("", "", (), False)
    assert [answer.question for answer in refused[1:4]] == [QUESTION, QUESTION, " "]
    if batch_size == 64:  # refused before the engine is called, so that batches are equal
        assert len(fake.calls) == len(clean.calls)


@pytest.mark.parametrize("refused", [0, 2, 4])
def test_what_the_engine_refuses_leaves_the_others_as_they_are(refused: int) -> None:
    def reply(request: Request) -> str:
        if "too long" in request.prompt:
            raise CofError("The question is too long.")
        return request.prompt

    questions = [f"question {n}" for n in range(5)]
    questions[refused] = "too long"
    queries = [(SQUARE, question) for question in questions]
    cof = CoF(FakeEngine(reply), Settings(grounder="whole"))
    answers = cof.batch(queries, on_error="return")
    texts = [question if question != "too long" else "" for question in questions]
    assert [answer.text for answer in answers] == texts
    assert [answer.error for answer in answers if answer.error] == ["The question is too long."]
    assert answers[refused].question == "too long"
    with pytest.raises(CofError, match="too long"):
        cof.batch(queries)


@pytest.mark.parametrize(("item", "says"), bad_queries())
def test_errors_are_raised_unless_they_are_to_be_returned(item: Any, says: str) -> None:
    with pytest.raises(CofError, match=says):
        CoF(engine()).batch([(SQUARE, QUESTION), item])


def test_bad_options_of_a_batch() -> None:
    with pytest.raises(CofError, match="raise or return"):
        CoF(engine()).batch([], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(CofError, match="--box"):
        ask(engine(), grounder="given")
    with pytest.raises(CofError, match="batch_size"):
        CoF(engine()).batch([], batch_size=0)


@pytest.mark.parametrize(
    ("question", "own", "where"),
    [
        (QUESTION, " the red star ", "the red star"),
        (f"{QUESTION} \n", None, QUESTION),  # as VLMEvalKit writes it; the model reads all of it
    ],
)
def test_a_question_of_its_own_for_stage_one(question: str, own: str | None, where: str) -> None:
    fake = engine()
    query = Query(SQUARE, question, grounding_question=own)
    (answer,) = CoF(fake, Settings(expand=1.0)).batch([query])
    asked = [request.prompt for requests, _ in fake.calls for request in requests]
    assert asked == [fill(TINY.template, where)[0], question]
    assert (answer.question, answer.boxes) == (question, (BOX,))


def test_decoding_is_the_answers_alone() -> None:
    fake = engine()
    decoding = Decoding(max_new_tokens=5, temperature=0.7, seed=1)
    answer = CoF(fake)(SQUARE, QUESTION, decoding=decoding)
    answer.plain()
    assert [call[1] for call in fake.calls] == [Decoding(max_new_tokens=128), decoding, decoding]


def test_locate_is_stage_one() -> None:
    for settings in (Settings(expand=3.0), Settings(strength=1.0), Settings(focus="none")):
        fake = engine()
        grounding = CoF(fake, settings).locate(SQUARE, QUESTION)
        assert grounding.region == Region(boxes=(BOX,))
        assert len(fake.calls) == 1


def test_default_settings_follow_the_model() -> None:
    assert CoF(engine()).settings == preset("tiny", "tiny")
    assert (
        CoF(engine(name="llava-hf/llava-1.5-13b-hf", dialect=LLAVA)).settings.option("strength")
        == 4.5
    )
    assert CoF(engine(name="mine", dialect=LLAVA)).settings == Settings()


def test_settings_are_checked_before_a_model_is_loaded() -> None:
    with pytest.raises(CofError, match="no option 'strenght'; did you mean strength"):
        CoF.from_pretrained("/nowhere", strenght=3)
    with pytest.raises(CofError, match="no preset"):
        CoF.from_pretrained("/nowhere", preset="best")
    with pytest.raises(CofError, match=r"has no such option: .* 'speed'\."):
        CoF.from_pretrained("/nowhere", engine_options={"speed": 2})


class TestReuse:
    """An engine is asked to prefill images that it will be asked about more than once."""

    def prefills(self, queries: list[Any], **settings: Any) -> list[bool]:
        asked: list[bool] = []

        class Recording(FakeEngine):
            def encode(self, images: Any, *, prefill: bool = False) -> Any:
                asked.append(prefill)
                return super().encode(images, prefill=prefill)

        fake = Recording(engine().replies, dialect=TINY)
        CoF(fake, Settings(expand=1.0, **settings)).batch(queries)
        return asked

    @pytest.mark.parametrize(
        ("images", "settings", "expected"),
        [
            ([SQUARE], {}, True),
            ([SQUARE], {"grounder": "none"}, False),
            ([SQUARE], {"strength": 1}, False),
            ([SQUARE], {"grounder": "whole"}, False),
            ([SQUARE, SQUARE], {"grounder": "none"}, True),
            ([SQUARE, Image.new("RGB", (32, 32))], {"grounder": "none"}, False),
        ],
    )
    def test_where(self, images: Any, settings: dict[str, Any], expected: bool) -> None:
        queries = [(image, QUESTION) for image in images]
        assert self.prefills(queries, **settings) == [expected]

    def test_an_encoded_image_is_taken_as_it_is(self) -> None:
        fake = engine()
        cof = CoF(fake, Settings(expand=1.0))
        known = cof.encode(SQUARE)
        answer = cof(known, QUESTION)
        again = cof.batch([(known, QUESTION), {"image": known, "question": QUESTION}])
        assert answer.plain() == "plain"
        assert [answer.text] * 2 == [of.text for of in again]
        assert cof.locate(known, QUESTION).region is not None
        assert answer.image is known.image
        assert len(fake.encoded) == 1
        assert all(request.image is known for requests, _ in fake.calls for request in requests)
