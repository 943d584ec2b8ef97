"""The lines that `lab.mutations` breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.mutations import MUTATIONS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("file", "before"), [(file, before) for file, before, _ in MUTATIONS])
def test_the_line_is_there_once(file: str, before: str) -> None:
    assert (ROOT / "cof" / f"{file}.py").read_text("utf-8").count(before) == 1
