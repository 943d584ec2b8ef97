"""The pipeline on real (tiny, random) transformers models."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from models import checkpoint, picture
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.transformers.engine import TransformersEngine
from cof.geometry.regions import Region
from cof.pipeline import CoF
from cof.query import Query
from cof.settings import Settings
from cof.types import Decoding, Highlight, Request

BOX = (0.1, 0.2, 0.6, 0.9)
SHORT = Decoding(max_new_tokens=6)


@pytest.mark.parametrize("name", ["llava", "instructblip", "blip-2"])
def test_a_given_box_is_the_engines_highlight(name: str) -> None:
    engine = TransformersEngine.from_pretrained(checkpoint(name))
    image = picture((48, 32))
    answer = CoF(engine, Settings(expand=1.0, strength=20.0))(
        image, "what is it", boxes=[BOX], decoding=SHORT
    )
    highlight = Highlight(Region(boxes=(BOX,)), 20.0)
    focused, plain = engine.generate(
        [Request(image, "what is it", highlight), Request(image, "what is it")], SHORT
    )
    assert answer.text == focused.text
    assert answer.plain() == plain.text
    assert focused.logprobs != plain.logprobs  # the box does something


def test_batch_equals_one_by_one() -> None:
    cof = CoF.from_pretrained(checkpoint("llava"), expand=1.0, strength=20.0)
    image, other = picture((48, 32)), picture((30, 50), seed=1)
    rows = [
        Query(image, "what is it", boxes=[BOX]),
        Query(other, "what is it", boxes=[(0.5, 0.5, 1.0, 1.0)], strength=3.0),
        Query(image, "where", strength=1.0),
    ]
    together = cof.batch(rows, decoding=SHORT)
    assert [answer.text for answer in together] == [
        cof.batch([row], decoding=SHORT)[0].text for row in rows
    ]


def test_the_command_line_loads_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture((48, 32)).save(path)
    result = CliRunner().invoke(
        app, ["ask", str(path), "what is it", "--model", str(checkpoint("llava")), "--json"]
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["settings"] == json.loads(json.dumps(Settings().as_dict()))
    assert 0 < shown["confidence"] < 1


def test_the_command_line_draws_attention_before_and_after(tmp_path: Path) -> None:
    source, target = tmp_path / "picture.png", tmp_path / "overlay.png"
    picture((48, 32)).save(source)
    arguments = shlex.split(
        f"ask {source} 'what is it' --model {checkpoint('llava')} --box 0.1 0.2 0.6 0.9"
        f" --max-new-tokens 2 --save {target}"
    )
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(target) as drawn:
        assert drawn.width > 2 * drawn.height  # three panels
