"""Localization heads: the authors' rule written out, `cof calibrate`, and the study."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from models import checkpoint
from scipy.ndimage import label
from typer.testing import CliRunner

from cof import CoF
from cof.cli import app
from cof.cli.common import Model
from cof.errors import CofError
from cof.eval.data.scenes import Scenes
from cof.eval.examples import Example, open_image
from cof.eval.heads import choose_heads, most_local, read_maps
from cof.eval.sweep import Choice
from cof.geometry.boxes import FULL, centre, contains_point
from cof.grounders import RelativeAttention
from cof.presets import default_settings
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of eight scenes; `own.jsonl` has the questions about their small details."""
    folder = tmp_path_factory.mktemp("scenes")
    asked = write_benchmark(folder, "validation", num_objects=(4, 12), scenes=4)
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    own = [{key: row[key] for key in ("image", "question")} for row in rows if row["kind"] in FINE]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, own)))
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_calibrate_then_eval_with_its_heads(scenes: Path, tmp_path: Path) -> None:
    """In `tiny-early` heads 24 to 27, all of one layer, point at objects, as labels tell; here
    they are found without any. Questions about their images are refused, wherever these lie."""
    out, model = tmp_path / "heads.json", ("--model", "tiny-early", "--dtype", "float32")
    done = run("calibrate", *model[1:], scenes / "own.jsonl", "--out", out)
    choice = Choice.read(out)
    heads = choice.settings.option("grounder_heads")
    assert {*heads} == {24, 25, 26, 27}, done.output
    assert f"Chosen by {choice.about['count']} questions: --grounder attention" in done.stdout
    given = Model(grounder="attention", set=re.findall(r"--set (\S+)", done.stdout)).settings
    assert choice.settings == default_settings("tiny-early", "tiny").changed(**given)
    assert not {"rule", "plain", "tried"} & json.loads(out.read_text()).keys()  # nobody answered
    other = tmp_path / "other"
    write_benchmark(other, "test", num_objects=(4,), scenes=1)
    measure = ("eval", "scenes", other, "--limit", 2, "--settings", out)
    measured = run(*measure, *model, "--out", tmp_path / "run")
    assert measured.exit_code == 0, measured.output
    answers = (tmp_path / "run" / "answers.jsonl").read_text()
    assert f" grounder_heads={','.join(map(str, heads))}" in answers
    assert "tables" not in json.loads((tmp_path / "run" / "results.json").read_text())
    assert "Note" not in measured.stderr
    assert "heads do not carry over" in run(*measure, "--out", tmp_path / "tiny").stderr
    moved = shutil.copytree(scenes, tmp_path / "moved")
    refused = run("eval", "scenes", moved, *model, "--settings", out, "--out", tmp_path / "again")
    assert refused.exit_code == 2
    assert re.search(r"^\d+ of these questions or their images .* on other data", refused.stderr)


@pytest.mark.parametrize(
    ("line", "more", "problem"),
    [
        ("", (), "There is no question"),
        ('{"image": "images/no.png", "question": "What?"}', (), "line 1: There is no image"),
        ('{"image": "own.jsonl", "question": "What?"}', (), "line 1: .* is not an image"),
        ('{"image": "a.png"}', (), "line 1: lacks question"),
        ("{", (), "line 1: no JSON"),
        ('{"image": "IMAGE", "question": " "}', (), "line 1: The question is empty"),
        ('{"image": "IMAGE", "question": "What?"}', ("--count", 49), "Only [0-9]+ heads look"),
    ],
)
def test_what_is_refused(
    scenes: Path, tmp_path: Path, line: str, more: tuple[object, ...], problem: str
) -> None:
    path, out = scenes / "damaged.jsonl", tmp_path / "heads.json"
    image = next((scenes / "images").iterdir())
    path.write_text(line.replace("IMAGE", str(image.relative_to(scenes))))
    done = run("calibrate", "tiny-early", path, "--out", out, *more)
    assert done.exit_code == 2
    assert re.search(problem, done.stderr), done.stderr
    assert not out.exists()


def test_what_names_a_file_here_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("{}")
    assert run("calibrate", "tiny-early", "own.jsonl").stderr.startswith("own.jsonl, line 1: lacks")
    told = run("calibrate", "tiny-early", "no.jsonl").stderr
    assert told == "no.jsonl cannot be read (No such file or directory).\n"


def test_few_questions_say_so(scenes: Path, tmp_path: Path) -> None:
    path = scenes / "few.jsonl"
    path.write_text("\n".join((scenes / "own.jsonl").read_text().splitlines()[:5]))
    done = run("calibrate", "tiny-early", path, "--out", tmp_path / "heads.json", "--count", 2)
    assert "Chosen by 5 questions (few: more may choose others): --grounder" in done.stdout
    assert len(Choice.read(tmp_path / "heads.json").settings.option("grounder_heads")) == 2


def test_engines_without_a_decoders_attention(scenes: Path) -> None:
    asked = [Example("1", next((scenes / "images").iterdir()), "What is there?", "")]
    for engine in (FakeEngine({}), CoF.from_pretrained(checkpoint("instructblip")).engine):
        with pytest.raises(CofError, match="does not show how heads of a decoder look"):
            next(read_maps(engine, asked))


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
    alone = RelativeAttention(grounder_heads=tuple(heads))
    requests = [Request(open_image(example.image), example.prompt) for example in fine]
    boxes = [found.region.boxes[0] for found in alone.locate(cof.engine, requests) if found.region]
    inside = [
        contains_point(example.region or FULL, centre(box))
        for example, box in zip(fine, boxes, strict=True)
    ]
    centres = report["centres"]["heads, product"]
    assert centres["value"] == pytest.approx(100 * np.mean(inside), abs=1e-4)
