"""Attention over lambda: one frame for each strength, in one look."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEngine
from models import checkpoint, picture
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app
from cof.cli.common import Model
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import Decoding
from cof.viz import save_animation
from cof.viz.animation import STRENGTHS, draw_frames
from cof.viz.page import Panel, draw_panels, lay_out
from cof.viz.readout import read

REGION = Region(boxes=((0.25, 0.25, 0.75, 0.5),))
QUESTION = "which digit?"
SHORT = Decoding(max_new_tokens=2)


@functools.cache
def engine() -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint("llava"))


def cof(**settings: object) -> CoF:
    return CoF(engine(), Settings(expand=1.0).changed(**settings))


@pytest.mark.parametrize(("name", "kind"), [("a.webp", "WEBP"), ("a.gif", "GIF")])
def test_one_frame_for_each_strength(tmp_path: Path, name: str, kind: str) -> None:
    asked = (cof(), picture((60, 40)), QUESTION)
    options = {"strengths": (1, 4, 64), "region": REGION, "decoding": SHORT}
    save_animation(tmp_path / name, *asked, **options)
    frames = draw_frames(*asked, **options)
    with Image.open(tmp_path / name) as saved:
        assert (saved.format, saved.n_frames, saved.info["loop"]) == (kind, 3, 0)
        assert saved.size == frames[0].size
        saved.seek(2)
        written = np.asarray(saved.convert("RGB"), dtype=float)
    near = np.abs(written - np.asarray(frames[2], dtype=float)).mean()
    assert near < np.abs(written - np.asarray(frames[0], dtype=float)).mean()


def test_frames_show_the_attention_of_each_strength_on_one_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last frame holds the panel that `draw` would show of its answer, and the first one the
    plain model's attention, with the region's outline."""
    image, strength = picture((60, 40)), 64.0
    shown: list[Panel] = []
    monkeypatch.setattr(
        "cof.viz.animation.lay_out",
        lambda figure, wh, panels, said: shown.extend(panels) or lay_out(figure, wh, panels, said),
    )
    draw_frames(cof(), image, QUESTION, strengths=(1, strength), region=REGION, decoding=SHORT)
    pipeline = cof(strength=strength)
    answer = pipeline(image, QUESTION, boxes=REGION.boxes, decoding=SHORT)
    readout = read(engine(), answer)
    assert readout is not None
    for one, other in zip(shown, draw_panels(answer, readout)[1:], strict=True):
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
    assert shown[0].top == shown[1].top


def test_the_image_is_encoded_once_and_the_place_looked_for_once() -> None:
    fake = FakeEngine(lambda request: "7" if request.highlight else "[0.2, 0.2, 0.4, 0.4]")
    with pytest.raises(CofError, match="cannot tell the attention"):
        draw_frames(CoF(fake), picture((60, 40)), QUESTION, strengths=(2, 4, 8))
    assert len(fake.encoded) == 1
    asked = [request for requests, _ in fake.calls for request in requests]
    assert [request.highlight.strength for request in asked if request.highlight] == [2, 4, 8]
    assert len(asked) == 1 + 3


@pytest.mark.parametrize(
    ("name", "settings", "strengths", "says"),
    [
        ("a.png", {}, (1, 2), "end it in .webp or .gif"),
        ("a.webp", {}, (), "at least one strength"),
        ("a.webp", {}, (2, 0), "above 0"),
        ("a.webp", {"focus": "crop"}, (1, 2), "'crop' has no lambda"),
        ("a.webp", {"grounder": "none"}, (1, 2), "no region to animate"),
    ],
)
def test_refused(
    tmp_path: Path, name: str, settings: dict[str, object], strengths: tuple[float, ...], says: str
) -> None:
    fake = FakeEngine(lambda request: "7" if request.highlight else "[0.2, 0.2, 0.4, 0.4]")
    pipeline = CoF(fake, Settings().changed(**settings))
    with pytest.raises(CofError, match=says):
        save_animation(tmp_path / name, pipeline, picture((60, 40)), QUESTION, strengths=strengths)


def test_cof_ask_animate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "pipeline", lambda _: cof())
    picture((60, 40)).save(tmp_path / "a.png")
    ask = ["ask", str(tmp_path / "a.png"), QUESTION, "--max-new-tokens", "2"]
    box = ["--box", "0.25", "0.25", "0.75", "0.5"]
    result = CliRunner().invoke(app, [*ask, *box, "--animate", str(tmp_path / "b.webp")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "b.webp") as saved:
        assert saved.n_frames == len(STRENGTHS)
    result = CliRunner().invoke(app, [*ask, "--animate", str(tmp_path / "b.mp4")])
    assert (result.exit_code, "end it in .webp or .gif" in result.stderr) == (2, True)
    result = CliRunner().invoke(app, [*ask, *box, "--mask", "m.png"])
    assert (result.exit_code, "give one of them" in result.stderr) == (2, True)
