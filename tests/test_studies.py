"""Whole studies: their answers are the pipeline's, and their choice reaches `cof eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import AnyEngine
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.chosen import CHOSEN
from cof.eval.data.scenes import Scenes
from cof.eval.embedded import Plan, run_effect, run_grid, run_synthetic
from cof.eval.evaluate import Evaluation
from cof.eval.store import Store
from cof.pipeline import CoF
from cof.settings import Settings
from cof.tiny import checkpoint_path
from cof.tiny.benchmark import write_benchmark

QUIET = Console(quiet=True)
PLAN = Plan(
    scenes=1,
    validation_scenes=1,
    num_objects=(4,),
    strengths=(2.0, 8.0),
    expands=(1.0,),
    scopes=("text",),
)


def scenes(folder: Path, split: str = "validation", number: int = 2) -> Scenes:
    write_benchmark(folder, split, num_objects=(4, 8), scenes=number)
    return Scenes(folder, prompt_style="tiny")


@pytest.fixture(scope="module")
def early() -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint_path("tiny-early"))


def test_answers_of_a_study_are_those_of_the_pipeline(
    early: TransformersEngine, tmp_path: Path
) -> None:
    """Two looks, and a threshold on the plain answer's confidence, which is chosen from records."""
    settings = CoF(early).settings
    results = run_effect(early, settings, PLAN, tmp_path, console=QUIET)
    numbers = results["tasks"]["scenes"]
    store = Store(tmp_path / "answers.jsonl")
    examples = Scenes(tmp_path / "data" / "test", prompt_style="tiny").examples
    assert numbers["questions"] == len(examples)
    for name in ("cof", "two looks", "cof, if unsure"):
        values = {k: v for k, v in results["settings"][name].items() if k != "given"}
        cof = CoF(early, Settings().changed(**values))
        answers = cof.batch([(e.image, e.prompt) for e in examples])
        records = store.method(results["methods"][name])
        same = [records[e.id].text == a.text for e, a in zip(examples, answers, strict=True)]
        assert all(same)
        looked = [
            bool(records[e.id].boxes) == bool(a.boxes)
            for e, a in zip(examples, answers, strict=True)
        ]
        assert all(looked)
    limit = results["settings"]["cof, if unsure"]["max_plain_confidence"]
    assert 0 < limit < 1
    assert set(results["methods"]) == set(numbers["costs"]) == set(numbers["groups"]["fine"])
    assert numbers["costs"]["two looks"]["ratio"] > 1


def test_grid(tmp_path: Path) -> None:
    results = run_grid(
        AnyEngine(),
        Settings(),
        PLAN,
        tmp_path,
        sources=("prompt", "whole", "oracle"),
        focuses=("attention", "crop"),
        console=QUIET,
    )
    assert list(results["methods"]) == [
        "plain",
        "prompt x attention",
        "prompt x crop",
        "whole x attention",  # a crop to the whole image is the image
        "oracle x attention",
        "oracle x crop",
    ]
    assert set(results["choice"]["chosen"]) == {"attention", "crop"}
    chosen = results["settings"]["prompt x attention"]["strength"]
    assert results["settings"]["oracle x attention"]["strength"] == chosen
    for wrong in ({"sources": ("given",)}, {"focuses": ("zoom",)}, {"focuses": ()}):
        with pytest.raises(CofError, match="choose of"):
            run_grid(AnyEngine(), Settings(), PLAN, tmp_path, console=QUIET, **wrong)  # type: ignore[arg-type]
    with pytest.raises(CofError, match="--detector ID"):
        run_grid(AnyEngine(), Settings(), PLAN, tmp_path, sources=("detector",), console=QUIET)


def test_synthetic(tmp_path: Path) -> None:
    plan = replace(PLAN, limit=8)
    results = run_synthetic(AnyEngine(), Settings(), plan, tmp_path, console=QUIET)
    assert list(results["tasks"]) == ["mme", "pope", "mmbench"]
    assert all((tmp_path / name / "answers.jsonl").is_file() for name in results["tasks"])
    cof = results["settings"]["cof"]
    for name in ("whole", "oracle", "random"):
        assert {results["settings"][name][of] for of in ("strength",)} == {cof["strength"]}


def test_sweep_then_eval_with_its_settings(tmp_path: Path) -> None:
    """The prompt style of the choice is that of the test."""
    data = tmp_path / "data"
    write_benchmark(data, "test", num_objects=(4,), scenes=12)
    out = tmp_path / "out"

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [*map(str, arguments)])

    grid = "--strengths 4 --expands 1 --scopes text --layers all"
    options = f"--model tiny-early --prompt-style llava --share 0.5 --limit 6 {grid}"
    swept = run("sweep", "scenes", data, "--out", out, *options.split())
    assert swept.exit_code == 0, swept.output
    assert "Chosen of 1: prompt x attention" in swept.output
    common = ("eval", "scenes", data, "--model", "tiny-early")
    refused = run(*common, "--part", "test")
    assert refused.exit_code == 2
    assert "run `cof sweep scenes`" in refused.stderr
    chosen = ("--settings", out / CHOSEN)
    again = run(*common, *chosen, "--out", tmp_path / "a")
    assert again.exit_code == 2
    assert "add --part test" in again.stderr
    tested = run(*common, *chosen, "--part", "test", "--limit", 4, "--out", tmp_path / "b")
    assert tested.exit_code == 0, tested.output
    results = json.loads((tmp_path / "b" / "results.json").read_text("utf-8"))
    assert results["about"]["prompt_style"] == "llava"
    assert results["settings"]["cof"]["strength"] == 4.0
    both = run(*common, *chosen, "--strength", "3", "--part", "test", "--out", tmp_path / "c")
    assert both.exit_code == 2
    assert "leave --preset and other settings out" in both.stderr


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    task = scenes(tmp_path / "data", number=1)
    evaluation = Evaluation.compare_usual(Settings(), task)
    evaluation.run(AnyEngine(), {"scenes": task}, tmp_path / "out", console=QUIET)
    with pytest.raises(CofError, match=r"another run \(.*seed"):
        replace(evaluation, seed=1).run(
            AnyEngine(), {"scenes": task}, tmp_path / "out", console=QUIET
        )
