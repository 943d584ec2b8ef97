"""What docs/speed.md shows, runs; docs/serving.md has the table that the load test wrote."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cof.errors import CofError
from cof.pipeline import CoF
from cof.tiny import checkpoint_path

SPEED = (Path(__file__).parents[1] / "docs" / "speed.md").read_text("utf-8")
LINES = re.search(r"```python\n(.*?)```", SPEED, re.DOTALL)
PACKAGES = {"device_map": ["accelerate"], "quantization": ["accelerate", "bitsandbytes"]}


@pytest.mark.parametrize("line", LINES[1].splitlines() if LINES else [])
def test_every_line_loads_a_model(line: str) -> None:
    names: dict[str, Any] = {"CoF": CoF, "model": checkpoint_path()}
    needed = [of for option in PACKAGES if option in line for of in PACKAGES[option]]
    assert ("[big]" in line) == bool(needed)
    if any(find_spec(of) is None for of in needed):
        with pytest.raises(CofError, match=r"pip install 'cof\[big\]'"):
            eval(line, names)
        return
    made = eval(line, names)
    assert isinstance(made, CoF)


def test_the_readme_shows_the_same_lines() -> None:
    assert LINES is not None
    assert LINES[0] in (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_options_are_those_of_the_command_line() -> None:
    from typer.testing import CliRunner

    from cof import cli

    options = re.findall(r"`(--[a-z-]+)`", SPEED)
    assert len(options) == 5
    for command in ("ask", "ground", "eval mme"):
        arguments = [*shlex.split(command), "--help"]
        shown = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"}).output
        assert all(option in shown for option in options), command


def test_the_table_of_serving_is_the_one_that_was_measured() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs" / "serving.md").read_text("utf-8")
    block = re.search(r"<!-- from (\S+) -->\n\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert block is not None
    assert block[2] == (root / block[1]).read_text("utf-8")
