"""Methods compared on a benchmark: figures under all rule sets, resuming, shards, the report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from rich.console import Console

from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.compare import Comparison
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.vstar import VStar
from cof.eval.methods import PLAIN, Method
from cof.eval.report.summary import write_summary
from cof.eval.rules import RULES
from cof.eval.store import ENCODING, GROUNDING, Store
from cof.eval.tasks import Example
from cof.geometry.regions import EVERYTHING, Region
from cof.settings import Settings, preset
from cof.types import Request

QUIET = Console(quiet=True)
SETTINGS = Settings(expand=1.0, strength=4.0)


def says(request: Request) -> str:
    """Boxes when asked for them; "Yes." with a highlight, else "no"."""
    if "bounding box" in request.prompt:
        return "[0.25, 0.25, 0.5, 0.5]" if "red" in request.prompt else "I see none."
    return "Yes." if request.highlight else "no"


class Dying(FakeEngine):
    """Killed after so many calls."""

    left = 10**9

    def generate(self, requests: Any, decoding: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().generate(requests, decoding)


def run(task: Benchmark, out: Path, engine: Any = None, **options: Any) -> dict[str, Any]:
    comparison = Comparison.usual(SETTINGS, task, batch_size=2, **options)
    return comparison.run(engine or FakeEngine(says), task, out, console=QUIET)


def test_figures_under_every_rule_set(tmp_path: Path) -> None:
    task = POPE(formats.pope(tmp_path / "data"))
    results = run(task, tmp_path / "out")
    metrics = results["metrics"]
    assert set(metrics) == set(RULES)
    assert metrics["official"]["plain"]["random accuracy"] == 50
    assert metrics["official"]["plain"]["random f1"] == 0
    assert metrics["official"]["whole"]["random f1"] == pytest.approx(200 / 3, abs=1e-3)
    assert metrics["lmms-eval"]["whole"]["random unparsed"] == 100  # "Yes." is no exact "yes"
    assert metrics["lmms-eval"]["whole"]["random f1"] == 0
    assert results["methods"] == {
        "plain": "plain",
        "whole": "whole lambda=4 scope=all",
        "cof": "cof lambda=4 alpha=1 scope=all",
    }
    groups = results["groups"]["all"]
    assert groups["whole"]["fixed"] == groups["whole"]["broken"] == 6
    assert results["changed"]["whole"]["fixed"][:2] == ["random-1", "random-3"]
    assert results["changed"]["cof"] == {"fixed": [], "broken": []}  # no box, so the plain model
    assert results["found"] == 0


def test_stage_one_is_asked_about_the_question_alone(tmp_path: Path) -> None:
    engine = FakeEngine(says)
    task = MME(formats.mme(tmp_path / "data"))
    results = run(task, tmp_path / "out", engine)
    asked = [r.prompt for call, _ in engine.calls for r in call if "bounding box" in r.prompt]
    assert sum(prompt.startswith("Is it red?\n") for prompt in asked) == 2
    assert not any("yes or no" in prompt or "single word" in prompt for prompt in asked)
    assert results["found"] == pytest.approx(2 / 8)
    store = Store(tmp_path / "out" / "answers.jsonl")
    assert store["cof lambda=4 alpha=1 scope=all", "color/1-1"].text == "Yes."
    assert store["cof lambda=4 alpha=1 scope=all", "color/1-2"].text == "no"


def test_true_regions_add_oracle_and_control(tmp_path: Path) -> None:
    task = VStar(formats.vstar(tmp_path / "data"))
    results = run(task, tmp_path / "out", FakeEngine(lambda _: "B"))
    assert list(results["methods"]) == ["plain", "whole", "cof", "oracle", "random"]
    assert results["grounding"]["all"]["n_single"] == 4
    assert set(results["groups"]) == {"all", "direct_attributes", "relative_position"}


def test_only_boxes_are_measured_on_referring_expressions(tmp_path: Path) -> None:
    task = RefCOCO(formats.refcoco(tmp_path / "data"))
    engine = FakeEngine(lambda _: "[0.25, 0.5, 0.75, 1.0]")  # of the padded square
    results = run(task, tmp_path / "out", engine)
    assert results["methods"] == {}
    assert "groups" not in results
    assert results["grounding"]["all"]["n"] == 2
    assert results["found"] == 1
    write_summary(results, tmp_path / "out")
    assert "mean IoU" in (tmp_path / "out" / "table.md").read_text("utf-8")


def test_interrupted_and_sharded_runs_end_with_the_same_file(tmp_path: Path) -> None:
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows()))
    whole = run(task, tmp_path / "whole")
    dying = Dying(says)
    dying.left = 5
    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path / "killed", dying)
    run(task, tmp_path / "killed")
    for part in (1, 2):
        shown = run(replace(task, shard=(part, 2)), tmp_path / "sharded")
        assert shown["questions"] == (4, 2)[part - 1]
    silent = FakeEngine({})
    merged = run(task, tmp_path / "sharded", silent)
    assert silent.calls == []
    answers = [tmp_path / name / "answers.jsonl" for name in ("whole", "killed", "sharded")]
    assert len({path.read_bytes() for path in answers}) == 1
    assert merged["metrics"] == whole["metrics"]
    kept = {ENCODING, GROUNDING, *whole["methods"].values()}
    assert set(merged["seconds"]) == set(whole["seconds"]) == kept


def test_questions_and_replies_are_enough_to_score_again(tmp_path: Path) -> None:
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows()))
    results = run(task, tmp_path / "out", FakeEngine(lambda _: "A"))
    text = (tmp_path / "out" / "questions.jsonl").read_text("utf-8")
    assert str(tmp_path) not in text
    store = Store(tmp_path / "out" / "answers.jsonl")
    examples = [
        Example(**{**line, "image": Path(line["image"]), "options": tuple(line["options"])})
        for line in map(json.loads, text.splitlines())
    ]
    replies = {id: record.text for id, record in store.method("plain").items()}
    assert task.metrics(examples, replies, "official") == pytest.approx(
        results["metrics"]["official"]["plain"], abs=1e-4
    )


def test_other_questions_or_settings_are_refused(tmp_path: Path) -> None:
    data = formats.mme(tmp_path / "data")
    run(MME(data), tmp_path / "out")
    run(MME(data, rules="vlmevalkit"), tmp_path / "out")  # replies are scored again, not asked for
    for task, options, what in (
        (MME(data, prompt_style="official"), {}, "prompt_style, data differ"),
        (MME(data), {"max_new_tokens": 5}, "max_new_tokens differ"),
        (MME(data, limit=2), {}, "limit, data differ"),
    ):
        with pytest.raises(CofError, match=what):
            run(task, tmp_path / "out", **options)


def test_a_run_that_goes_on_under_other_rules_is_scored_by_those(tmp_path: Path) -> None:
    data = formats.pope(tmp_path / "data")
    run(POPE(data), tmp_path / "out")
    again = run(POPE(data, rules="lmms-eval"), tmp_path / "out")
    fresh = run(POPE(data, rules="lmms-eval"), tmp_path / "fresh")
    assert again["groups"] == fresh["groups"]
    assert again["groups"]["all"]["whole"]["unparsed"] == 12  # "Yes." is no exact "yes"
    assert again["changed"] == fresh["changed"]


def test_the_report_holds_the_results(tmp_path: Path) -> None:
    task = MME(formats.mme(tmp_path / "data"))
    results = run(task, tmp_path / "out")
    write_summary(results, tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| plain | 100.0 | 50.0 |" in table
    assert "| whole | 100.0 (+0.0) | 50.0 (+0.0) |" in table
    assert "answers read by the rules `official`" in table
    assert str(tmp_path) not in table
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["questions"] == 8
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [r for r in rows if (r["rules"], r["method"], r["metric"]) == ("llava", "cof", "color")]
    assert float(found[0]["value"]) == results["metrics"]["llava"]["cof"]["color"]


# Settings beyond lambda, alpha and scope


def test_methods_with_all_settings_of_a_preset(tmp_path: Path) -> None:
    parity = preset("paper-parity:llava-1.5-7b")
    method = Method.of("cof", parity)
    assert method.settings == parity
    assert method.key == (
        "cof lambda=2 alpha=1.3 scope=all cells=corners on_missing=whole square=True edge=snap "
        "parser=released"
    )
    assert Method.of("whole", parity).key == Method("whole", 2.0).key
    example = MME(formats.mme(tmp_path)).examples[0]
    assert method.region(example, None, (40, 30), seed=0) is EVERYTHING
    assert Method("cof", 2.0).region(example, None, (40, 30), seed=0) is None


@pytest.mark.parametrize(
    ("base", "reply", "box"),
    [
        (Settings(), "[0.25, 0.25, 0.5, 0.5]", True),
        (Settings(), "[0, 0.25, 0.5, 0.5]", True),
        (Settings(parser="released"), "[0, 0.25, 0.5, 0.5]", False),
        (Settings(parser="released"), "[0.25, 0.25, 0.5, 0.5]", True),
        (Settings(min_confidence=0.6), "[0.25, 0.25, 0.5, 0.5]", False),  # a word is 0.5 sure
        (Settings(min_confidence=0.4), "[0.25, 0.25, 0.5, 0.5]", True),
    ],
)
def test_one_reply_is_read_as_each_method_reads_it(
    tmp_path: Path, base: Settings, reply: str, box: bool
) -> None:
    task = MME(formats.mme(tmp_path / "data"))
    engine = FakeEngine(lambda r: reply if "bounding box" in r.prompt else "no")
    methods = {"plain": PLAIN, "cof": Method("cof", 2.0, 1.0, base=base)}
    Comparison(SETTINGS, methods).run(engine, task, tmp_path / "out", console=QUIET)
    lights = [r.highlight for call, _ in engine.calls[2:] for r in call]
    assert len(lights) == 8
    assert all((light is not None) == box for light in lights)
    if box:
        assert all(isinstance(light.region, Region) and light.region.boxes for light in lights)
