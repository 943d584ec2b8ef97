"""Settings chosen by halving, frozen, and measured: who is asked what, and when."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine
from rich.console import Console

from cof.engines.fake import FakeEngine
from cof.errors import CofError, CofWarning
from cof.eval.chosen import CHOSEN, Chosen
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.pope import POPE
from cof.eval.embedded import make_candidates, make_sweep
from cof.eval.halving import FEWEST, cumulative_sizes, rank
from cof.eval.methods import PLAIN, Method
from cof.eval.store import Store
from cof.eval.study import Study
from cof.settings import Settings, preset
from cof.types import Request

QUIET = Console(quiet=True)

# Halving


def test_equals_are_ranked_by_mildness() -> None:
    methods = make_candidates(
        Settings(), (8.0, 0.5, 1.9), (2.0, 1.0), ("text", "all"), ((0,), None), ((1,), None)
    )
    order = [method.settings for method in rank(methods, {m.key: 0.3 for m in methods})]
    assert [s.strength for s in order[::16]] == [1.9, 0.5, 8.0]
    assert [(s.expand, s.scope, s.layers, s.heads) for s in order[:5]] == [
        (1.0, "all", None, None),
        (1.0, "all", None, (1,)),
        (1.0, "all", (0,), None),
        (1.0, "all", (0,), (1,)),
        (1.0, "text", None, None),
    ]
    best = {method.key: float(method.settings.strength == 8.0) for method in methods}
    assert rank(methods, best)[0].settings == order[32]


@pytest.mark.parametrize("total", [1, 31, 32, 100, 416, 5000])
@pytest.mark.parametrize("rungs", [1, 2, 5])
def test_rungs_grow_and_end_with_all_questions(total: int, rungs: int) -> None:
    ends = cumulative_sizes(total, rungs, 1 / 3)
    assert ends[-1] == total
    assert ends == sorted(set(ends))
    assert len(ends) <= rungs
    assert all(end >= FEWEST for end in ends[:-1])


def test_candidates_are_all_combinations_of_what_matters() -> None:
    base = preset("paper-parity:llava-1.5-7b")
    methods = make_candidates(base, (2.0, 4.0), (1.0, 1.3), ("all", "text"), (None, (0,)))
    assert len({method.key for method in methods}) == len(methods) == 16
    assert {method.settings.cells for method in methods} == {"corners"}
    assert make_candidates(base) == [Method(base)]
    overlay = make_candidates(base.changed(focus="overlay"), (2.0, 4.0), (1.0, 1.3))
    assert [method.settings.expand for method in overlay] == [1.0, 1.3]


# The study


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
    """Always a box. Yes if lambda is 4 in the text's queries; else for a part of the questions."""
    if "bounding box" in request.prompt:
        return "[0.25, 0.25, 0.5, 0.5]"
    number = int(re.findall(r"\d+", request.prompt)[0])
    highlight = request.highlight
    if highlight is None:
        return "yes" if number % 4 == 0 else "no"
    good = highlight.strength == 4 and highlight.scope == "text"
    return "yes" if good or number % 4 < (2 if highlight.strength > 4 else 1) else "no"


class Dying(FakeEngine):
    """Killed after so many calls."""

    left = 10**9

    def generate(self, requests: Any, decoding: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().generate(requests, decoding)


CANDIDATES = make_candidates(Settings(), (2.0, 4.0, 8.0), (1.0, 1.3), ("all", "text"), (None, (0,)))
SWEEP = make_sweep(CANDIDATES, rungs=3, batch_size=7)


def choose(out: Path, task: Benchmark, engine: Any = None, study: Study = SWEEP) -> Any:
    engine = engine or FakeEngine(says)
    return study.choose(engine, {"pope": task}, out, console=QUIET)


@pytest.fixture
def validation(tmp_path: Path) -> POPE:
    return POPE(pope(tmp_path / "data"), part="validation", share=0.7)


def test_the_best_of_each_rung_go_on(tmp_path: Path, validation: POPE) -> None:
    engine, out = FakeEngine(says), tmp_path / "out"
    choice = choose(out, validation, engine)
    settings = choice.chosen["cof"].settings
    # of equals the mildest
    assert settings == Settings().changed(strength=4.0, scope="text", expand=1.0)
    n = len(validation.examples)
    sizes = cumulative_sizes(n, 3, 1 / 3)
    assert len(sizes) > 1
    tried = {row["key"]: row for row in choice.tried["cof"]}
    counts = sorted((row["questions"] for row in tried.values()), reverse=True)
    kept = len(CANDIDATES) // 3
    assert counts == [n] * kept + [sizes[0]] * (len(CANDIDATES) - kept)
    best = tried[choice.chosen["cof"].key]
    assert (best["accuracy"], best["questions"]) == (1.0, n)
    assert choice.plain == pytest.approx(
        sum(int(re.findall(r"\d+", e.prompt)[0]) % 4 == 0 for e in validation.examples) / n,
        abs=1e-6,
    )
    # every box is asked for once, and each rung's questions of the settings that are left alone
    asked = [request for requests, _ in engine.calls for request in requests]
    assert sum("bounding box" in request.prompt for request in asked) == n
    fresh = [end - start for start, end in zip([0, *sizes], sizes, strict=False)]
    assert len(asked) == 2 * n + sum(
        size * count for size, count in zip(fresh, (len(CANDIDATES), kept), strict=True)
    )
    stores = [Store(path) for path in sorted((out / "validation").glob("*-?.jsonl"))]
    ids = [store.ids for store in stores]
    assert sum(map(len, ids)) == n
    for store in stores:  # every setting has answered the same questions
        methods = {record.method for record in store.records()}
        assert len({frozenset(store.method(method)) for method in methods}) == 1


def test_the_choice_is_written(tmp_path: Path, validation: POPE) -> None:
    choice = choose(tmp_path / "out", validation)
    chosen = Chosen.read(tmp_path / "out" / CHOSEN)
    assert chosen.settings == choice.chosen["cof"].settings
    assert chosen.share == 0.7
    assert len(chosen.questions) == len(validation.examples)
    assert chosen.about["date"].count("-") == 2
    assert chosen.about["prompt_style"] == "llava"
    numbers = json.loads((tmp_path / "out" / "choice.json").read_text("utf-8"))
    assert numbers == json.loads(json.dumps(choice.as_dict()))


@pytest.mark.parametrize("calls", [0, 3, 40, 150])
def test_killed_and_resumed(tmp_path: Path, validation: POPE, calls: int) -> None:
    whole = choose(tmp_path / "whole", validation)
    dying = Dying(says)
    dying.left = calls
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path / "killed", validation, dying)
    assert not (tmp_path / "killed" / "choice.json").exists()
    assert choose(tmp_path / "killed", validation) == whole
    first, second = (tmp_path / name for name in ("whole", "killed"))
    for path in ("choice.json", "validation/pope-1.jsonl", "validation/pope-2.jsonl"):
        assert (first / path).read_bytes() == (second / path).read_bytes()


def test_a_choice_stays(tmp_path: Path, validation: POPE) -> None:
    out = tmp_path / "out"
    choose(out, validation)
    frozen = {name: (out / name).read_bytes() for name in ("choice.json", CHOSEN)}
    (out / CHOSEN).write_text("of another day", "utf-8")
    silent = FakeEngine({})
    choose(out, validation, silent)
    assert silent.calls == []
    assert (out / CHOSEN).read_text("utf-8") == "of another day"
    assert (out / "choice.json").read_bytes() == frozen["choice.json"]
    other = make_sweep(make_candidates(Settings(), (3.0,)), rungs=3, batch_size=7)
    with pytest.raises(CofError, match="holds another choice"):
        choose(out, validation, study=other)
    with pytest.raises(CofError, match=r"another run \(validation, seed differ"):
        choose(out, validation, study=replace(SWEEP, seed=1))


class Watched(POPE):
    """Test questions that must not be read before the choice is frozen."""

    def read(self, problems: list[str]) -> Any:
        assert (self.path / "choice.json").is_file(), "read too early"
        return POPE(self.path / "data").read(problems)


def test_a_choice_is_frozen_before_test_questions_are_read(tmp_path: Path) -> None:
    pope(tmp_path / "data", 6)
    validation = POPE(tmp_path / "data", part="validation", share=0.5)
    test = Watched(tmp_path, part="test", share=0.5)
    with pytest.raises(AssertionError, match="read too early"):
        _ = Watched(tmp_path).examples
    for tasks in ({"pope": test}, {"one": test, "two": test}):
        results = SWEEP.run(
            FakeEngine(says), {"pope": validation}, tasks, tmp_path, console=QUIET, more=7
        )
        assert results["choice"]["chosen"]["cof"] == results["methods"]["cof"]
        assert results["more"] == 7
        numbers = results["tasks"]["pope" if len(tasks) == 1 else "one"]
        assert numbers["groups"]["all"]["cof"]["value"] == 1
        (tmp_path / "choice.json").unlink()
        with pytest.raises(CofError, match=r"choice\.json is gone"):
            choose(tmp_path, validation)
        for path in (*tmp_path.glob("answers*"), *tmp_path.glob("*/answers*")):
            path.unlink()
        (tmp_path / "run.json").unlink()


def test_several_tasks_weigh_equally(tmp_path: Path) -> None:
    """Lambda 4 in the text is best on many questions, lambda 8 on each of a few."""

    def reply(request: Request) -> str:
        if "bounding box" not in request.prompt and "on it" in request.prompt:
            highlight = request.highlight
            return "yes" if highlight and highlight.strength == 8 else "no"
        return says(request)

    many = POPE(pope(tmp_path / "many", 4))
    few = POPE(pope(tmp_path / "few", 1))
    for path in (tmp_path / "few").glob("*.json"):
        path.write_text(path.read_text("utf-8").replace("Is it", "Is on it"), "utf-8")
    study = make_sweep(make_candidates(Settings(), (4.0, 8.0), (), ("text",)), rungs=2)
    tasks: Mapping[str, Benchmark] = {"many": many, "few": few}
    choice = study.choose(FakeEngine(reply), tasks, tmp_path / "out", console=QUIET)
    assert choice.chosen["cof"].settings.strength == 8
    accuracies = [row["accuracy"] for row in choice.tried["cof"]]
    assert accuracies == [0.5, 0.75]  # (1 + 0) / 2, (1/2 + 1) / 2
    alone = study.choose(FakeEngine(reply), {"many": many}, tmp_path / "alone", console=QUIET)
    assert alone.chosen["cof"].settings.strength == 4


def test_later_rounds_know_the_choice_and_ask_nothing_twice(tmp_path: Path) -> None:
    base = Settings(expand=1.0)
    limits = (0.2, 0.5, 0.8)
    study = Study(
        "Thresholds",
        [
            lambda chosen: {"cof": make_candidates(base, (2.0, 4.0))},
            lambda chosen: {
                "unsure": [
                    Method(chosen["cof"].settings.changed(max_plain_confidence=limit))
                    for limit in limits
                ]
            },
        ],
        lambda chosen: {"plain": PLAIN, **chosen},
        batch_size=7,
    )
    engine, task = AnyEngine(), POPE(pope(tmp_path / "data", 3))
    choice = study.choose(engine, {"pope": task}, tmp_path / "out", console=QUIET)
    n = len(task.examples)
    assert len(engine.trace) == n + n + 2 * n  # plain, boxes, and two lambdas
    assert choice.chosen["unsure"].without_threshold == choice.chosen["cof"]
    assert [row["questions"] for row in choice.tried["unsure"]] == [n] * 3


def test_what_cannot_be_chosen_by(tmp_path: Path, validation: POPE) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in formats.mmbench_rows()]
    task = MMBench(formats.tsv(tmp_path / "test.tsv", rows))
    with pytest.raises(CofError, match="has no answers to choose settings by"):
        choose(tmp_path / "out", task)
    with pytest.raises(CofError, match="among the kinds asked for; it has random, popular"):
        choose(tmp_path / "out", validation, study=replace(SWEEP, kinds=("smell",)))
    for wrong in ({"rungs": 0}, {"keep": 1.0}, {"keep": 0.0}):
        with pytest.raises(CofError, match="at least 1 rung"):
            replace(SWEEP, **wrong)


# The file of a choice


def make_choice(task: Any, **settings: Any) -> Chosen:
    share = task.share if task.part == "validation" else 1.0
    return Chosen.make(task.examples, Settings(**settings), share=share, about={"model": "m"})


def test_a_choice_survives_its_file(tmp_path: Path, validation: POPE) -> None:
    choice = make_choice(validation, strength=7.0, layers=(0, 1))
    path = tmp_path / "out" / CHOSEN
    choice.write(path)
    assert Chosen.read(path) == choice
    assert json.loads(path.read_text("utf-8"))["settings"]["strength"] == 7


def test_questions_that_chose_are_not_measured(tmp_path: Path, validation: POPE) -> None:
    n, folder = len(validation.examples), validation.path
    choice = make_choice(validation)
    with pytest.raises(CofError, match=rf"{n} of these questions .* add --part test"):
        choice.check(POPE(folder).examples, "m")
    # whatever their prompt style
    with pytest.raises(CofError, match=rf"{n} of these questions"):
        choice.check(POPE(folder, prompt_style="tiny").examples, "m")
    choice.check(POPE(folder, part="test", share=choice.share).examples, "m")
    with pytest.raises(CofError, match="measure on other data"):
        make_choice(POPE(folder)).check(validation.examples, "m")
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
        (lambda text: text.replace('"strength"', '"force"'), "There is no setting"),
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
        Chosen.read(path)
    with pytest.raises(CofError, match="`cof sweep` writes it"):
        Chosen.read(tmp_path / "none.json")
