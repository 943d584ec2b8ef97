"""Settings chosen on validation questions: who is asked what, and when; the file of a choice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine, FakeEngine
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.errors import CofError, CofWarning
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.pope import POPE
from cof.eval.examples import Embedded
from cof.eval.methods import Method
from cof.eval.store import Store
from cof.eval.sweep import CHOSEN, Choice, choose, fingerprint, make_candidates, rank
from cof.presets import preset
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark
from cof.types import Request

QUIET = Console(quiet=True)


def test_equals_are_ranked_by_mildness() -> None:
    methods = make_candidates(
        Settings(),
        strength=(8.0, 0.5, 1.9),
        expand=(2.0, 1.0),
        scope=("text", "all"),
        layers=((0,), None),
    )
    order = [method.settings for method in rank(methods, {m.key: 0.3 for m in methods})]
    assert [s.option("strength") for s in order[::8]] == [1.9, 0.5, 8.0]
    assert [(s.expand, s.option("scope"), s.option("layers")) for s in order[:3]] == [
        (1.0, "all", None),
        (1.0, "all", (0,)),
        (1.0, "text", None),
    ]
    best = {method.key: float(method.settings.option("strength") == 8.0) for method in methods}
    assert rank(methods, best)[0].settings == order[16]


def test_candidates_are_all_combinations_of_what_matters() -> None:
    base = preset("paper-parity:llava-1.5-7b")
    both: dict[str, Any] = {"strength": (2.0, 4.0), "expand": (1.0, 1.3)}
    methods = make_candidates(base, **both, scope=("all", "text"), layers=(None, (0,)))
    assert len({method.key for method in methods}) == len(methods) == 16
    assert all(method.settings.released for method in methods)
    assert make_candidates(base) == [Method(base)]
    assert len(make_candidates(base, expand=(1.0, 1.0))) == 1
    with pytest.raises(CofError, match="strength"):
        make_candidates(base.changed(focus="overlay"), **both)


def pope(folder: Path, images: int = 16) -> Path:
    """Three kinds of three questions about each image; the answer is always yes."""
    for number in range(images):
        formats.save(folder / "val2014" / f"{number}.png", number)
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": n, "image": f"{n // 3}.png", "text": f"Is it {n}?", "label": "yes"}
            for n in range(3 * images)
        ]
        formats.json_lines(folder / f"coco_pope_{kind}.json", lines)
    return folder


def says(request: Request) -> str:
    """Always a box. Yes if lambda is 4 in the text's queries; else for a part of the questions.
    On questions with "on it", yes if lambda is 8."""
    if "bounding box" in request.prompt:
        return "[0.25, 0.25, 0.5, 0.5]"
    number = int(re.findall(r"\d+", request.prompt)[0])
    highlight = request.highlight
    if "on it" in request.prompt:
        return "yes" if highlight and highlight.strength == 8 else "no"
    if highlight is None:
        return "yes" if number % 4 == 0 else "no"
    good = highlight.strength == 4 and highlight.scope == "text"
    return "yes" if good or number % 4 < (2 if highlight.strength > 4 else 1) else "no"


CANDIDATES = make_candidates(
    Settings(),
    strength=(2.0, 4.0, 8.0),
    expand=(1.0, 1.3),
    scope=("all", "text"),
    layers=(None, (0,)),
)


def chosen_of(
    out: Path, *tasks: Benchmark, engine: Any = None, methods: Any = CANDIDATES, **how: Any
) -> Any:
    return choose(
        engine or FakeEngine(says),
        {f"{task.name}-{number}": task for number, task in enumerate(tasks)},
        methods,
        out / CHOSEN,
        console=QUIET,
        **{"batch_size": 7, **how},
    )


@pytest.fixture
def validation(tmp_path: Path) -> POPE:
    return POPE(pope(tmp_path / "data"), part="validation", share=0.7)


def test_the_best_is_chosen_frozen_and_written(tmp_path: Path, validation: POPE) -> None:
    engine, out = FakeEngine(says), tmp_path / "out"
    choice = chosen_of(out, validation, engine=engine)
    settings, n = choice.settings, len(validation.examples)
    # of equals the mildest
    assert settings == Settings().changed(strength=4.0, scope="text", expand=1.0)
    assert len(choice.questions) == n
    assert choice.tried[choice.key] == 1.0
    right = sum(int(re.findall(r"\d+", e.prompt)[0]) % 4 == 0 for e in validation.examples)
    assert choice.plain == pytest.approx(right / n, abs=1e-6)
    # every box is asked for once, and every setting answers every question
    asked = [request for requests, _ in engine.calls for request in requests]
    assert sum("bounding box" in request.prompt for request in asked) == n
    assert len(asked) == n * (2 + len(CANDIDATES))
    (store,) = (Store(path) for path in (out / "validation").glob("answers.jsonl"))
    assert len({id for _, id in store}) == n
    chosen = Choice.read(out / CHOSEN)
    assert (chosen.settings, chosen.share, len(chosen.questions)) == (settings, 0.7, n)
    assert chosen.about["date"].count("-") == 2
    assert chosen.about["prompt_style"] == "llava"
    numbers = json.loads((out / CHOSEN).read_text("utf-8"))
    assert (numbers["chosen"], numbers["tried"]) == (choice.key, choice.tried)


@pytest.mark.parametrize("calls", [3, 150])
def test_killed_and_resumed(tmp_path: Path, validation: POPE, calls: int) -> None:
    whole = chosen_of(tmp_path / "whole", validation, engine=AnyEngine())
    with pytest.raises(KeyboardInterrupt):
        chosen_of(tmp_path / "killed", validation, engine=AnyEngine(dies_after=calls))
    assert not (tmp_path / "killed" / CHOSEN).exists()
    assert chosen_of(tmp_path / "killed", validation, engine=AnyEngine()) == whole
    for path in (CHOSEN, "validation/answers.jsonl"):
        first, second = (tmp_path / name / path for name in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()


def test_a_choice_stays(tmp_path: Path, validation: POPE) -> None:
    out = tmp_path / "out"
    chosen_of(out, validation)
    frozen = (out / CHOSEN).read_text("utf-8").replace('"date": "2', '"date": "1')
    (out / CHOSEN).write_text(frozen, "utf-8")
    silent = FakeEngine({})
    chosen_of(out, validation, engine=silent)
    assert silent.calls == []
    assert (out / CHOSEN).read_text("utf-8") == frozen  # of another day
    with pytest.raises(CofError, match="holds another choice"):
        chosen_of(out, validation, methods=make_candidates(Settings(), strength=(3.0,)))
    with pytest.raises(CofError, match=r"another run \(batch_size differ"):
        chosen_of(out, validation, batch_size=8)


def test_several_tasks_weigh_equally(tmp_path: Path) -> None:
    """Lambda 4 in the text is best on many questions, lambda 8 on each of a few."""
    many = POPE(pope(tmp_path / "many", 4))
    few = POPE(pope(tmp_path / "few", 1))
    for path in (tmp_path / "few").glob("*.json"):
        path.write_text(path.read_text("utf-8").replace("Is it", "Is on it"), "utf-8")
    methods = make_candidates(Settings(scope="text"), strength=(4.0, 8.0))
    choice = chosen_of(tmp_path / "out", many, few, methods=methods)
    assert choice.settings.option("strength") == 8
    # (1 + 0) / 2, (1/2 + 1) / 2
    assert list(choice.tried.values()) == [0.5, 0.75]
    alone = chosen_of(tmp_path / "alone", many, methods=methods)
    assert alone.settings.option("strength") == 4


def test_choices_in_one_folder_ask_nothing_twice(tmp_path: Path) -> None:
    engine, tasks = AnyEngine(), {"pope": POPE(pope(tmp_path / "data", 3))}
    strengths = make_candidates(Settings(expand=1.0), strength=(2.0, 4.0))
    first = choose(engine, tasks, strengths, tmp_path / "cof.json", console=QUIET)
    limits = make_candidates(first.settings, max_plain_confidence=(0.2, 0.5, 0.8))
    second = choose(engine, tasks, limits, tmp_path / "unsure.json", console=QUIET)
    # plain, boxes, and two lambdas
    assert len(engine.trace) == 4 * len(tasks["pope"].examples)
    assert Method(second.settings).without_threshold.settings == first.settings
    assert len(second.tried) == 3


def test_what_cannot_be_chosen_by(tmp_path: Path, validation: POPE) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in formats.mmbench_rows()]
    with pytest.raises(CofError, match="has no answers to choose settings by"):
        chosen_of(tmp_path / "out", MMBench(formats.tsv(tmp_path / "test.tsv", rows)))
    with pytest.raises(
        CofError, match=r"leaves no questions in the validation part \(share 1e-09\)"
    ):
        chosen_of(tmp_path / "out", replace(validation, share=1e-9))


# The file of a choice


def make_choice(task: Benchmark, **settings: Any) -> Choice:
    share = task.share if task.part == "validation" else 1.0
    seen = frozenset(map(fingerprint, task.examples))
    return Choice(Settings(**settings), seen, share, tried={"k": 0.5}, about={"model": "m"})


def test_questions_that_chose_are_not_measured(tmp_path: Path, validation: POPE) -> None:
    n, folder = len(validation.examples), validation.path
    choice = make_choice(validation, strength=7.0, layers=(0, 1))
    choice.write(tmp_path / CHOSEN)
    read = Choice.read(tmp_path / CHOSEN)
    assert (read.settings, read.questions) == (choice.settings, choice.questions)
    # whatever their prompt style
    for task in (POPE(folder), POPE(folder, prompt_style="tiny")):
        assert choice.seen(task.examples) == n
        with pytest.raises(CofError, match=rf"{n} of these questions .* measure on other data"):
            choice.check(task.examples, "m")
    choice.check(POPE(folder, part="test", share=choice.share).examples, "m")
    others = [replace(e, image=Embedded("other", lambda: b"pixels")) for e in validation.examples]
    choice.check(others, "m")
    with pytest.warns(CofWarning, match="chosen with m, and this is n"):
        choice.check([], "owner/n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "is no choice"),
        (lambda text: "[]", "is no choice"),
        (lambda text: "{}", "is no choice"),
        (lambda text: text.replace('"questions": [', '"questions": 7, "x": ['), "is no choice"),
        (lambda text: text.replace('"about": {', '"about": 7, "x": {'), "is no choice"),
        (lambda text: text.replace('"strength"', '"force"'), "no option 'force'"),
        (lambda text: text.replace('"strength": 2.0', '"strength": -1'), "strength .* must be"),
    ],
)
def test_a_damaged_choice_is_refused(
    tmp_path: Path, validation: POPE, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / CHOSEN
    make_choice(validation).write(path)
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(CofError, match=message):
        Choice.read(path)
    with pytest.raises(CofError, match="`cof sweep` and `cof calibrate` write"):
        Choice.read(tmp_path / "none.json")


def test_sweep_then_eval_with_its_settings(tmp_path: Path) -> None:
    """`--settings` measures on the questions that did not choose, with their prompt style."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_benchmark(data, "test", num_objects=(4,), scenes=12)

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [*map(str, arguments)])

    grid = "--try strength=4 --try expand=1 --try scope=text --try layers=null"
    options = f"--model tiny-early --prompt-style llava --share 0.5 --limit 6 {grid}"
    sweep = ("sweep", "scenes", data, "--out", out, *options.split())
    swept = run(*sweep, "--then-test")
    assert swept.exit_code == 0, swept.output
    assert "Chosen of 1: prompt x attention" in swept.output
    assert re.search(r"on the \d+ questions that chose \(test-04-\d+-\S+ to test-04-", swept.output)
    common = ("eval", "scenes", data, "--model", "tiny-early", "--settings", out / CHOSEN)
    tested = run(*common, "--limit", 4, "--out", tmp_path / "b")
    assert tested.exit_code == 0, tested.output
    results = json.loads((tmp_path / "b" / "results.json").read_text("utf-8"))
    assert results["about"]["prompt_style"] == "llava"
    assert results["settings"]["cof"]["strength"] == 4.0
    chosen_on = {id for _, id in Store(out / "validation" / "answers.jsonl")}
    for folder in (out / "test", tmp_path / "b"):
        report = (folder / "table.md").read_text("utf-8")
        assert re.search(r"Chosen on \d+ questions \(scenes test-04-\d+-\S+ to test-04-", report)
        assert not chosen_on & {id for _, id in Store(folder / "answers.jsonl")}
    refused = run(*sweep, "--then-test", "--share", 1)
    assert (refused.exit_code, "no questions in the " in refused.stderr) == (2, True)
    both = run(*common, "--strength", "3", "--out", tmp_path / "c")
    assert both.exit_code == 2
    assert "leave --preset and other options out" in both.stderr
