"""The benchmark counts what it says it counts, and loses nothing when it is stopped."""

from __future__ import annotations

import json
import mmap
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine

from cof import CoF
from lab.bench import calibrate, gpu
from lab.bench.__main__ import main
from lab.bench.endurance import endure
from lab.bench.limits import Limits, Pass, Sizes, operations, traffic
from lab.bench.meter import Cost, Meter
from lab.bench.records import Records
from lab.bench.report import growth, report
from lab.bench.setups import Setup, make_plan, ways_of
from lab.bench.shapes import engine_of
from lab.bench.ways import WAYS

MACHINE = dict.fromkeys(["device", "processor", "threads", "dtype", "torch", "transformers"], "x")
SMOKE = "--shape smoke --image-tokens 64 --device cpu --seconds 0 --warm-up 0 --least 2 "


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "READ", {"cpu": 1 << 20})
    monkeypatch.setattr(calibrate, "SQUARE", {"cpu": 64})


def ran(out: Path, arguments: str) -> dict[str, Any]:
    main([*shlex.split(SMOKE + arguments), "--out", str(out)])
    (file,) = out.glob("*/bench.json")
    return json.loads(file.read_text())


ONE = Setup("smoke", 64, batch=2)
THREE = Setup("smoke", 64, questions=3)
Runs = Callable[[str, Setup], tuple[Pass, ...]]


@pytest.fixture(scope="module")
def engine() -> Any:
    return engine_of("smoke", 64, "float32", "cpu")


@pytest.fixture(scope="module")
def passes(engine: Any) -> Runs:
    """What a way runs in a setup."""
    meter = Meter(engine.model)

    @cache
    def measured(way: str, setup: Setup) -> tuple[Pass, ...]:
        return meter.measure(partial(WAYS[way], ways_of(setup, engine))).passes

    return measured


def decoded(runs: tuple[Pass, ...]) -> list[Pass]:
    return [one for one in runs if one.part == "decoder"]


def seen(runs: tuple[Pass, ...]) -> int:
    """Images through the vision tower."""
    return sum(one.rows for one in runs if one.part == "vision")


def test_what_each_way_runs(passes: Runs) -> None:
    runs = {way: passes(way, ONE) for way in WAYS if "one by one" not in way}
    four = runs.pop("CoF, text, four batches")
    counts = {way: len(decoded(made)) for way, made in runs.items()}
    assert (len(decoded(four)), seen(four)) == (4 * counts["CoF, text"], 4 * 2)
    assert counts["plain"] == counts["lambda = 1"] == counts["grounder none"] == 3
    assert counts["naive"] == 30 + 3
    assert counts["text, free box"] - counts["CoF, text"] > 15
    assert counts["CoF, all"] == counts["CoF, text"] <= 1 + 4 + 3
    assert counts["text, no prefix kept"] == counts["CoF, text"] == 4 + 3
    assert counts["text, one-pass box"] == 1 + 1 + 3  # the image, both questions, the answer
    images = {way: seen(made) for way, made in runs.items()}
    twice = {"naive", "text, vision twice"}
    assert images == {way: 4 if way in twice else 2 for way in runs}


def test_what_each_way_computes(engine: Any, passes: Runs) -> None:
    sizes = Sizes.of(engine.model)

    def cost(way: str) -> float:
        return sum(operations(run, sizes) for run in passes(way, ONE))

    plain = cost("plain")
    assert cost("lambda = 1") == cost("grounder none") == plain
    text = cost("CoF, text")
    assert plain < text < cost("CoF, all") < cost("naive")
    assert text < min(cost("text, no prefix kept"), cost("text, vision twice"))
    assert text < 1.2 * cost("text, free box")  # fewer passes, but over digits not taken as well


def test_questions_about_one_image_share_it(passes: Runs) -> None:
    plain = passes("plain", THREE)
    assert seen(plain) == 3
    assert len(decoded(plain)) == 3 * 3
    at_once, in_turn = (passes(f"CoF, text{how}", THREE) for how in ("", ", one by one"))
    assert seen(at_once) == seen(in_turn) == 1
    assert len(decoded(at_once)) * 2 < len(decoded(in_turn))
    assert max(run.rows for run in at_once) == 3
    assert max(run.rows for run in in_turn) == 1


def test_a_plain_pass_is_counted_token_by_token(passes: Runs) -> None:
    vision, first, second, third = passes("plain", ONE)
    assert vision == Pass("vision", 2, 65)
    length = first.new
    assert length > 64 + 20
    assert first == Pass("decoder", 2, length, 0, logits=2)
    assert second == Pass("decoder", 2, 1, length, logits=2)
    assert third == Pass("decoder", 2, 1, length + 1, logits=2)


def test_sizes_are_those_of_the_model(engine: Any) -> None:
    model, sizes = engine.model, Sizes.of(engine.model)
    everything = sum(weight.numel() for weight in model.parameters())
    embedding = model.model.language_model.embed_tokens.weight.numel()
    assert sizes.vision_weights + sizes.weights + sizes.head + embedding == everything
    assert (sizes.layers, sizes.width, sizes.kv_width, sizes.value_bytes) == (2, 64, 64, 4)


SEES = {"vision_weights": 30, "vision_layers": 1, "vision_width": 5}
SIZES = Sizes(**SEES, weights=100, layers=2, width=10, kv_width=4, head=50, value_bytes=2)


def test_operations_and_bytes_by_hand() -> None:
    see = Pass("vision", rows=3, new=7)
    assert operations(see, SIZES) == 3 * (2 * 30 * 7 + 4 * 5 * 7 * 7)
    assert traffic(see, SIZES) == 60
    read = Pass("decoder", rows=2, new=3, before=4, logits=2)
    pairs = 5 + 6 + 7  # keys that each new token sees
    scores_and_sums = 2 * 2 * SIZES.layers * SIZES.width * pairs
    assert operations(read, SIZES) == 2 * (2 * 100 * 3 + scores_and_sums) + 2 * 2 * 50
    kept = 2 * SIZES.layers * SIZES.kv_width * 2 * (4 + 3)
    assert traffic(read, SIZES) == 2 * (100 + 50 + kept)


def test_the_plan_puts_targets_first_and_builds_each_model_once() -> None:
    plan = make_plan(["1b", "tiny"], growth="1b")
    first = [Setup("1b"), Setup("1b", questions=10), Setup("1b", batch=16)]
    assert [setup for setup, _ in plan[:3]] == first
    assert "grounder none" in plan[0][1]
    assert "naive" in dict(plan)[Setup("1b", questions=10)]  # the growth asks for it
    built = [(setup.shape, setup.image_tokens) for setup, _ in plan]
    runs = [key for number, key in enumerate(built) if number == 0 or built[number - 1] != key]
    assert runs[:2] == [("1b", 576), ("tiny", 100)]
    assert len(runs) == 2 + 1 + 4  # growth: the usual model again, and one for each other grid
    assert len({setup for setup, _ in plan}) == len(plan)


def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = '--batch 2 --questions 1 --way "lambda = 1" --way "CoF, text"'
    measure, calls = Meter.measure, []

    def until_killed(self: Meter, work: Any) -> Cost:
        calls.append(work)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, work)

    monkeypatch.setattr(Meter, "measure", until_killed)
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, arguments)
    (file,) = tmp_path.glob("*/bench.json")
    before = json.loads(file.read_text())
    assert [len(row["all_seconds"]) for row in before["records"]] == [1, 1]
    content = ran(tmp_path, arguments)
    runs = {row["way"]: len(row["all_seconds"]) for row in content["records"]}
    assert runs == {"plain": 2, "CoF, text": 2, "lambda = 1": 2}
    for old, new in zip(before["records"], content["records"], strict=False):
        assert new["all_seconds"][0] == old["all_seconds"][0]
    assert content["limits"] == before["limits"]
    table = (file.parent / "table.md").read_text()
    assert "| smoke | 64 | 2 | 1 | CoF, text |" in table
    done = len(calls)
    assert ran(tmp_path, arguments) == content  # nothing is left to measure
    assert len(calls) == done


def test_the_time_given_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*shlex.split(SMOKE), "--budget-s", "0", "--out", str(tmp_path)])
    assert "time is up" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/*"))


def recorded(path: Path, costs: dict[tuple[Setup, str], list[float]]) -> Records:
    records = Records(path, MACHINE, {"1b": Limits(1e3, 1e3)})
    for (setup, way), seconds in costs.items():
        for one in seconds:
            records.add(setup, way, 5, Cost(one, (Pass("decoder", 1, 4),), 1.5), SIZES)
    return records


def test_other_sources_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    old = recorded(path, {(Setup("1b"), "plain"): [1.0]})
    assert Records.open(path, MACHINE).rows == old.rows
    assert not Records.open(path, {**MACHINE, "sources": "others"}).rows


def test_the_table_says_which_targets_are_met(tmp_path: Path) -> None:
    one, many = Setup("1b"), Setup("1b", batch=16)
    costs = {
        (one, "plain"): [1.0, 2.0, 1.0],
        (one, "CoF, text"): [1.3, 2.6, 9.0],  # round by round 1.3, 1.3, 9
        (one, "lambda = 1"): [1.1, 2.2, 1.1],
        (many, "plain"): [1.0],
        (many, "CoF, text"): [1.3],  # the only other way, but one with a target
        (Setup("1b", length=4), "plain"): [1.0],
    }
    records = recorded(tmp_path / "bench.json", costs)
    report(records, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| 1b | 576 | 1 | 1 | CoF, text | 2.600 | 1.30 | 1.30 to 9.00 | 1.35 | yes |" in table
    assert "| lambda = 1 | 1.100 | 1.10 | 1.10 to 1.10 | 1.02 | no |" in table
    assert "| 1b | 576 | 16 | 1 | CoF, text | 1.300 | 1.30 | 1.30 to 1.30 | 1.25 | no |" in table
    assert table.count("| plain |") == 2  # a step of the growth is not in this table
    short = (tmp_path / "summary.md").read_text()
    assert "| 1b | passes | 1 image, 1 question each | 16 images, 1 question each |" in short
    floor = records.rows[one, "plain"]["floor_s"]
    assert f"| CoF, text | 1 | {2.6 / floor:.1f} (1.30) |" in short
    records.limits["1b"] = replace(records.limits["1b"], launch=0.65)  # of one pass in 2.6 s
    report(records, tmp_path)
    short = (tmp_path / "summary.md").read_text()
    assert f"| CoF, text | 1 | {2.6 / floor:.1f} (1.30, 25%) |" in short
    assert "| lambda = 1 | 1 | " in short


def test_growth_has_a_line_for_each_step(tmp_path: Path) -> None:
    usual, long = Setup("1b"), Setup("1b", image_tokens=3136)
    costs = {
        (usual, "plain"): [1.0],
        (usual, "CoF, text"): [1.5],
        (long, "plain"): [4.0],
        (long, "CoF, text"): [5.0],
        (long, "naive"): [20.0],
    }
    text = growth(recorded(tmp_path / "bench.json", costs), "1b", tmp_path)
    assert "| image tokens | 576 | CoF, text | 1.500 | 1.50 |" in text
    assert "| image tokens | 3136 | naive | 20.000 | 5.00 |" in text
    assert "| questions about each image | 1 | CoF, text | 1.500 | 1.50 |" in text
    assert (tmp_path / "growth.md").read_text() == text
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_the_embedded_model_is_measured_on_scenes() -> None:
    engine = engine_of("tiny", 100, "bfloat16", "cpu")
    assert Sizes.of(engine.model).value_bytes == 4  # as it is used on a processor
    ways = ways_of(Setup("tiny", 100, batch=2, questions=3), engine)
    assert len(ways.images) == 2
    assert len(set(ways.questions[0])) == 3
    made = Meter(engine.model).measure(lambda: WAYS["CoF, text"](ways)).passes
    assert made[0] == Pass("vision", 2, 101)


def test_growing_memory_is_seen() -> None:
    kept: list[mmap.mmap] = []  # pages that no allocator had before

    def reply(request: Any) -> str:
        kept.append(mmap.mmap(-1, 1 << 21))
        kept[-1].write(bytes(1 << 21))
        return "[0.1, 0.1, 0.5, 0.5]"

    made = endure(CoF(FakeEngine(reply)), 64)
    assert made["questions"] == made["found"] == 64
    assert len(kept) == 2 * 64
    assert len(made["resident_gib"]) == 4
    first, *_, last = made["peak_gib"]
    assert last - first > 0.8 * 2 * 2 * 48 / 1024


def test_what_needs_a_gpu_is_refused_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--gpu"])
    assert "torch sees none here" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:No CUDA graphs")
def test_every_step_for_a_gpu_runs(tmp_path: Path) -> None:
    """On a processor, with a small model."""
    plan = list(gpu.make_plan(tmp_path, [*shlex.split(SMOKE), "--least", "1"], None))
    assert [step.name for step in plan] == ["kernel", "replay", "graphs", "launches", "images"]
    for step in plan[:2]:
        assert any(Path(word).is_file() for word in step.command[1:])
    for step in plan[2:]:
        main(list(step.command[3:]))
        (file,) = (tmp_path / step.name).glob("*/bench.json")
        ways = {row["way"] for row in json.loads(file.read_text())["records"]}
        assert ways == {"plain", *step.command[1:]} & set(WAYS) | {"plain"}


def test_steps_for_a_gpu_fail_alone_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(name: str, code: str, seconds: float = 60.0) -> gpu.Step:
        return gpu.Step(name, (sys.executable, "-c", code), seconds)

    def ran_again(about: dict[str, Any], budget_s: float = 90.0) -> dict[str, str]:
        assert gpu.run(steps, path, about, budget_s) == (budget_s > 0)
        known = json.loads(path.read_text())["steps"]
        return {name: made["outcome"] for name, made in known.items()}

    path, mark = tmp_path / "gpu.json", tmp_path / "mark"
    once = f"import pathlib; print('It ran'); pathlib.Path({str(mark)!r}).touch(exist_ok=False)"
    steps = [
        step("once", once),
        step("broken", "raise SystemExit(3)"),
        step("slow", "import time; time.sleep(60)", 1.0),
        step("stopped", f"print({gpu.UNFINISHED!r})"),
    ]
    outcomes = ran_again({"device": "x"})
    later = {"broken": "failed with 3", "slow": "unfinished", "stopped": "unfinished"}
    assert outcomes == {"once": "done", **later}
    assert "It ran" in json.loads(path.read_text())["steps"]["once"]["output"]
    assert ran_again({"device": "x"}) == outcomes
    assert ran_again({"device": "x"}, 0.0) == outcomes  # the time is up at once
    assert ran_again({"device": "another"}) == {"once": "failed with 1", **later}
