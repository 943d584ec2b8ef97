"""Preset `paper-parity` marks the very cells that the released code marks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fakes import FakeEngine
from numpy.typing import NDArray
from PIL import Image

from cof.families.token_coverage import corner_cells
from cof.geometry.boxes import Frame
from cof.pipeline import CoF
from cof.presets import preset
from cof.prompting.dialects import LLAVA

GRID = (24, 24)


def released_cells(box: list[float], alpha: float) -> NDArray[np.bool_]:
    """Cells marked for a box as the model wrote it: `highlight_bbox` of that code, in its order
    (Gavin001201/CoF at 7c07e4c, examples/eval_scripts/llava_vqa_loader_hl.py)."""
    x1, y1, x2, y2 = box
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    side = max((x2 - x1) * alpha, (y2 - y1) * alpha)
    left = middle_x - side / 2 if middle_x - side > 0 else 0
    top = middle_y - side / 2 if middle_y - side > 0 else 0
    right = middle_x + side / 2 if middle_x + side < 1 else 1
    bottom = middle_y + side / 2 if middle_y + side < 1 else 1
    cells = np.zeros(GRID, dtype=bool)
    cells[int(top * 23) : int(bottom * 23) + 1, int(left * 23) : int(right * 23) + 1] = True
    return cells


def test_a_box_outside_the_image() -> None:
    assert released_cells([0.01, 1.02, 0.15, 1.38], 1.0).sum() == 6


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-60, 160)])
@pytest.mark.parametrize("image_wh", [(64, 64), (640, 480), (333, 500), (1024, 683)])
@pytest.mark.parametrize("model", ["llava-1.5-7b", "llava-1.5-13b"])
def test_cells(image_wh: tuple[int, int], model: str, low: int, high: int) -> None:
    """Of boxes on the padded square, and of such that leave it or lie outside."""
    rng = random.Random(0)
    settings = preset("paper-parity", model)
    image, frame = Image.new("RGB", image_wh), Frame.padded_square(image_wh)
    replies: list[str] = []
    cof = CoF(FakeEngine(lambda request: replies[-1], dialect=LLAVA), settings)
    for _ in range(200):
        x1, x2 = sorted(rng.sample(range(low, high + 1), 2))
        y1, y2 = sorted(rng.sample(range(low, high + 1), 2))
        box = [x1 / 100, y1 / 100, x2 / 100, y2 / 100]
        replies.append("[" + ", ".join(f"{value:.2f}" for value in box) + "]")
        ours = corner_cells(cof(image, "What is it?").boxes, frame, GRID)
        assert (ours == released_cells(box, settings.expand)).all(), (box, image_wh)
