"""Localization heads: the authors' rule written out, and `cof calibrate` on the embedded model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label
from typer.testing import CliRunner

from cof import CoF
from cof.cli import app
from cof.cli.common import Model
from cof.eval.data.scenes import Scenes
from cof.eval.examples import open_image
from cof.eval.heads import choose_heads, most_local
from cof.eval.sweep import Choice
from cof.geometry.boxes import FULL, centre, contains_point
from cof.grounders import RelativeAttention
from cof.presets import preset
from cof.tiny.benchmark import FINE, write_benchmark
from cof.types import Request
from lab.studies import heads as study


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


def test_calibrate_finds_the_heads_that_find(tmp_path: Path) -> None:
    """On `tiny-early` four heads of layer 3 of 8 heads each point at objects, as labels tell; the
    command needs none."""
    asked = write_benchmark(tmp_path, "validation", num_objects=(4, 12), scenes=4)
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    fine = [row for row in rows if row["kind"] in FINE]
    lines = [json.dumps({key: row[key] for key in ("image", "question")}) for row in fine]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    model, out = ["--model", "tiny-early", "--dtype", "float32"], tmp_path / "heads.json"
    command = ["calibrate", str(tmp_path / "own.jsonl"), "--out", str(out), *model]
    done = CliRunner().invoke(app, command)
    settings = Choice.read(out).settings
    heads = settings.option("grounder_heads")
    assert {*heads} == {24, 25, 26, 27}, done.output
    told = Model(set=re.findall(r"--set (\S+)", done.stdout)).settings
    assert settings == preset("tiny", "tiny").changed(grounder="attention", **told)
    data = ["eval", "scenes", str(tmp_path), "--limit", "2", "--out", str(tmp_path / "run"), *model]
    done = CliRunner().invoke(app, [*data, "--settings", str(out)])
    assert done.exit_code == 0, done.output
    answers = (tmp_path / "run" / "answers.jsonl").read_text()
    assert f"average=geometric grounder_heads={','.join(map(str, heads))}" in answers


@pytest.mark.parametrize(
    ("line", "problem"),
    [("", "There is no question"), ('{"image": "a.png"}', "line 1"), ("{", "line 1")],
)
def test_questions_that_cannot_be_read(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "own.jsonl").write_text(line)
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "own.jsonl")])
    assert done.exit_code == 2
    assert problem in done.stderr


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
