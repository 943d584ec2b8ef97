"""Studies: what is chosen, that it is frozen before the test, and what is measured then."""

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
from cof.eval.chosen import CHOSEN, Chosen
from cof.eval.data.scenes import Scenes
from cof.eval.embedded import Plan, make_candidates, make_sweep, run_effect, run_grid, run_synthetic
from cof.eval.evaluate import Evaluation
from cof.eval.halving import rank
from cof.eval.methods import PLAIN, Method
from cof.eval.store import Store
from cof.eval.study import Study, Tally
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


def sweep(**options: Any) -> Study:
    candidates = make_candidates(Settings(), (2.0, 4.0, 8.0), (1.0, 1.5), ("all",))
    return make_sweep(candidates, **options)


def test_equals_are_ranked_by_mildness() -> None:
    methods = [Method(Settings(strength=s, expand=e)) for s in (8, 2) for e in (2.0, 1.0)]
    accuracy = {method.key: 0.5 for method in methods}
    assert [m.settings.strength for m in rank(methods, accuracy)] == [2.0, 2.0, 8.0, 8.0]
    assert rank(methods, accuracy)[0].settings.expand == 1.0
    accuracy[methods[0].key] = 0.6
    assert rank(methods, accuracy)[0] is methods[0]


def test_tasks_weigh_alike_however_many_questions_they_have() -> None:
    tally = Tally()
    tally.add("a", PLAIN.key, [True])
    tally.add("b", PLAIN.key, [False] * 9)
    assert tally.accuracy([PLAIN]) == {PLAIN.key: 0.5}


@pytest.mark.parametrize("rungs", [1, 3])
def test_the_choice_is_the_best_of_the_last_rung(tmp_path: Path, rungs: int) -> None:
    task = scenes(tmp_path / "data", number=8)
    study = sweep(rungs=rungs)
    choice = study.choose(AnyEngine(), {"tiny": task}, tmp_path / "out", console=QUIET)
    best = max(
        (of for of in choice.tried["cof"] if of["questions"] == choice.questions),
        key=lambda of: of["accuracy"],
    )
    assert len(choice.tried["cof"]) == 6
    chosen = next(of for of in choice.tried["cof"] if of["key"] == choice.chosen["cof"].key)
    assert chosen["accuracy"] == best["accuracy"]
    assert (rungs == 1) == all(of["questions"] == choice.questions for of in choice.tried["cof"])
    frozen = Chosen.read(tmp_path / "out" / CHOSEN)
    assert frozen.settings == choice.chosen["cof"].settings
    with pytest.raises(CofError, match="are among those on which the settings were chosen"):
        frozen.check(task.examples, "fake")
    again = study.choose(AnyEngine(), {"tiny": task}, tmp_path / "out", console=QUIET)
    assert again == choice


def test_nothing_is_chosen_after_the_test_was_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    validation, test = scenes(tmp_path / "v"), scenes(tmp_path / "t", "test", 1)
    sweep().run(AnyEngine(), {"tiny": validation}, {"tiny": test}, out, console=QUIET)
    (out / "choice.json").unlink()
    with pytest.raises(CofError, match="nothing can be chosen any more"):
        sweep().choose(AnyEngine(), {"tiny": validation}, out, console=QUIET)


def test_questions_without_answers_choose_nothing(tmp_path: Path) -> None:
    task = scenes(tmp_path / "data")
    with pytest.raises(CofError, match="among the kinds asked for; it has"):
        sweep(kinds=("smell",)).choose(AnyEngine(), {"t": task}, tmp_path / "o", console=QUIET)
    with pytest.raises(CofError, match="at least 1 rung"):
        sweep(rungs=0)


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
