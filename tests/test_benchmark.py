"""The benchmark's files: the same bytes every time, and true to the pictures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app
from cof.errors import CofError
from cof.geometry.boxes import union
from cof.tiny.benchmark import KINDS, NUM_OBJECTS, SPLITS, questions, scene_seed
from cof.tiny.benchmark import write_benchmark as write
from cof.tiny.scenes import COLORS, make_scene
from lab.training.data import TRAIN_SEEDS

PER_SCENE = 13  # questions


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "questions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write(folder, "test", num_objects=(4, 8, 16), scenes=4)
    return folder


def test_the_same_bytes_whatever_else_is_drawn(benchmark: Path, tmp_path: Path) -> None:
    write(tmp_path, "test", num_objects=(12, 8, 8), scenes=2)
    before, now = ({r["id"]: r for r in records(folder)} for folder in (benchmark, tmp_path))
    shared = before.keys() & now.keys()
    assert len(shared) == 2 * PER_SCENE
    assert all(before[id] == now[id] for id in shared)
    assert len(list((benchmark / "images").iterdir())) == 3 * 4
    for name in ("test-08-0000.png", "test-08-0001.png"):
        read = [(folder / "images" / name).read_bytes() for folder in (benchmark, tmp_path)]
        assert read[0] == read[1]


def test_splits_share_no_scene(tmp_path: Path, benchmark: Path) -> None:
    write(tmp_path, "validation", num_objects=(4,), scenes=2)
    assert {r["seed"] for r in records(tmp_path)}.isdisjoint(r["seed"] for r in records(benchmark))
    seeds = [scene_seed(s, n, i) for s in SPLITS for n in range(1, 17) for i in (0, 9_999)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < TRAIN_SEEDS


def test_records_are_whole(benchmark: Path) -> None:
    rows = records(benchmark)
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({(row["image"], row["question"]) for row in rows}) == len(rows)
    assert {row["num_objects"] for row in rows[: 3 * PER_SCENE]} == {4, 8, 16}  # levels alternate
    shapes = set()
    for row in rows:
        assert len(row["boxes"]) == row["num_objects"]
        targets = [tuple(row["boxes"][i]) for i in row["targets"]]
        assert row["region"] == (pytest.approx(union(targets)) if targets else None)
        if row["kind"] == "existence":
            assert (row["answer"] == "yes") == bool(targets)
        with Image.open(benchmark / row["image"]) as image:
            shapes.add(image.width == image.height)
    assert shapes == {True, False}


def test_kinds_are_balanced() -> None:
    scenes = [make_scene(scene_seed("test", 8, index), 8) for index in range(40)]
    found = [question for scene in scenes for question in questions(scene)]
    counts = Counter(question.kind for question in found)
    assert set(counts) == set(KINDS)
    for kind in KINDS:
        wanted = 80 if kind in ("digit", "letter", "color") else 40
        assert 0.9 * wanted <= counts[kind] <= wanted
    for kind in ("existence", "position", "verify"):
        yes = [question.answer == "yes" for question in found if question.kind == kind]
        assert 0.3 < sum(yes) / len(yes) < 0.7
    options = Counter(question.answer for question in found if question.kind == "choice")
    assert set(options) == set("ABCD")


def test_regions_show_what_is_asked(benchmark: Path) -> None:
    """The colour that is the answer fills much of the region, and little of other objects."""
    asked = [row for row in records(benchmark) if row["kind"] == "color"]
    assert len(asked) >= 20
    for row in asked:
        pixels = np.asarray(Image.open(benchmark / row["image"]), dtype=np.int64)
        near = np.abs(pixels - COLORS[row["answer"]]).max(axis=-1) <= 20
        x1, y1, x2, y2 = (np.array(row["region"]) * (near.shape[::-1] * 2)).round().astype(int)
        inside = near[y1:y2, x1:x2]
        assert inside.mean() > 0.15
        assert inside.mean() > 3 * near.mean() or row["num_objects"] == 16


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"split": "train"}, "no split 'train'"),
        *(({"num_objects": numbers}, r"1\.\.16") for numbers in ((0,), (), (17,))),
        ({"scenes": 0}, "scenes must be in"),
    ],
)
def test_refusals(tmp_path: Path, wrong: dict[str, Any], sentence: str) -> None:
    arguments = {"split": "test", "num_objects": NUM_OBJECTS, "scenes": 1} | wrong
    with pytest.raises(CofError, match=sentence):
        write(tmp_path, arguments.pop("split"), **arguments)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    arguments = ["scenes", str(out), "--split", "validation", "--num-objects", "4,8"]
    result = CliRunner().invoke(app, [*arguments, "--scenes", "1"])
    assert result.exit_code == 0, result.output
    assert f"{len(records(out))} questions" in result.stdout
    drawn = {(row["split"], row["num_objects"]) for row in records(out)}
    assert drawn == {("validation", 4), ("validation", 8)}
