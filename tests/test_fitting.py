"""Fitting an adaptive rule: thresholds found, families compared, and the study of one."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cof.adaptive import Rule, load_rule
from models import checkpoint
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.adaptive.fitting import FAMILIES, PRICE, Family, best_rule, fit
from cof.eval.adaptive.harm import Asked, measured
from cof.eval.adaptive.signs import NEVER, Signs, changes, decision
from cof.eval.adaptive.study import Plan, adapt_run, run_adaptation
from cof.eval.methods import Method
from cof.eval.report.adapt import write_adaptation
from cof.eval.run import GROUNDING
from cof.eval.saved import asked as questions_asked
from cof.eval.store import Record, Store
from cof.eval.tasks import Example, SceneTask
from cof.pipeline import CoF
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.types import Generation, Request

STRENGTHS = (4.0, 16.0)
PLAIN = "plain"


def chance(*parts: object) -> float:
    """0..1, the same for the same parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def said(id: str, method: str, right: bool, sure: float | None, *boxes: Any) -> Record:
    text = "7" if right else "3"
    return Record(id, method, text, text, right, boxes, sure)


def asked(n: int = 400, unknown: bool = False) -> Asked:
    """Questions that looking changes at random, for the better where the box is sure."""
    examples = [Example(f"q{i}", Path(f"p{i // 4}"), "?", "7", kind="digit") for i in range(n)]
    plain, found = {}, {}
    looked: dict[float, dict[str, Record]] = {strength: {} for strength in STRENGTHS}
    for example in examples:
        id = example.id
        sure = None if unknown and chance(id, "none") < 0.2 else chance(id, "box")
        was = chance(id) < 0.5
        plain[id] = said(id, "plain", was, None if sure is None else chance(id, "plain"))
        side = 0.1 + 0.6 * chance(id, "side")
        boxes = [(0.0, 0.0, side, side)] if chance(id, "found") < 0.9 else []
        found[id] = said(id, "grounding", False, sure, *boxes)
        for strength in STRENGTHS:
            flips = bool(boxes) and chance(id, "flips") < 0.05 * strength
            good = (sure is None or sure > 0.4) == (chance(id, "luck") < 0.9)
            right = (good if flips else was) if boxes else was
            looked[strength][id] = said(id, f"{strength}", right, chance(id, strength))
    return Asked(examples, plain, found, looked, {"plain": 4.0, "grounding": 2.0, "looked": 8.0})


def rules() -> list[Rule]:
    limits = itertools.product((0.6, 1.0), (0.0, 0.5), (0.2, 1.0), (0.0, 0.9))
    hard: Any = (((0.0, 4.0),), ((0.0, 16.0), (0.7, 4.0)))
    return [Rule(*limit, strengths=steps) for limit, steps in itertools.product(limits, hard)]


@pytest.mark.parametrize("unknown", [False, True])
def test_arrays_decide_as_the_rule_does(unknown: bool) -> None:
    data = asked(unknown=unknown)
    signs = data.signs
    assert not unknown or (signs.plain == 0).any()
    for rule in [*rules(), NEVER]:
        fixed, broken = changes(signs, rule)
        done = data.under(rule, usual=4.0)
        right = np.array([bool(each.final.right) for each in done])
        if rule != NEVER or not unknown:
            np.testing.assert_array_equal(fixed, ~signs.was_right & right)
            np.testing.assert_array_equal(broken, signs.was_right & ~right)
        for example, each in zip(data.examples, done, strict=True):
            assert each.grounded or not each.looked
            assert each.looked or each.final is data.plain[example.id]


def test_the_best_rule_is_the_best_of_all() -> None:
    signs = asked(120).signs
    for harm, family in itertools.product((0.5, 2.0), FAMILIES):
        worth = worth_of(signs, best_rule(signs, family, harm), harm)
        grid = [rule for rule in rules() if _within(rule, family)]
        if family.never:
            assert worth == 0
            continue
        # its own thresholds are quantiles, so the grid's may do a little better, never by much
        assert worth >= max(worth_of(signs, rule, harm) for rule in grid) - 2
        narrow = best_rule(signs, replace(family, signs=()), harm)
        assert worth >= worth_of(signs, narrow, harm) - 1e-6


def worth_of(signs: Signs, rule: Rule, harm: float) -> float:
    fixed, broken = changes(signs, rule)
    looks = (signs.plain <= rule.plain_at_most).sum()
    return float(fixed.sum() - harm * broken.sum() - PRICE * looks)


def _within(rule: Rule, family: Family) -> bool:
    free = {
        "plain": rule.plain_at_most < 1,
        "box": rule.box_at_least > 0,
        "area": rule.area_at_most < 1,
        "ratio": rule.ratio_at_least > 0,
    }
    steps = len(rule.strengths) > 1
    return {name for name in free if free[name]} <= set(family.signs) and steps <= family.steps


def test_the_sign_that_tells_is_found() -> None:
    found = fit(asked(1200).signs, repeats=2)
    assert "box" in found.chosen.family.name
    assert found.rule.box_at_least == pytest.approx(0.4, abs=0.08)
    fixed, broken = found.always
    assert found.chosen.broken <= 0.5 * broken
    assert found.chosen.fixed >= 0.7 * fixed
    # more careful rules break less
    lost = [row.broken for row in found.frontier]
    assert lost[-1] < lost[0]


def test_where_nothing_is_gained_stage_1_is_spared() -> None:
    data = asked()
    sure = {id for id, record in data.plain.items() if (record.confidence or 0) > 0.7}
    idle = {
        strength: {id: data.plain[id] if id in sure else r for id, r in of.items()}
        for strength, of in data.looked.items()
    }
    for signs in ((), ("box",), ("plain", "box")):
        rule = best_rule(replace(data, looked=idle).signs, Family(signs), 1.0)
        assert 0.6 < rule.plain_at_most <= 0.7
        assert (rule.box_at_least > 0) == bool(signs)


def test_where_looking_only_harms_it_is_given_up() -> None:
    data = asked()
    bad = {
        strength: {
            id: replace(r, right=bool(data.plain[id].right and r.right)) for id, r in of.items()
        }
        for strength, of in data.looked.items()
    }
    found = fit(replace(data, looked=bad).signs, repeats=1)
    assert found.rule == NEVER
    assert found.always[0] == 0 < found.always[1]


def test_nothing_changes_nothing() -> None:
    data = asked(40)
    same = {s: {id: data.plain[id] for id in of} for s, of in data.looked.items()}
    found = fit(replace(data, looked=same).signs, repeats=1)
    assert found.always == (0, 0)
    assert found.rule == NEVER


def test_measured_by_hand() -> None:
    examples = [Example(f"q{i}", Path(f"p{i}"), "?", "!") for i in range(4)]
    was, after = (0, 0, 1, 1), (1, 1, 0, 1)
    sure = (0.9, 0.3, 0.2, 0.8)
    box = (0.0, 0.0, 0.5, 0.5)
    data = Asked(
        examples,
        {f"q{i}": said(f"q{i}", "plain", bool(w), 0.5) for i, w in enumerate(was)},
        {f"q{i}": said(f"q{i}", "grounding", False, s, box) for i, s in enumerate(sure)},
        {4.0: {f"q{i}": said(f"q{i}", "cof", bool(a), 0.5) for i, a in enumerate(after)}},
        {},
    )
    row = measured(data, Rule(box_at_least=0.25), 4.0, seed=0)
    assert (row["always"]["fixed"], row["always"]["broken"]) == (2, 1)
    assert (row["rule"]["fixed"], row["rule"]["broken"], row["rule"]["right"]) == (2, 0, 4)
    assert (row["kept"]["value"], row["broken"]["value"], row["met"]) == (1.0, 0.0, True)
    assert (row["grounded"], row["looked"]) == (1.0, 0.75)
    strict = measured(data, Rule(box_at_least=0.5), 4.0, seed=0)
    assert (strict["kept"]["value"], strict["met"]) == (0.5, False)
    assert 0 < strict["met_share"] < 1
    harmless = measured(data, Rule(plain_at_most=0.4), 4.0, seed=0)
    assert (harmless["kept"]["value"], harmless["grounded"], harmless["looked"]) == (0.0, 0.0, 0.0)


class Moody(FakeEngine):
    """Answers, boxes and confidences at random, but the same whenever it is asked the same."""

    def __init__(self) -> None:
        super().__init__(self._text, dialect=TINY)

    def _text(self, request: Request) -> str:
        if request.prompt.endswith("\nWhere?"):
            if chance(request.prompt) < 0.1:
                return "I see none."
            x, y = 0.5 * chance(request.prompt, "x"), 0.5 * chance(request.prompt, "y")
            return f"[{x:.2f}, {y:.2f}, {x + 0.3:.2f}, {y + 0.4:.2f}]"
        light = request.highlight
        return str(int(10 * chance(request.prompt, light and light.strength)))

    def _reply(self, request: Request) -> Generation:
        text, light = self._text(request), request.highlight
        sure = chance(request.prompt, "sure", light and light.strength)
        return Generation(text, (1,), (math.log(sure),))


PLAN = Plan(scenes=2, validation_scenes=2, num_objects=(4,), strengths=STRENGTHS, batch_size=7)


def study(out: Path) -> dict[str, Any]:
    settings = Settings(expand=1.0)
    return run_adaptation(Moody(), settings, PLAN, out, console=Console(quiet=True))  # type: ignore[arg-type]


def test_study(tmp_path: Path) -> None:
    out = tmp_path / "study"
    results = study(out)
    write_adaptation(results, out)
    assert load_rule(out / "rule.json") == Rule(
        **json.loads((out / "results.json").read_text())["rule"]["rule"]
    )
    frozen = json.loads((out / "rule.json").read_text())["fitted"]
    assert frozen["questions"] == results["fitted"]["questions"] > 20
    text = (out / "table.md").read_text("utf-8")
    assert results["rule"]["sentence"] in text
    assert (out / "curve.png").stat().st_size > 1000
    n = results["test"]["all"]["n"]
    assert f"measured on {n} test" in text
    again = study(out)
    assert again == results


def test_the_pipeline_under_a_rule_is_the_decision_from_records(tmp_path: Path) -> None:
    study(tmp_path)
    task = SceneTask(tmp_path / "work" / "test")
    examples = [task.get_example(i) for i in range(task.num_examples())]
    store = Store(tmp_path / "work" / "test.jsonl")
    plain, found = store.method("plain"), store.method(GROUNDING)
    looked = {
        strength: store.method(Method.of("cof", Settings(expand=1.0, strength=strength)).key)
        for strength in STRENGTHS
    }
    seen = set()
    for rule in [*rules(), NEVER]:
        cof = CoF(Moody(), Settings(expand=1.0, adaptive=rule, grounding_max_new_tokens=64))  # type: ignore[arg-type]
        answers = cof.batch([(e.image, e.prompt) for e in examples])
        for example, answer in zip(examples, answers, strict=True):
            id = example.id
            of = {strength: by_id[id] for strength, by_id in looked.items()}
            done = decision(rule, plain[id], found[id], of, usual=4.0)
            assert answer.text == done.final.text
            assert bool(answer.region) == (done.final is not plain[id])
            assert bool(answer.grounding_text) == done.grounded
            seen.add((done.grounded, done.looked, done.final is plain[id]))
    assert seen == {
        (False, False, True),
        (True, False, True),
        (True, True, True),
        (True, True, False),
    }


def test_cof_adapt_on_a_random_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["adapt", "--model", str(checkpoint("llava")), "--scenes", "1", "--limit", "6"]
    result = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "The rule: " in result.output
    assert "Target: " in result.output
    load_rule(out / "rule.json")


def finished(folder: Path, data: Asked, key: str = "cof lambda=4 alpha=1 scope=all") -> Path:
    """A folder as `cof eval` leaves it."""
    store = Store(folder / "answers.jsonl")
    store.append(replace(record, method=PLAIN) for record in data.plain.values())
    store.append(replace(record, method=GROUNDING) for record in data.found.values())
    store.append(replace(record, method=key) for record in data.looked[4.0].values())
    (folder / "questions.jsonl").write_text(questions_asked(data.examples), "utf-8")
    about = {"model": "any", "weights": "0", "dtype": "float32", "versions": {}}
    about |= {"benchmark": "scenes", "prompt_style": "llava", "limit": None}
    results = {"about": about, "methods": {"plain": PLAIN, "cof": key}}
    results |= {"metrics": {}, "rules": "official", "shard": [1, 1]}
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    return folder


def test_a_finished_run_is_adapted_without_a_model(tmp_path: Path) -> None:
    data = asked()
    folder = finished(tmp_path / "run", data)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["adapt", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    numbers = json.loads((out / "results.json").read_text("utf-8"))
    n = [numbers["fitted"]["questions"], numbers["test"]["all"]["n"]]
    assert n == [200, 200]
    rule = load_rule(out / "rule.json")
    assert {strength for _, strength in rule.strengths} == {4.0}
    # the halves share no picture, and together they are all
    whole = measured(data, rule, 4.0, seed=0)["always"]
    halves = [numbers["fitted"]["always"], numbers["test"]["all"]["always"]]
    assert sum(half["fixed"] for half in halves) == whole["fixed"]
    assert sum(half["broken"] for half in halves) == whole["broken"]


def test_a_run_is_adapted_as_it_was_scored_last(tmp_path: Path) -> None:
    """`cof rescore` reads the replies by other rules and leaves them as they are."""
    folder = finished(tmp_path / "run", asked())
    store = folder / "answers.jsonl"
    wanted = adapt_run(folder, tmp_path / "out")
    store.write_text(store.read_text("utf-8").replace('"right": true', '"right": false'), "utf-8")
    assert adapt_run(folder, tmp_path / "out") == wanted
    (folder / "run.json").write_text('{"model": "another"}', "utf-8")
    with pytest.raises(CofError, match="of another run than the results"):
        adapt_run(folder, tmp_path / "out")


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CofError, match="no finished run"):
        adapt_run(tmp_path, tmp_path / "out")
    with pytest.raises(CofError, match="no finished run"):
        adapt_run(finished(tmp_path / "whole", asked(40), "whole lambda=4"), tmp_path / "out")
    with pytest.raises(CofError, match="too few"):
        adapt_run(finished(tmp_path / "few", asked(30)), tmp_path / "out")
    with pytest.raises(CofError, match="how sure"):
        adapt_run(finished(tmp_path / "mute", mute(asked(80))), tmp_path / "out")


def mute(data: Asked) -> Asked:
    """The same from an engine that tells no probabilities."""
    plain, found = (
        {id: replace(record, confidence=None) for id, record in records.items()}
        for records in (data.plain, data.found)
    )
    looked = {
        strength: {id: replace(record, confidence=None) for id, record in records.items()}
        for strength, records in data.looked.items()
    }
    return replace(data, plain=plain, found=found, looked=looked)


def test_without_confidences_the_boxes_are_left_to_judge_by() -> None:
    found = fit(mute(asked()).signs, repeats=1)
    rule = found.rule
    assert rule in (NEVER, Rule(area_at_most=rule.area_at_most, strengths=rule.strengths))


def test_a_study_of_other_questions_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    other = replace(PLAN, scenes=1)
    with pytest.raises(CofError, match="another run"):
        run_adaptation(Moody(), Settings(), other, tmp_path, console=Console(quiet=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_run_is_refused(tmp_path: Path, text: str) -> None:
    study(tmp_path)
    (tmp_path / "work" / "run.json").write_text(text, "utf-8")
    with pytest.raises(CofError, match="is damaged"):
        study(tmp_path)
