"""The command line on a real (tiny, random) transformers model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from models import checkpoint, picture
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app
from cof.settings import Settings


def ask(folder: Path, options: str) -> str:
    path = folder / "picture.png"
    picture((48, 32)).save(path)
    arguments = f"ask {path} 'what is it' --model {checkpoint('llava')} {options}"
    result = CliRunner().invoke(app, shlex.split(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    shown = json.loads(ask(tmp_path, "--json"))
    assert shown["settings"] == json.loads(json.dumps(Settings().as_dict()))
    assert 0 < shown["confidence"] < 1


def test_attention_is_drawn_before_and_after(tmp_path: Path) -> None:
    target = tmp_path / "overlay.png"
    ask(tmp_path, f"--box 0.1 0.2 0.6 0.9 --max-new-tokens 2 --save {target}")
    with Image.open(target) as drawn:
        assert drawn.width > 2 * drawn.height  # three panels
