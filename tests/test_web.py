"""The web page without a browser: controls, links, answers, and what is written of them."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from fakes import FakeEngine
from models import checkpoint, picture
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app
from cof.cli.common import Model
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError, CofWarning
from cof.pipeline import Answer, CoF
from cof.settings import Settings
from cof.types import Decoding, Request
from cof.viz.panels import panel_size
from cof.web import session as session_module
from cof.web.render import describe, render, render_message
from cof.web.session import Session, load_examples, open_example
from cof.web.view import (
    Controls,
    View,
    grounder_choices,
    read_query,
    read_strokes,
    write_boxes,
    write_commands,
    write_query,
)

QUESTION = "Which digit? 1 & 2 = 3, <b>50 %</b>"
BOX = (0.25, 0.25, 0.75, 0.5)

SETTINGS = Settings(strength=16.0, expand=1.6, scope="text")
OTHER = SETTINGS.changed(grounder="prompt+attention", focus="soft", strength=2.5, expand=1.0)


def view(**changes: Any) -> View:
    return View(**{"question": QUESTION, "settings": (SETTINGS,), **changes})


VIEWS = {
    "found": view(),
    "two": view(settings=(SETTINGS, OTHER)),
    "boxes": view(boxes=(BOX, (0.0, 0.0, 0.125, 1.0))),
}


def controls_of(shown: View) -> Controls:
    first = Controls.of(shown.settings[0], shown.question)._replace(boxes=write_boxes(shown.boxes))
    other = Controls.of(shown.settings[-1])
    values = {name: getattr(other, name) for name in Controls._fields if name.startswith("other_")}
    return first._replace(compare=len(shown.settings) > 1, **values)


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
    @pytest.mark.parametrize("example", [True, False])
    def test_a_link_says_all_of_a_view(self, name: str, example: bool) -> None:
        controls = controls_of(VIEWS[name])
        query = dict(parse_qsl(write_query(controls, "my photo.jpg", example), strict_parsing=True))
        assert query["example" if example else "image"] == "my photo.jpg"
        assert read_query(query, SETTINGS) == controls
        again = controls.view(SETTINGS)
        assert (again.question, again.settings, again.boxes) == (
            VIEWS[name].question,
            VIEWS[name].settings,
            VIEWS[name].boxes,
        )

    def test_what_a_link_leaves_out_is_the_default(self) -> None:
        controls = read_query({"question": "Why?", "strength": "3", "__theme": "dark"}, SETTINGS)
        shown = controls.view(SETTINGS)
        assert shown.settings == (SETTINGS.changed(strength=3.0),)
        assert (shown.question, shown.boxes) == ("Why?", ())

    def test_numbers_are_kept_within_their_sliders(self) -> None:
        query = {"strength": "65", "expand": "0.25", "compare": "True", "other_expand": "-1"}
        first, second = read_query(query, SETTINGS).view(SETTINGS).settings
        assert (first.option("strength"), first.expand, second.expand) == (64.0, 0.5, 0.5)
        emptied = Controls.of(SETTINGS)._replace(strength=None)  # its field, to type another
        assert emptied.within_ranges().strength == 0.5

    @pytest.mark.parametrize(
        ("query", "says"),
        [
            ({"strength": "much"}, "strength must be a number, not 'much'"),
            ({"strength": "nan"}, "strength .lambda. must be a finite number"),
            ({"grounder": "given"}, "not 'given'"),
            ({"grounder": "attention+logits"}, "not 'attention.logits'"),
            ({"focus": "zoom"}, "focus must be one of"),
            ({"boxes": "1 2 3"}, "four numbers"),
            ({"boxes": "a b c d"}, "four numbers"),
            ({"boxes": "0 0 2 2"}, "outside 0..1"),
        ],
    )
    def test_refused(self, query: dict[str, str], says: str) -> None:
        with pytest.raises(CofError, match=says):
            read_query(query, SETTINGS)

    def test_choices_are_those_of_the_registries(self) -> None:
        plain, detector = grounder_choices(Settings()), Settings("detector", detector="owl")
        assert list(plain)[:2] == ["prompt", "prompt+attention"]
        assert "detector" in grounder_choices(detector)
        assert not {"given", "detector"} & plain.keys()
        for name in plain:
            assert Settings().changed(grounder=name).grounder_name == name


class TestStrokes:
    def layer(self, wh: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
        layer = Image.new("RGBA", wh)
        layer.paste((255, 176, 0, 255), box)
        return layer

    def test_box(self) -> None:
        assert read_strokes([self.layer((64, 32), (16, 8, 48, 24))]) == (0.25, 0.25, 0.75, 0.75)
        layers = [self.layer((8, 8), (0, 0, 2, 2)), self.layer((8, 8), (4, 4, 6, 8))]
        assert read_strokes(layers) == (0.0, 0.0, 0.75, 1.0)
        thin = self.layer((3000, 2000), (1500, 100, 1503, 1900))
        assert read_strokes([thin]) == (0.5, 0.05, 0.501, 0.95)

    def test_nothing(self) -> None:
        assert read_strokes([]) is None
        assert read_strokes([Image.new("RGBA", (8, 8))]) is None


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
        ],
    )
    def test_answers_are_the_pipelines(
        self, photo: Path, settings: dict[str, Any], region: dict[str, Any]
    ) -> None:
        """Asked a second time, when much is known already, too."""
        changed = SETTINGS.changed(**settings)
        session = Session(CoF(model(), SETTINGS), photo)
        expected = CoF(model(), changed)(photo, "which digit?", **region)
        strength = changed.option("strength")
        for other in (64.0, strength):
            asked = changed if strength is None else changed.changed(strength=other)
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
        read = engine.image_attentions
        monkeypatch.setattr(
            engine, "image_attentions", lambda requests: seen.extend(requests) or read(requests)
        )
        session = Session(CoF(engine, SETTINGS), photo)
        shown = session.show(view(boxes=(BOX,), settings=(SETTINGS, OTHER)))
        assert [request.highlight is None for request in seen] == [True, False, False]
        assert [len(panels) for panels in shown.panels] == [3, 3]
        assert np.array_equal(*(np.asarray(panels[0].image) for panels in shown.panels)) is False

    def test_warnings_become_notes(self, photo: Path) -> None:
        def warned(request: Request) -> str:
            warnings.warn("It is cropped away.", CofWarning, stacklevel=1)
            return "7"

        session = Session(CoF(FakeEngine(warned), SETTINGS), photo)
        assert session.show(view(boxes=(BOX,))).notes == ("It is cropped away.",)

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            ("a.txt", b"hello", "a.txt is not an image of the kinds PNG, JPEG"),
            ("a.png", b"", "a.png is empty"),
            ("a.png", b"\x89PNG\r\n\x1a\n", "a.png "),
            ("a.tiff", picture((10, 10)), "a.tiff is not an image of the kinds"),
            ("a.heic", b"\0\0\0\x1cftypheic", r"a.heic is not .* BMP: save it as JPEG\.$"),
            ("wide.png", picture((30, 10)), "wide.png has 30x10 pixels"),
        ],
    )
    def test_bad_files(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        data: bytes | Image.Image,
        says: str,
    ) -> None:
        monkeypatch.setattr(session_module, "MAX_UPLOAD_PIXELS", 299)
        path = tmp_path / name
        path.write_bytes(data) if isinstance(data, bytes) else data.save(path)
        with pytest.raises(CofError, match=says) as error:
            Session(CoF(fake()), path)
        assert str(tmp_path) not in str(error.value)

    def test_examples(self) -> None:
        for example in load_examples():
            session = open_example(CoF(fake()), example["image"])
            assert session.example
            assert session.name == example["image"]
        for name in ("../../errors.py", "absent.png", ""):
            with pytest.raises(CofError, match="no example"):
                open_example(CoF(fake()), name)


def with_prompt(shown: View) -> View:
    """With a grounder that a scripted engine has."""
    settings = tuple(each.changed(grounder="prompt") for each in shown.settings)
    return view(settings=settings, boxes=shown.boxes)


class TestReproduction:
    @pytest.mark.parametrize("name", VIEWS)
    def test_the_command_lines_give_the_same_answers(
        self, photo: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        engine, loads = fake(), []

        def load(self: Model) -> CoF:
            loads.append(self)
            return CoF(engine, SETTINGS.changed(**self.settings))

        monkeypatch.setattr(Model, "pipeline", load)
        monkeypatch.chdir(tmp_path)
        shown = with_prompt(VIEWS[name])
        answers = Session(CoF(engine, SETTINGS), photo).show(shown).answers
        options = ("--model", "a/model", "--dtype", "bfloat16")
        commands = write_commands(shown, str(photo), options)
        for command, answer in zip(commands, answers, strict=True):
            words = shlex.split(command)
            result = CliRunner().invoke(app, [*words[1:], "--json"])
            assert result.exit_code == 0, result.output
            printed = json.loads(result.stdout)
            assert (printed["answer"], printed["plain_answer"]) == (answer.text, "plain")
            assert (loads[-1].model, loads[-1].dtype) == ("a/model", "bfloat16")
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
            ({}, {}, "prompt grounder · attention focus · λ\u00a016 · α\u00a01.6 · confidence 50%"),
            (
                {"focus": "overlay"},
                {},
                "prompt grounder · overlay focus · α\u00a01.6 · confidence 50%",
            ),
            ({}, {"boxes": (BOX,)}, "your region · attention focus · λ\u00a016 · α\u00a01.6"),
        ],
    )
    def test_how_an_answer_came_about(
        self, photo: Path, settings: dict[str, Any], region: dict[str, Any], says: str
    ) -> None:
        session = Session(CoF(fake(), SETTINGS), photo)
        [answer] = session.show(view(settings=(SETTINGS.changed(**settings),), **region)).answers
        assert describe(answer) == says


class TestCommand:
    def test_without_gradio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "cof.web.page", raising=False)
        monkeypatch.setitem(sys.modules, "gradio", None)
        result = CliRunner().invoke(app, ["web"])
        assert result.exit_code == 2
        assert "pip install 'cof[web]'" in result.stderr
