"""Settings chosen by halving, frozen, and used: who is asked what, resuming, the command."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import formats
import pytest
from models import checkpoint
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.chosen import Chosen
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.pope import POPE
from cof.eval.data.scenes import Scenes
from cof.eval.halving import best_of, cumulative, cut, halve, ranked
from cof.eval.methods import PLAIN, Method
from cof.eval.report.sweep import markdown, write_report
from cof.eval.store import Record, Store
from cof.eval.sweep import CHOSEN, Grid, Sweep, halves, shuffled
from cof.eval.tasks import Example
from cof.settings import Settings, preset
from cof.types import Request

QUIET = Console(quiet=True)

# Halving


def records(method: Method, right: Sequence[bool], first: int) -> dict[str, Record]:
    return {
        f"{first + n}": Record(f"{first + n}", method.key, "", "x", r) for n, r in enumerate(right)
    }


class Asked:
    """Answers of which each method's share is right, and who was asked."""

    def __init__(self, share: Mapping[str, float], sizes: Sequence[int]) -> None:
        self.share, self.sizes = share, sizes
        self.asked: list[tuple[int, list[str]]] = []

    def __call__(self, number: int, methods: Sequence[Method]) -> dict[str, dict[str, Record]]:
        self.asked.append((number, [method.key for method in methods]))
        size, first = self.sizes[number], sum(self.sizes[:number])
        return {
            method.key: records(
                method, [n < self.share[method.key] * size for n in range(size)], first
            )
            for method in methods
        }


def test_the_best_of_each_rung_go_on() -> None:
    methods = [Method("cof", float(n)) for n in range(2, 11)]
    share = {method.key: 0.125 * place for place, method in enumerate(methods)}
    ask = Asked(share, [40, 60, 100])
    rungs = halve(methods, 3, 1 / 3, ask)
    assert [len(keys) for _, keys in ask.asked] == [9, 3, 1]
    assert [rung.questions for rung in rungs] == [40, 100, 200]
    assert [method.strength for method in rungs[0].kept] == [10.0, 9.0, 8.0]
    assert rungs[-1].best == (methods[-1],)
    assert rungs[-1].right == {methods[-1].key: 200}
    assert rungs[1].right[methods[-3].key] == 30 + 45


def test_one_rung_asks_everybody_everything() -> None:
    methods = Grid().methods(Settings())
    ask = Asked({method.key: 0.5 for method in methods}, [10])
    (rung,) = halve(methods, 1, 0.5, ask)
    assert len(ask.asked[0][1]) == len(methods) == 6 * 3 * 2
    # all equal: lambda nearest to 1, alpha nearest to 1, the paper's scope
    best = rung.best[0]
    assert (best.strength, best.expand, best.scope) == (1.5, 1.0, "all")
    assert set(rung.best) == set(rung.kept) == set(methods)


def test_equals_are_ranked_by_mildness() -> None:
    base = Settings()
    methods = Grid((8.0, 0.5, 1.9), (2.0, 1.0), ("text", "all"), ((0,), None)).methods(base)
    order = ranked(methods, {method.key: 3 for method in methods})
    assert [m.strength for m in order[::8]] == [1.9, 0.5, 8.0]
    assert [(m.expand, m.scope, m.base.layers) for m in order[:8]] == [
        (1.0, "all", None),
        (1.0, "all", (0,)),
        (1.0, "text", None),
        (1.0, "text", (0,)),
        (2.0, "all", None),
        (2.0, "all", (0,)),
        (2.0, "text", None),
        (2.0, "text", (0,)),
    ]
    said = {m.key: records(m, [m.strength == 8.0], 0) for m in methods}
    assert best_of(methods, said).strength == 8.0


@pytest.mark.parametrize("total", [1, 31, 32, 100, 416, 5000])
@pytest.mark.parametrize("rungs", [1, 2, 5])
def test_rungs_cover_the_questions_once(total: int, rungs: int) -> None:
    ends = cumulative(total, rungs, 1 / 3)
    assert ends[-1] == total
    assert ends == sorted(set(ends))
    assert len(ends) <= rungs
    assert all(end >= 32 for end in ends[:-1])
    parts = cut(range(total), ends)
    assert [n for part in parts for n in part] == list(range(total))


def test_the_order_of_the_questions_depends_on_ids_and_seed() -> None:
    examples = [Example(f"{n}", Path("a"), "?", "7") for n in range(30)]
    order = shuffled(examples, 0)
    assert order == shuffled(examples[::-1], 0) != examples
    assert order != shuffled(examples, 1)
    assert sorted(e.id for e in order) == sorted(e.id for e in examples)


def test_layers_in_halves() -> None:
    assert halves(6) == (None, (0, 1, 2), (3, 4, 5))


# The sweep


def data(folder: Path, pictures: int = 16) -> Path:
    """POPE: three kinds of three questions about each picture, the answer is always yes."""
    for number in range(pictures):
        formats.save(folder / "val2014" / f"{number}.png", number)
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": n, "image": f"{n // 3}.png", "text": f"Is it {n}?", "label": "yes"}
            for n in range(3 * pictures)
        ]
        formats.json_lines(folder / f"coco_pope_{kind}.json", lines)
    return folder


def says(request: Request) -> str:
    """Always a box. Yes if lambda is 4 in the text's queries; else for a part of the questions."""
    if "bounding box" in request.prompt:
        return "[0.25, 0.25, 0.5, 0.5]"
    number = int(re.findall(r"\d+", request.prompt)[0])
    light = request.highlight
    if light is None:
        return "yes" if number % 4 == 0 else "no"
    good = light.strength == 4 and light.scope == "text"
    return "yes" if good or number % 4 < (2 if light.strength > 4 else 1) else "no"


class Dying(FakeEngine):
    """Killed after so many calls."""

    left = 10**9

    def generate(self, requests: Any, decoding: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().generate(requests, decoding)


GRID = Grid((2.0, 4.0, 8.0), (1.0, 1.3), ("all", "text"), (None, (0,)))
SWEEP = Sweep(Settings(), GRID, batch_size=7)


def sweep(out: Path, task: Benchmark, engine: Any = None, plan: Sweep = SWEEP) -> Chosen:
    return plan.run(engine or FakeEngine(says), task, out, console=QUIET)


def validation(tmp_path: Path, share: float = 0.7) -> POPE:
    return POPE(data(tmp_path / "data"), part="validation", share=share)


def test_the_choice(tmp_path: Path) -> None:
    task = validation(tmp_path)
    n = task.num_examples()
    engine = FakeEngine(says)
    chosen = sweep(tmp_path / "out", task, engine)
    settings = chosen.settings
    assert (settings.strength, settings.scope) == (4.0, "text")
    assert (settings.expand, settings.layers) == (1.0, None)  # of equals the mildest
    assert settings == Settings().changed(strength=4.0, scope="text", expand=1.0)
    assert chosen.about["accuracy"] == 1 > chosen.about["plain_accuracy"] > 0.1
    assert chosen.share == 0.7
    assert len(chosen.questions) == n
    assert chosen == Chosen.read(tmp_path / "out" / CHOSEN)

    # every box is asked for once, and each rung's questions of the settings that are left alone
    asked = [r for call, _ in engine.calls for r in call]
    boxes = Counter((id(r.image), r.prompt) for r in asked if "bounding box" in r.prompt)
    assert sum(boxes.values()) == n
    numbers = json.loads((tmp_path / "out" / "sweep.json").read_text("utf-8"))
    rungs = numbers["rungs"]
    assert [rung["questions"] for rung in rungs] == cumulative(n, 3, 1 / 3)
    assert [len(rung["right"]) for rung in rungs][:2] == [24, 8]
    sizes = [rung["questions"] for rung in rungs]
    fresh = [end - start for start, end in zip([0, *sizes], sizes, strict=False)]
    replies = sum(size * (2 + len(rung["right"])) for size, rung in zip(fresh, rungs, strict=True))
    assert len(asked) == replies
    for rung in rungs:  # as if everything were counted from the beginning
        chosen_right = rung["right"].get(numbers["chosen"])
        assert chosen_right == rung["questions"]


def test_rungs_are_paired(tmp_path: Path) -> None:
    task = validation(tmp_path)
    sweep(tmp_path / "out", task)
    stores = [Store(path) for path in sorted((tmp_path / "out" / "work").glob("rung-?.jsonl"))]
    ids: set[str] = set()
    for store in stores:
        methods = {record.method for record in store.records()}
        assert len({frozenset(store.method(method)) for method in methods}) == 1
        assert ids.isdisjoint(store.ids)
        ids |= store.ids
    assert ids == {example.id for example in task.examples}


@pytest.mark.parametrize("calls", [0, 3, 40, 150])
def test_killed_and_resumed(tmp_path: Path, calls: int) -> None:
    task = validation(tmp_path)
    whole = sweep(tmp_path / "whole", task)
    dying = Dying(says)
    dying.left = calls
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "killed", task, dying)
    assert not (tmp_path / "killed" / CHOSEN).exists()
    assert sweep(tmp_path / "killed", task) == whole
    first, second = (tmp_path / name for name in ("whole", "killed"))
    for path in ["sweep.json", *(f"work/rung-{n}.jsonl" for n in (1, 2))]:
        assert (first / path).read_bytes() == (second / path).read_bytes()


def test_a_choice_stays(tmp_path: Path) -> None:
    task = validation(tmp_path)
    out = tmp_path / "out"
    sweep(out, task)
    frozen = (out / CHOSEN).read_text("utf-8")
    silent = FakeEngine({})
    sweep(out, task, silent)
    assert silent.calls == []
    assert (out / CHOSEN).read_text("utf-8") == frozen
    other = Sweep(Settings(), Grid((3.0,)), batch_size=7)
    with pytest.raises(CofError, match=r"another run \(grid differ"):
        sweep(out, task, plan=other)


def test_nothing_is_chosen_after_the_test_part_was_read(tmp_path: Path) -> None:
    task = validation(tmp_path)
    out = tmp_path / "out"
    sweep(out, task)
    (out / "test").mkdir()
    sweep(out, task)
    (out / CHOSEN).unlink()
    with pytest.raises(CofError, match=r"chosen\.json is gone"):
        sweep(out, task)


def test_everything_else_of_the_settings_is_kept(tmp_path: Path) -> None:
    base = preset("paper-parity:llava-1.5-7b")
    methods = GRID.methods(base)
    assert {method.base.cells for method in methods} == {"corners"}
    assert len({method.key for method in methods}) == len(methods) == 24
    plan = Sweep(base, GRID, batch_size=7)
    chosen = sweep(tmp_path / "out", validation(tmp_path), plan=plan)
    assert chosen.settings == base.changed(strength=4.0, scope="text", expand=1.0)


def test_what_cannot_be_swept(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in formats.mmbench_rows()]
    task = MMBench(formats.tsv(tmp_path / "test.tsv", rows))
    with pytest.raises(CofError, match="has no answers to choose settings by"):
        sweep(tmp_path / "out", task)
    for wrong in ({"rungs": 0}, {"keep": 1.0}, {"keep": 0.0}):
        with pytest.raises(CofError, match="at least 1 rung"):
            Sweep(Settings(), **wrong)  # type: ignore[arg-type]


def test_the_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(out, validation(tmp_path))
    write_report(out)
    text = (out / "sweep.md").read_text("utf-8")
    assert "Chosen: lambda 4, alpha 1, scope text, layers all, heads all; accuracy 1.000" in text
    assert "No setting answers more" not in text
    assert text.count("\n| 2 |") == 8 + 1  # lambda 2, and the second rung
    assert str(tmp_path) not in text
    with Image.open(out / "sweep.png") as image:
        assert image.width > 1000
    numbers = json.loads((out / "sweep.json").read_text("utf-8"))
    for rung in numbers["rungs"]:
        rung["plain"] = rung["questions"]
    assert "**No setting answers more of them than the plain model.**" in markdown(numbers)


# The commands


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def small() -> tuple[object, ...]:
    return (
        *("--model", checkpoint("llava"), "--strengths", "2,30", "--expands", "1", "--batch-size"),
        *(16, "--max-new-tokens", 2, "--layers", "all", "--layers", "upper", "--layers", "0,2"),
    )


KINDS = "digit,color,position"


def test_sweep_of_the_embedded_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("sweep", *small(), "--out", out, "--scenes", 1, "--limit", 8, "--kinds", KINDS)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "Frozen in" in result.output
    assert "No setting answers more of these questions than the plain model." in result.output
    numbers = json.loads((out / "sweep.json").read_text("utf-8"))
    layers = {tuple(row["layers"] or ()) for row in numbers["settings"].values()}
    assert layers == {(), (1, 2), (0, 2)}
    assert len(numbers["settings"]) == 2 * 2 * 3
    examples = Scenes(out / "work" / "validation", limit=8).examples
    asked = [example.kind in KINDS.split(",") for example in examples]
    assert 0 < numbers["rungs"][-1]["questions"] == sum(asked) < len(asked)
    assert {path.name for path in out.iterdir()} == {
        "chosen.json",
        "sweep.json",
        "sweep.md",
        "sweep.png",
        "work",
    }
    tested = invoke(*arguments, "--then-test")
    assert tested.exit_code == 0, tested.output
    results = json.loads((out / "test" / "results.json").read_text("utf-8"))
    assert results["about"]["benchmark"] == "scenes"
    key = Method.of("cof", Chosen.read(out / "chosen.json").settings).key
    assert results["methods"]["cof"] == key
    # those scenes are no news
    refused = invoke("eval", "scenes", out / "work" / "validation", "--settings", out / CHOSEN)
    assert refused.exit_code == 2
    assert f"{sum(asked)} of these questions are among those" in refused.stderr
    nobody = invoke(*arguments[:-1], "smell", "--out", tmp_path / "other")
    assert nobody.exit_code == 2
    assert "among the kinds asked for; it has digit" in nobody.stderr


def test_sweep_then_eval_of_data_in_parts(tmp_path: Path) -> None:
    folder, out = data(tmp_path / "data", 3), tmp_path / "out"
    result = invoke("sweep", "pope", folder, *small(), "--out", out, "--share", 0.5)
    assert result.exit_code == 0, result.output
    choice = Chosen.read(out / CHOSEN)
    usual = ("eval", "pope", folder, "--model", checkpoint("llava"), "--max-new-tokens", 2)
    refused = invoke(*usual, "--settings", out / CHOSEN)
    assert refused.exit_code == 2
    assert "add --part test" in refused.stderr
    early = invoke(*usual, "--part", "test")
    assert early.exit_code == 2
    assert "run `cof sweep pope`" in early.stderr
    both = invoke(*usual, "--settings", out / CHOSEN, "--strength", 3)
    assert both.exit_code == 2
    assert "--settings are chosen already" in both.stderr
    tested = invoke(*usual, "--settings", out / CHOSEN, "--part", "test", "--out", tmp_path / "t")
    assert tested.exit_code == 0, tested.output
    results = json.loads((tmp_path / "t" / "results.json").read_text("utf-8"))
    assert results["questions"] == 27 - len(choice.questions)
    assert results["methods"]["cof"] == Method.of("cof", choice.settings).key
    assert (tmp_path / "t" / CHOSEN).read_bytes() == (out / CHOSEN).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "There is no benchmark 'nothing'"),
        (("pope",), "Name the data of pope"),
        (("tiny", "somewhere"), "leave PATH out"),
        (("pope", "{data}", "--share", "1", "--then-test"), "nothing is left to test on"),
        (("pope", "{data}", "--strengths", "2,many"), "--strengths takes numbers"),
        (("pope", "{data}", "--scopes", "some"), "scope must be one of"),
        (("pope", "{data}", "--layers", "first"), "--layers takes numbers"),
        (("refcoco", "{boxes}", "--share", "1"), "has no answers"),
        (("mme", "hf://mme"), "is no data set's address"),
    ],
)
def test_refusals(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    places = {
        "data": data(tmp_path / "data", 4),
        "boxes": formats.refcoco(tmp_path / "refcoco"),
    }
    shown = [argument.format(**places) for argument in arguments]
    result = invoke("sweep", *shown, "--model", checkpoint("llava"), "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    ["--strengths x", "--expands x", "--layers x", "--heads 3-1", "--keep 2", "--strengths 0"],
)
def test_options_are_refused_before_a_model_is_loaded(tmp_path: Path, option: str) -> None:
    arguments = ("pope", data(tmp_path / "data", 4), *option.split(), "--model", tmp_path / "none")
    result = invoke("sweep", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "none" not in result.stderr


def test_plain_is_no_candidate() -> None:
    assert PLAIN.key not in {method.key for method in Grid().methods(Settings())}
