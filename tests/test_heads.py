"""Localization heads: the authors' rule written out, and the study of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label

from cof import CoF
from cof.eval.data.scenes import Scenes
from cof.eval.examples import open_image
from cof.geometry.boxes import FULL, centre, contains_point
from cof.grounders import RelativeAttention
from cof.tiny.benchmark import FINE
from cof.types import Request
from lab.studies import heads as study
from lab.studies.localization import choose_heads, most_local


def authors_rule(maps: np.ndarray) -> list[int]:
    """As github.com/seilk/LocalizationHeads computes it, head by head, with the elbow of values."""
    sums = [float(head.sum()) for head in maps]
    points = np.array([*enumerate(sorted(sums))])
    line = points[-1] - points[0]
    line /= np.linalg.norm(line)
    offsets = points - points[0]
    distances = np.linalg.norm(offsets - np.outer(offsets @ line, line), axis=1)
    threshold = points[distances.argmax(), 1]
    entropies = []
    for number, head in enumerate(maps):
        above = np.maximum(head - head.mean(), 0)
        parts, count = label(above > 0.001, structure=np.ones((3, 3)))
        if sums[number] < threshold or (parts[-1] > 0).all() or not count:
            continue
        shares = [above[parts == part].sum() / above.sum() for part in range(1, count + 1)]
        entropies.append((round(-sum(p * np.log(p) for p in shares), 9), number))
    return [number for _, number in sorted(entropies)[:10]]


def random_maps(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Of 40 heads: blobs on noise, each with its own share of all attention."""
    y, x = np.indices(shape)
    maps = np.zeros((40, *shape))
    for head in maps:
        for _ in range(rng.integers(1, 5)):
            middle = rng.uniform(0, shape)
            square = (y - middle[0]) ** 2 + (x - middle[1]) ** 2
            head += np.exp(-square / rng.uniform(0.5, 6)) + rng.random(shape) * rng.choice([0, 0.2])
        head *= rng.uniform(0.1, 1) / head.sum()
    return maps


@pytest.mark.parametrize("shape", [(10, 10), (24, 24), (5, 12)])
def test_equal_to_the_authors_selection(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    questions = [random_maps(rng, shape) for _ in range(30)]
    expected = [authors_rule(maps) for maps in questions]
    assert [most_local(maps) for maps in questions] == expected
    assert len({head for heads in expected for head in heads}) > 20  # they differ
    numbers = [head for heads in expected for head in heads]
    often = sorted(dict.fromkeys(numbers), key=numbers.count, reverse=True)
    assert choose_heads(questions, 5) == often[:5]


def test_heads_that_are_left_out() -> None:
    maps = np.zeros((4, 8, 8))
    maps[0, 2, 3] = 0.9  # local
    maps[1] = 0.9 / 64  # nothing stands out
    maps[2, -1] = 0.9 / 8  # the bottom row
    maps[3, 5, 5] = 0.1  # attends too little
    assert most_local(maps) == [0]


def test_the_study(tmp_path: Path) -> None:
    """Every method answers all; the attention is read once, and is that of a grounder alone."""
    study.main(tmp_path, "tiny-early", ("validation", 5, 1), ("test", 7, 1))
    report = json.loads((tmp_path / "heads-tiny-early.json").read_text())
    asked = [*Scenes(tmp_path / "data" / "heads-tiny-early" / "data" / "test").examples]
    assert {example.id.split("-")[2] for example in asked} == {"0007"}
    fine = [example for example in asked if example.kind in FINE]
    assert {row["n"] for row in report["answers"].values()} == {len(fine)}
    cof = CoF.from_pretrained("tiny-early", dtype="bfloat16")
    heads = report["chosen"]["without labels"][:4]
    alone = RelativeAttention(grounder_heads=tuple(heads), average="geometric")
    requests = [Request(open_image(example.image), example.prompt) for example in fine]
    boxes = [found.region.boxes[0] for found in alone.locate(cof.engine, requests) if found.region]
    inside = [
        contains_point(example.region or FULL, centre(box))
        for example, box in zip(fine, boxes, strict=True)
    ]
    centres = report["centres"]["heads, product"]
    assert centres["value"] == pytest.approx(100 * np.mean(inside), abs=1e-4)
