"""The web page without a browser: controls, links, answers, and what is written of them."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import shlex
import sys
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from cof.cli.web import other_options
from models import checkpoint, picture
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app
from cof.cli.common import ModelOptions
from cof.engines.fake import FakeEngine
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.pipeline import Answer, CoF
from cof.settings import Settings
from cof.types import Decoding, Request
from cof.viz.panels import panel_size
from cof.web import session as session_module
from cof.web.controls import (
    controls_of,
    draw_strokes,
    focus_choices,
    grounder_choices,
    read_strokes,
)
from cof.web.render import describe, present, render, render_message
from cof.web.session import DEMO, Session, load_examples, open_example, write_record
from cof.web.view import (
    MASK_SIDE,
    View,
    pack_mask,
    read_query,
    unpack_mask,
    write_commands,
    write_query,
)

QUESTION = "Which digit? 1 & 2 = 3, <b>50 %</b>"
BOX = (0.25, 0.25, 0.75, 0.5)
MASK = np.zeros((40, 60), bool)
MASK[10:20, 15:45] = True

SETTINGS = Settings(strength=16.0, expand=1.6, scope="text")
OTHER = SETTINGS.changed(grounder="prompt+attention", focus="soft", strength=2.5, expand=1.0)


def view(**changes: Any) -> View:
    values = {
        "image": "my photo.jpg",
        "example": False,
        "question": QUESTION,
        "settings": (SETTINGS,),
    }
    return View(**{**values, **changes})


VIEWS = {
    "found": view(),
    "example": view(image="scene-1.png", example=True),
    "two": view(settings=(SETTINGS, OTHER)),
    "boxes": view(boxes=(BOX, (0.0, 0.0, 0.125, 1.0))),
    "mask": view(mask=MASK),
}


def parts(shown: View) -> tuple[Any, ...]:
    mask = None if shown.mask is None else shown.mask.tolist()
    return (shown.image, shown.example, shown.question, shown.settings, shown.boxes, mask)


def reply(request: Request) -> str:
    if request.prompt == QUESTION:
        if request.highlight is None:
            return "plain"
        return f"{request.highlight.strength:g} at {request.highlight.region.boxes}"
    return "[0.25, 0.25, 0.75, 0.5]"


def fake() -> FakeEngine:
    return FakeEngine(reply)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    picture((60, 40)).save(path)
    return path


class TestLinks:
    @pytest.mark.parametrize("name", VIEWS)
    def test_a_link_says_all_of_a_view(self, name: str) -> None:
        query = dict(parse_qsl(write_query(VIEWS[name]), strict_parsing=True))
        assert parts(read_query(query, SETTINGS)) == parts(VIEWS[name])

    def test_what_a_link_leaves_out_is_the_default(self) -> None:
        shown = read_query({"question": "Why?", "strength": "3", "__theme": "dark"}, SETTINGS)
        assert shown.settings == (SETTINGS.changed(strength=3.0),)
        assert (shown.image, shown.question, shown.boxes, shown.mask) == ("", "Why?", (), None)

    @pytest.mark.parametrize(
        ("query", "says"),
        [
            ({"strength": "much"}, "strength must be a number, not 'much'"),
            ({"strength": "nan"}, "strength .lambda. must be a finite number"),
            ({"expand2": "-1"}, "expand .alpha. must be a finite number above 0"),
            ({"grounder": "dowsing"}, "grounder must be one of"),
            ({"focus": "zoom"}, "focus must be one of"),
            ({"boxes": "1 2 3"}, "four numbers"),
            ({"boxes": "a b c d"}, "four numbers"),
            ({"boxes": "0 0 2 2"}, "outside 0..1"),
            ({"mask": "4x4:????"}, "mask is damaged"),
            ({"mask": "99999x4:eJw7AAAAsQCx"}, "mask is damaged"),
            ({"mask": f"{MASK_SIDE + 1}x4:eJw7AAAAsQCx"}, "mask is damaged"),
            ({"mask": pack_mask(np.zeros((4, 4), bool))}, "mask is damaged"),
            ({"mask": pack_mask(MASK)[:-8]}, "mask is damaged"),
        ],
    )
    def test_refused(self, query: dict[str, str], says: str) -> None:
        with pytest.raises(CofError, match=says):
            read_query(query, SETTINGS)

    def test_masks_of_any_shape(self) -> None:
        rng = np.random.default_rng(0)
        for height, width in ((1, 1), (1, 9), (13, 7), (MASK_SIDE, MASK_SIDE)):
            mask = rng.random((height, width)) < 0.5
            mask[0, 0] = True
            np.testing.assert_array_equal(unpack_mask(pack_mask(mask)), mask)

    def test_a_mask_that_unpacks_to_more_than_it_says_is_cut_off(self) -> None:
        packed = zlib.compress(b"\xff" * 10_000_000)
        text = "8x1:" + base64.urlsafe_b64encode(packed).decode()
        np.testing.assert_array_equal(unpack_mask(text), np.ones((1, 8), bool))


class TestControls:
    @pytest.mark.parametrize("name", VIEWS)
    def test_there_and_back(self, name: str) -> None:
        shown = VIEWS[name]
        controls = controls_of(shown)
        again = controls.view(SETTINGS, shown.image, shown.example, shown.mask)
        assert parts(again) == parts(shown)

    def test_what_is_not_looked_at_is_left_out(self) -> None:
        controls = controls_of(VIEWS["boxes"])._replace(look_at="found")
        shown = controls.view(SETTINGS, "a.png", False, MASK)
        assert (shown.boxes, shown.mask) == ((), None)

    def test_nothing_drawn_yet(self) -> None:
        controls = controls_of(VIEWS["found"])
        with pytest.raises(CofError, match="no box yet"):
            controls._replace(look_at="box").view(SETTINGS, "a.png", False, MASK)
        with pytest.raises(CofError, match="Nothing is drawn yet"):
            controls._replace(look_at="mask").view(SETTINGS, "a.png", False, None)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"strength": 65.0}, "lambda. from 0.5 to 64, not 65"),
            ({"expand": 0.25}, "alpha. from 0.5 to 4, not 0.25"),
            ({"grounder": "given"}, "not 'given'"),
            ({"grounder": "attention+logits"}, "not 'attention.logits'"),
        ],
    )
    def test_links_to_what_there_is_no_control_for(
        self, changes: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(CofError, match=says):
            controls_of(view(settings=(SETTINGS, SETTINGS.changed(**changes))))

    def test_choices_are_those_of_the_registries(self) -> None:
        plain, with_detector = grounder_choices(Settings()), Settings(detector="owl")
        assert list(plain)[:2] == ["prompt", "prompt+attention"]
        assert "detector" in grounder_choices(with_detector)
        assert not {"given", "detector"} & plain.keys()
        for name in plain:
            assert Settings().changed(grounder=name).grounder == name
        for name in focus_choices():
            assert Settings().changed(focus=name).focus == name


class TestStrokes:
    def layer(self, wh: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
        layer = Image.new("RGBA", wh)
        layer.paste((255, 176, 0, 255), box)
        return layer

    def test_mask_and_box(self) -> None:
        strokes = read_strokes([self.layer((64, 32), (16, 8, 48, 24))])
        assert strokes is not None
        mask, box = strokes
        assert box == (0.25, 0.25, 0.75, 0.75)
        expected = np.zeros((32, 64), bool)
        expected[8:24, 16:48] = True
        np.testing.assert_array_equal(mask, expected)

    def test_layers_add_up(self) -> None:
        layers = [self.layer((8, 8), (0, 0, 2, 2)), self.layer((8, 8), (4, 4, 6, 8))]
        strokes = read_strokes(layers)
        assert strokes is not None
        assert (int(strokes[0].sum()), strokes[1]) == (4 + 8, (0.0, 0.0, 0.75, 1.0))

    def test_a_thin_stroke_on_a_large_image_is_not_lost(self) -> None:
        strokes = read_strokes([self.layer((3000, 2000), (1500, 100, 1503, 1900))])
        assert strokes is not None
        mask, box = strokes
        assert max(mask.shape) == MASK_SIDE
        assert mask.any(axis=1).sum() == pytest.approx(mask.shape[0] * 0.9, abs=2)
        assert box == (0.5, 0.05, 0.501, 0.95)

    def test_nothing(self) -> None:
        assert read_strokes([]) is None
        assert read_strokes([Image.new("RGBA", (8, 8))]) is None

    def test_a_mask_drawn_again_is_the_same(self) -> None:
        strokes = read_strokes([draw_strokes(MASK, (600, 400))])
        assert strokes is not None
        again = read_strokes([draw_strokes(strokes[0], (600, 400))])
        assert again is not None
        np.testing.assert_array_equal(again[0], strokes[0])
        assert strokes[1] == BOX


@functools.cache
def model() -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint("llava"))


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models talk for as long as they may."""
    batch = CoF.batch

    def short(self: CoF, queries: Any, **options: Any) -> list[Answer]:
        return batch(self, queries, **{**options, "decoding": Decoding(max_new_tokens=2)})

    monkeypatch.setattr(CoF, "batch", short)


class TestSession:
    @pytest.mark.usefixtures("short_answers")
    @pytest.mark.parametrize(
        ("settings", "region"),
        [
            ({"grounder": "attention"}, {}),
            ({"grounder": "attention", "focus": "soft"}, {}),
            ({"grounder": "attention", "focus": "crop"}, {}),
            ({"grounder": "prompt", "released": True}, {}),
            ({"grounder": "prompt+attention"}, {}),
            ({"grounder": "whole"}, {}),
            ({"grounder": "attention", "strength": 1.0}, {}),
            ({"grounder": "attention", "max_plain_confidence": 0.0}, {}),
            ({}, {"boxes": (BOX,)}),
            ({}, {"mask": MASK}),
        ],
    )
    def test_answers_are_the_pipelines(
        self, photo: Path, settings: dict[str, Any], region: dict[str, Any]
    ) -> None:
        """Asked a second time, when much is known already, too."""
        changed = SETTINGS.changed(**settings)
        session = Session(CoF(model(), SETTINGS), photo)
        expected = CoF(model(), changed)(photo, "which digit?", **region)
        for strength in (64.0, changed.strength):
            asked = changed.changed(strength=strength)
            shown = session.show(view(question="which digit?", settings=(asked,), **region))
        [answer] = shown.answers
        assert shown.plain == expected.plain()
        for name in ("text", "boxes", "raw_boxes", "found", "grounder", "reason"):
            assert getattr(answer, name) == getattr(expected, name), name
        sure = [each.confidence or 0.0 for each in (answer, expected)]  # None if unknown
        assert sure[0] == pytest.approx(sure[1], rel=1e-4)
        assert answer.settings == expected.settings

    def test_what_does_not_change_is_asked_once(self, photo: Path) -> None:
        engine = fake()
        session = Session(CoF(engine, SETTINGS), photo)
        for strength in (2.0, 4.0, 1.0, 8.0):
            for expand in (1.0, 2.0):
                changed = SETTINGS.changed(strength=strength, expand=expand)
                shown = session.show(view(settings=(changed,)))
                assert shown.plain == "plain"
        asked = [request for requests, _ in engine.calls for request in requests]
        assert len(engine.encoded) == 1
        assert sum(request.prompt != QUESTION for request in asked) == 1  # stage 1
        looks = [request.highlight.strength for request in asked if request.highlight]
        assert looks == [2.0, 2.0, 4.0, 4.0, 8.0, 8.0]

    def test_another_question_is_asked_anew(self, photo: Path) -> None:
        engine = FakeEngine(lambda request: "[0.1, 0.1, 0.2, 0.2]" if request.highlight else "?")
        session = Session(CoF(engine, SETTINGS), photo)
        engine.replies = lambda request: f"{len(engine.calls)}"
        first = session.show(view(question="One?")).plain
        assert session.show(view(question="Two?")).plain != first

    def test_the_plain_attention_is_read_once(
        self, photo: Path, monkeypatch: pytest.MonkeyPatch, short_answers: None
    ) -> None:
        engine, seen = model(), []
        read = engine.image_attention
        monkeypatch.setattr(
            engine, "image_attention", lambda request: seen.append(request) or read(request)
        )
        session = Session(CoF(engine, SETTINGS), photo)
        shown = session.show(view(boxes=(BOX,), settings=(SETTINGS, OTHER)))
        assert [request.highlight is None for request in seen] == [True, False, False]
        assert [len(panels) for panels in shown.panels] == [3, 3]
        assert np.array_equal(*(np.asarray(panels[0].image) for panels in shown.panels)) is False

    def test_warnings_become_notes(self, photo: Path, short_answers: None) -> None:
        session = Session(CoF(model(), SETTINGS), photo)
        beside = SETTINGS.changed(focus="beside")
        shown = session.show(view(boxes=(BOX,), settings=(beside,)))
        assert shown.notes == tuple(dict.fromkeys(shown.notes))
        assert all("one image" in note for note in shown.notes)

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            ("a.txt", b"hello", "a.txt is not an image of the kinds PNG, JPEG"),
            ("a.png", b"", "a.png is empty"),
            ("a.png", b"\x89PNG\r\n\x1a\n", "a.png "),
            ("big.png", b"x" * 2000, "big.png has 0.0 MiB, more than the 0 MiB"),
        ],
    )
    def test_bad_files(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        data: bytes,
        says: str,
    ) -> None:
        monkeypatch.setattr(session_module, "MAX_UPLOAD_BYTES", 1000)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CofError, match=says) as error:
            Session(CoF(fake()), tmp_path / name)
        assert str(tmp_path) not in str(error.value)

    def test_too_many_pixels_and_other_formats(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture((60, 40)).save(tmp_path / "a.tiff")
        with pytest.raises(CofError, match=r"a\.tiff is not an image of the kinds"):
            Session(CoF(fake()), tmp_path / "a.tiff")
        picture((60, 40)).save(tmp_path / "a.png")
        monkeypatch.setattr(session_module, "MAX_UPLOAD_PIXELS", 60 * 40 - 1)
        with pytest.raises(CofError, match=r"a\.png has 60x40 pixels"):
            Session(CoF(fake()), tmp_path / "a.png")

    def test_examples(self) -> None:
        for example in load_examples():
            session = open_example(CoF(fake()), example["image"])
            assert session.example
            assert session.name == example["image"]
        for name in ("../../errors.py", "absent.png", ""):
            with pytest.raises(CofError, match="no example"):
                open_example(CoF(fake()), name)


class TestReproduction:
    @pytest.mark.parametrize("name", ["found", "two", "boxes", "mask"])
    def test_the_record_gives_the_same_answers(self, photo: Path, name: str) -> None:
        shown = VIEWS[name]
        engine = fake()
        session = Session(CoF(engine, SETTINGS), photo)
        settings = [each.changed(grounder="prompt") for each in shown.settings]
        shown = view(settings=tuple(settings), boxes=shown.boxes, mask=shown.mask)
        record = json.loads(json.dumps(write_record(session, session.show(shown), "a/model")))
        assert record["model"] == "a/model"
        assert record["image"]["name"] == photo.name
        for part in record["answers"]:
            mask = record["mask"] and unpack_mask(record["mask"])
            again = CoF(engine, Settings(**part["settings"]))(
                photo, record["question"], boxes=record["boxes"], mask=mask
            )
            assert again.text == part["answer"]
            assert again.plain() == record["plain_answer"]
            assert [list(box) for box in again.boxes] == part["boxes"]

    @pytest.mark.parametrize("name", ["found", "two", "boxes", "mask"])
    def test_the_command_lines_give_the_same_answers(
        self, photo: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        engine = fake()
        loads: list[ModelOptions] = []

        def load(self: ModelOptions, settings: dict[str, Any]) -> CoF:
            loads.append(self)
            return CoF(engine, SETTINGS.changed(**settings))

        monkeypatch.setattr(ModelOptions, "load", load)
        monkeypatch.chdir(tmp_path)
        shown = VIEWS[name]
        settings = [each.changed(grounder="prompt") for each in shown.settings]
        shown = view(settings=tuple(settings), boxes=shown.boxes, mask=shown.mask)
        session = Session(CoF(engine, SETTINGS), photo)
        answers = session.show(shown).answers
        if data := re.search(r'base64,([^"]*)"', present(session, shown, "a/model").mask):
            (tmp_path / "mask.png").write_bytes(base64.b64decode(data[1]))
        options = ("--model", "a/model", "--dtype", "bfloat16")
        commands = write_commands(shown, str(photo), options)
        for command, answer in zip(commands, answers, strict=True):
            words = shlex.split(command)
            result = CliRunner().invoke(app, [*words[1:], "--json"])
            assert result.exit_code == 0, result.output
            printed = json.loads(result.stdout)
            assert (printed["answer"], printed["plain_answer"]) == (answer.text, "plain")
            assert loads[-1] == ModelOptions("a/model", dtype="bfloat16")
            assert (tmp_path / words[-1]).is_file()


class TestRendering:
    def test_answers_and_panels(self, photo: Path) -> None:
        session = Session(CoF(fake(), SETTINGS), photo)
        shown = session.show(view(settings=(SETTINGS, SETTINGS.changed(focus="overlay"))))
        html = render(shown)
        assert html.count("<figure>") == 2
        texts = re.findall(r'class="cof-text[^>]*>([^<]*)<', html)
        assert texts == ["plain", *(answer.text for answer in shown.answers)]
        for data in re.findall(r'src="data:image/webp;base64,([^"]*)"', html):
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                assert image.size == panel_size((60, 40))

    def test_text_is_escaped(self, photo: Path) -> None:
        engine = FakeEngine(lambda request: "<script>alert(1)</script>")
        session = Session(CoF(engine, SETTINGS), photo)
        html = render(session.show(view())) + render_message("<i>no</i>", error=True)
        assert not re.search(r"<(script|i|b)\b", html)
        assert "&lt;script&gt;alert(1)" in html

    @pytest.mark.parametrize(
        ("settings", "region", "says"),
        [
            ({}, {}, "prompt grounder · attention focus · λ 16 · α 1.6 · confidence 50%"),
            ({"focus": "overlay"}, {}, "prompt grounder · overlay focus · α 1.6 · confidence 50%"),
            ({}, {"boxes": (BOX,)}, "your region · attention focus · λ 16 · α 1.6"),
        ],
    )
    def test_how_an_answer_came_about(
        self, photo: Path, settings: dict[str, Any], region: dict[str, Any], says: str
    ) -> None:
        session = Session(CoF(fake(), SETTINGS), photo)
        [answer] = session.show(view(settings=(SETTINGS.changed(**settings),), **region)).answers
        assert describe(answer) == says

    def test_everything_that_is_presented(self) -> None:
        session = open_example(CoF(fake(), SETTINGS), "scene-4.png")
        shown = view(image="scene-4.png", example=True)
        presented = present(session, shown, "tiny", ["--dtype", "float32"])
        assert presented.query == write_query(shown)
        assert json.loads(presented.record)["image"]["width"] == session.image.width
        words = shlex.split(presented.commands)
        assert words[2] == str(DEMO / "scene-4.png")
        assert words[4:8] == ["--model", "tiny", "--dtype", "float32"]


class TestCommand:
    def test_options_of_the_model(self) -> None:
        assert other_options(ModelOptions("a", crop=True)) == ["--crop"]

    def test_without_gradio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "cof.web.page", raising=False)
        monkeypatch.setitem(sys.modules, "gradio", None)
        result = CliRunner().invoke(app, ["web"])
        assert result.exit_code == 2
        assert "pip install 'cof[web]'" in result.stderr
