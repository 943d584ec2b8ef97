"""The matrix of grounders and focuses: what each cell asks, what it costs, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import checkpoint
from rich.console import Console
from test_fitting import Moody, chance
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.crossing import ENCODING, PLAIN, Cell, Cost, Crossing, grounding, passes
from cof.eval.matrix import FineTask, Plan, cost, crossed, run_matrix
from cof.eval.report.matrix import write_matrix
from cof.eval.store import Store
from cof.focuses import FOCUSES
from cof.geometry.regions import Region
from cof.grounders import GROUNDERS
from cof.pipeline import CoF, Query
from cof.settings import Settings
from cof.tiny.benchmark import FINE, write_benchmark
from cof.types import Decoding, Request

SETTINGS = Settings(expand=1.0)
PLAN = Plan(
    sources=("prompt", "whole", "oracle", "random"),
    focuses=("attention", "crop"),
    scenes=1,
    validation_scenes=1,
    num_objects=(4, 8),
    strengths=(4.0, 16.0),
    expands=(1.0, 2.0),
    batch_size=5,
)


class Still(Moody):
    """Remembers nothing but how often it was asked, and may die."""

    left = 10**9

    def generate(self, requests: Any, decoding: Decoding) -> Any:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().generate(requests, decoding)

    def _text(self, request: Request) -> str:
        if request.prompt.endswith("\nWhere?") or request.highlight:
            return super()._text(request)
        # what a crop or a frame shows is another picture, and has another answer
        return str(int(10 * chance(request.prompt, request.image.size)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_benchmark(folder, "test", num_objects=(4, 8), scenes=1)
    return folder


def crossing(folder: Path, path: Path, engine: Any = None, **options: Any) -> Crossing:
    return Crossing(
        engine or Still(), FineTask(folder), path, SETTINGS, **{"batch_size": 5, **options}
    )


def study(out: Path, engine: Any = None, plan: Plan = PLAN) -> dict[str, Any]:
    return run_matrix(engine or Still(), SETTINGS, plan, out, console=Console(quiet=True))


def cells() -> list[Cell]:
    doses = {
        "attention": SETTINGS.changed(strength=4.0),
        "crop": SETTINGS.changed(focus="crop", expand=2.0),
    }
    return crossed(PLAN.sources, doses)


def test_only_questions_about_details(folder: Path) -> None:
    task = FineTask(folder)
    kinds = {task.get_example(i).kind for i in range(task.num_examples())}
    assert kinds == set(FINE)


def test_cells_that_are_the_plain_model_are_left_out() -> None:
    assert [cell.name for cell in cells()] == [
        "prompt x attention",
        "prompt x crop",
        "whole x attention",
        "oracle x attention",
        "oracle x crop",
        "random x attention",
        "random x crop",
    ]
    keys = [cell.key for cell in cells()]
    assert len(set(keys)) == len(keys)
    assert "lambda" not in keys[1]


def test_a_cell_is_the_pipeline(folder: Path, tmp_path: Path) -> None:
    """Also with a real engine: `test_real_cells_are_the_pipeline`."""
    run = crossing(folder, tmp_path / "a.jsonl")
    store = run.run(cells(), lambda _: None)
    for cell in cells():
        check_cell(cell, run, store, Still())


def check_cell(cell: Cell, run: Crossing, store: Store, engine: Any) -> None:
    examples = run.examples()
    given = cell.source in ("oracle", "random")
    name = "given" if given else cell.source
    cof = CoF(engine, cell.settings.changed(grounder=name))
    queries = []
    for example in examples:
        region = None
        if given:
            (box,) = store[grounding(cell.source), example.id].boxes
            assert (box == example.region) == (cell.source == "oracle")
            region = Region(boxes=(box,))
        queries.append(Query(example.image, example.prompt, region=region))
    answers = cof.batch(queries, decoding=run.decoding, batch_size=run.batch_size)
    for example, answer in zip(examples, answers, strict=True):
        record = store[cell.key, example.id]
        assert (record.text, record.boxes) == (answer.text, answer.boxes)


def test_real_cells_are_the_pipeline(folder: Path, tmp_path: Path) -> None:
    engine = TransformersEngine.from_pretrained(checkpoint("llava"))
    run = crossing(folder, tmp_path / "a.jsonl", engine, decoding=Decoding(max_new_tokens=2))
    chosen = [
        Cell("attention", SETTINGS.changed(strength=8.0)),
        Cell("attention", SETTINGS.changed(focus="overlay")),
        Cell("oracle", SETTINGS.changed(focus="crop")),
        Cell("whole", SETTINGS.changed(strength=8.0)),
    ]
    store = run.run(chosen, lambda _: None)
    for cell in chosen:
        check_cell(cell, run, store, engine)
    costs = run.costs()
    first = run.examples()[0].id
    # the prefix, then the question and at most one answer token more
    assert costs[ENCODING][first].passes == 1
    assert costs[PLAIN][first].passes in (1, 2)
    assert costs[grounding("whole")][first].passes == 0
    assert not costs[chosen[2].key][first].whole
    assert costs[chosen[1].key][first].whole  # stage 1 looked at it


def test_each_place_is_looked_for_once(folder: Path, tmp_path: Path) -> None:
    engine = Still()
    run = crossing(folder, tmp_path / "a.jsonl", engine)
    run.run(cells(), lambda _: None)
    asked = [r.prompt for requests, _ in engine.calls for r in requests if "Where?" in r.prompt]
    assert len(asked) == len(run.examples())


def test_goes_on_under_settings_that_json_writes_otherwise(tmp_path: Path) -> None:
    settings = SETTINGS.changed(layers=(0, 1))
    plan = replace(
        PLAN, focuses=("attention",), sources=("prompt",), strengths=(4.0,), num_objects=(4,)
    )
    quiet = Console(quiet=True)
    first = run_matrix(Still(), settings, plan, tmp_path, console=quiet)
    again = Still()
    assert run_matrix(again, settings, plan, tmp_path, console=quiet) == first
    assert again.calls == []


def test_a_detector_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    engine = Still()
    with pytest.raises(CofError, match="--detector"):
        study(tmp_path, engine, replace(PLAN, sources=("prompt", "detector")))
    assert engine.calls == []
    arguments = ["eval", "matrix", "--out", str(tmp_path), "--scenes", "1", "--limit", "1"]
    arguments += ["--grounders", "detector", "--focuses", "attention", "--detector", "nowhere/x"]
    result = CliRunner().invoke(app, [*arguments, "--model", str(checkpoint("llava"))])
    assert result.exit_code == 2
    assert "nowhere/x" in result.stderr


def test_a_torn_line_of_costs_is_dropped(folder: Path, tmp_path: Path) -> None:
    engine = Still()
    engine.left = 3
    run = crossing(folder, tmp_path / "a.jsonl", engine)
    with pytest.raises(KeyboardInterrupt):
        run.run(cells(), lambda _: None)
    with run.costs_path.open("ab") as file:
        file.write(b'["plain", "4-')
    run = crossing(folder, run.path)
    run.run(cells(), lambda _: None)
    batches = set(run.costs()[PLAIN])
    assert all(set(run.costs()[cell.key]) == batches for cell in cells())


def test_killed_at_any_moment_and_resumed(folder: Path, tmp_path: Path) -> None:
    whole = crossing(folder, tmp_path / "whole.jsonl")
    told: list[int] = []
    whole.run(cells(), told.append)
    assert sum(told) == whole.replies(cells())
    calls = len(whole.engine.calls)  # type: ignore[attr-defined]
    for death in range(0, calls, 4):
        path = tmp_path / f"{death}.jsonl"
        engine = Still()
        engine.left = death
        with pytest.raises(KeyboardInterrupt):
            crossing(folder, path, engine).run(cells(), lambda _: None)
        told = []
        crossing(folder, path).run(cells(), told.append)
        assert sum(told) == whole.replies(cells())
        assert path.read_bytes() == whole.path.read_bytes()
    done = Still()
    crossing(folder, whole.path, done).run(cells(), lambda _: None)
    assert done.calls == []


def test_cost_is_a_ratio_to_the_plain_answer() -> None:
    cell = Cell("oracle", SETTINGS)
    steps = {
        ENCODING: (1.0, 1),
        PLAIN: (1.0, 2),
        grounding("oracle"): (0.5, 0),
        cell.key: (3.5, 4),
    }
    costs = {key: {b: Cost(*of) for b in ("a", "b")} for key, of in steps.items()}
    row = cost(costs, cell, seed=0)
    assert (row["cost"], row["cost_low"], row["cost_high"], row["passes"]) == (2.5, 2.5, 2.5, 5)
    costs[cell.key]["b"] = Cost(1.5, None, whole=False)
    row = cost(costs, cell, seed=0)
    assert row["cost"] == pytest.approx((5 + 2) / 4)
    assert row["cost_low"] == 1.0 < row["cost"] < row["cost_high"] == 2.5
    assert cost(costs, None, seed=0)["cost"] == 1.0


def test_passes_are_counted_and_the_hook_is_gone() -> None:
    engine = TransformersEngine.from_pretrained(checkpoint("llava"))
    decoder = engine.model.get_decoder()
    before = len(decoder._forward_pre_hooks)
    with pytest.raises(RuntimeError), passes(engine):
        raise RuntimeError
    assert len(decoder._forward_pre_hooks) == before
    with passes(Still()) as count:  # type: ignore[arg-type]
        assert count() is None


def test_study(tmp_path: Path) -> None:
    results = study(tmp_path)
    write_matrix(results, tmp_path)
    table = results["cells"]
    assert set(table) == {PLAIN} | {cell.name for cell in cells()}
    assert {row["n"] for row in table.values()} == {results["questions"]}
    tried = results["doses"]["tried"]
    best = max(row["right"] for row in tried if row["focus"] == "attention")
    chosen = results["doses"]["chosen"]["attention"]
    assert {**chosen, "focus": "attention", "right": best} in tried
    text = (tmp_path / "table.md").read_text("utf-8")
    assert all(name in text for name in PLAN.sources)
    assert f"{table['oracle x crop']['accuracy']:.3f}" in text
    assert (tmp_path / "cost.png").stat().st_size > 1000
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["questions"] > 10
    again = study(tmp_path)
    assert again == results


def test_a_study_of_other_questions_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    with pytest.raises(CofError, match="another run"):
        study(tmp_path, plan=replace(PLAN, scenes=2))


@pytest.mark.parametrize(
    "wrong", [{"sources": ("given",)}, {"focuses": ("zoom",)}, {"focuses": ()}]
)
def test_unknown_names_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CofError, match="choose of"):
        Plan(**wrong)


def test_all_of_the_registries_are_in_it() -> None:
    assert set(FOCUSES) - set(Plan().focuses) == {"none", "contrast", "beside"}
    assert set(GROUNDERS) - set(Plan().sources) <= {"given", "none", "detector"}


def test_cof_eval_matrix_on_a_random_model(tmp_path: Path) -> None:
    command = ["eval", "matrix", "--model", str(checkpoint("llava")), "--scenes", "1"]
    chosen = ["--limit", "2", "--grounders", "whole, oracle", "--focuses", "attention"]
    result = CliRunner().invoke(app, [*command, *chosen, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "oracle" in result.output
    assert (tmp_path / "table.md").is_file()
