"""The study of the three faces: its figures are the benchmarks' own, its settings were chosen
elsewhere, and a run that was cut short ends with the same numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cof.eval.faces import FACES, Plan, run_faces
from cof.eval.pictures import picture
from cof.eval.report.faces import markdown
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval import facets
from cof.eval.data.base import Benchmark
from cof.eval.store import Record
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.tiny.synthetic import VALIDATION, write_synthetic
from cof.types import EncodedImage, Request

PLAN = Plan(
    scenes=2,
    validation_scenes=1,
    num_objects=(3, 12),
    strengths=(2.0, 8.0),
    expands=(1.0, 1.3),
    batch_size=7,
)
QUIET = Console(quiet=True)


def key(image: Image.Image | EncodedImage, prompt: str) -> tuple[int, str]:
    source = image.image if isinstance(image, EncodedImage) else image
    return hash(source.tobytes()), prompt


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Benchmark]:
    """All questions of the plan, the validation scenes' first."""
    found: list[Benchmark] = []
    for first, scenes in ((VALIDATION, 1), (0, 2)):
        folder = tmp_path_factory.mktemp("faces")
        write_synthetic(folder, num_objects=PLAN.num_objects, scenes=scenes, first=first)
        found += [reader(folder / name, prompt_style="tiny") for name, reader in FACES.items()]
    return found


@pytest.fixture(scope="module")
def truth(tasks: list[Benchmark]) -> Mapping[tuple[int, str], str]:
    return {
        key(picture(example.image), example.prompt): example.answer
        for task in tasks
        for example in task.examples
    }


def engine(truth: Mapping[tuple[int, str], str]) -> FakeEngine:
    """Right where it looks with lambda 8 and an unexpanded box, else it always says the same."""

    def reply(request: Request) -> str:
        light = request.highlight
        asked = truth.get(key(request.image, request.prompt))
        if asked is None:
            return "[0.25, 0.25, 0.50, 0.50]"
        if light and light.strength == 8 and light.region.boxes == ((0.25, 0.25, 0.5, 0.5),):
            return asked
        return "A" if asked in "ABCD" else "yes"

    return FakeEngine(reply, dialect=replace(TINY, name="tiny"))


def without_seconds(results: Any) -> Any:
    if isinstance(results, dict):
        return {k: without_seconds(v) for k, v in results.items() if k != "seconds"}
    return results


@pytest.fixture(scope="module")
def done(
    truth: Mapping[tuple[int, str], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, int]:
    """An uninterrupted run: its results, its folder, and how much was asked."""
    out = tmp_path_factory.mktemp("done")
    asked = engine(truth)
    results = run_faces(asked, Settings(), PLAN, out, console=QUIET)
    return results, out, sum(len(call) for call, _ in asked.calls)


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_the_benchmarks_own(tasks: list[Benchmark], seed: int) -> None:
    rng = random.Random(seed)
    said = ("yes", "No.", "A", "(B)", "C", "D", "none of them", "Yes, there is.")
    for task in tasks:
        replies = {example.id: rng.choice(said) for example in task.examples}
        records = {}
        for example in task.examples:
            score = task.score(example, replies[example.id])
            text = replies[example.id]
            records[example.id] = Record(example.id, "plain", text, score.parsed, score.right)
        places = facets.drawn(task.path, task.examples)
        ours = facets.FIGURES[task.name](task.examples, records, places)
        theirs = task.metrics(task.examples, replies, "official")
        names = {"score": "perception"} | {
            name: name.removesuffix(", circular") for name in ours if name != "score"
        }
        assert len(ours) >= 5
        for name, figure in ours.items():
            assert 100 * figure.value == pytest.approx(theirs[names[name]]), name


def test_settings_are_those_of_the_validation_scenes(
    done: tuple[dict[str, Any], Path, int],
) -> None:
    results, out, _ = done
    choice = results["choice"]
    assert (choice["strength"], choice["expand"], choice["scope"]) == (8, 1, "all")
    assert len(choice["validation"]) == 1 + 2 + 1  # plain, each lambda, the other alpha
    assert choice["validation"]["cof lambda=8 alpha=1 scope=all"] == 1
    seeds = {}
    for split in ("validation", "test"):
        lines = [
            json.loads(line)
            for face in FACES
            for line in (out / "work" / split / "data" / face / "annotations.jsonl")
            .read_text("utf-8")
            .splitlines()
        ]
        seeds[split] = {line["scene"] for line in lines}
        assert {line["difficulty"] for line in lines} == {"easy", "medium", "hard"}
    assert seeds["validation"].isdisjoint(seeds["test"])
    keys = {"cof": "cof lambda=8 alpha=1 scope=all", "whole": "whole lambda=8 scope=all"}
    assert keys.items() <= results["methods"].items()


def test_tables(done: tuple[dict[str, Any], Path, int]) -> None:
    results, _, _ = done
    faces = results["faces"]
    assert faces["mme"]["figures"]["score"]["cof"]["value"] == 10  # five tasks, two each
    assert faces["mme"]["figures"]["score"]["plain"]["value"] == 2.5
    assert faces["pope"]["figures"]["random f1"]["whole"]["difference"] == 0
    assert faces["mmbench"]["figures"]["circular"]["plain"]["value"] == 0
    assert faces["mmbench"]["figures"]["circular"]["cof"]["value"] == 1
    assert faces["pope"]["levels"]["all"]["plain"]["n"] < faces["pope"]["questions"]
    assert faces["pope"]["changed"]["cof"]["broken"] == []
    text = markdown(results)
    assert "| MME-like, score |  | 250.0 [250.0, 250.0] | 1000.0 [1000.0, 1000.0]" in text
    assert "| ground + reweight (CoF) | 1000.0 (+750.0 [+750.0, +750.0]) |" in text


def test_an_interrupted_run_goes_on(
    truth: Mapping[tuple[int, str], str], done: tuple[dict[str, Any], Path, int], tmp_path: Path
) -> None:
    """Cut off in the choice of settings, and again on the test scenes."""
    whole = done[2]
    for share in (0.3, 0.5):
        tired = engine(truth)
        tired.replies = _stops(tired.replies, int(whole * share))
        with pytest.raises(KeyboardInterrupt):
            run_faces(tired, Settings(), PLAN, tmp_path / "out", console=QUIET)
    again = engine(truth)
    results = run_faces(again, Settings(), PLAN, tmp_path / "out", console=QUIET)
    assert without_seconds(results) == without_seconds(done[0])
    assert sum(len(call) for call, _ in again.calls) < 0.8 * whole
    other = replace(PLAN, seed=1)
    with pytest.raises(CofError, match="holds answers of another run"):
        run_faces(engine(truth), Settings(), other, tmp_path / "out", console=QUIET)


def _stops(replies: Any, after: int) -> Callable[[Request], str]:
    left = [after]

    def reply(request: Request) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        text: str = replies(request)
        return text

    return reply


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "faces", "--quick", "--limit", "4", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results["about"]["dtype"] == "bfloat16"
    assert results["about"]["prompt_style"] == "tiny"
    assert set(results["faces"]) == {"mme", "pope", "mmbench"}
    table = (out / "table.md").read_text("utf-8")
    assert "| true regions + reweight |" in table
    assert "| true regions + reweight |" in result.output
    for face in results["faces"].values():
        assert face["questions"] in (4, 5, 6)
