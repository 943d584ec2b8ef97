"""The adaptive rule: what it decides, what the pipeline makes of it, and how one is fitted."""

from __future__ import annotations

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cof.adaptive import Rule, chosen_rule, load_rule, save_rule, unlike
from models import checkpoint
from PIL import Image
from typer.testing import CliRunner

from cof import adaptive
from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.about import weights_digest
from cof.pipeline import CoF, Query
from cof.prompting.dialects import TINY
from cof.settings import Settings, default_settings
from cof.tiny import EMBEDDED, checkpoint_path
from cof.types import Generation, Request

QUESTION = "What digit is on the red star?"
BOX = (0.2, 0.2, 0.4, 0.6)
SQUARE = Image.new("RGB", (64, 64))
SURE = {"plain": 0.8, "box": 0.5, "looked": 0.4}


class Unsure(FakeEngine):
    """Says `plain`, `looked` or a box, each with a probability of its own."""

    def __init__(self, sure: dict[str, float | None], box: str = str(list(BOX))) -> None:
        super().__init__(self._text, dialect=TINY)
        self.sure, self.box = sure, box

    def _text(self, request: Request) -> str:
        if request.prompt != QUESTION:
            return self.box
        return "looked" if request.highlight else "plain"

    def _reply(self, request: Request) -> Generation:
        text = self._text(request)
        sure = self.sure[text if text in self.sure else "box"]
        return Generation(text, (1,), () if sure is None else (math.log(sure),))


def ask(rule: Rule | None, sure: dict[str, float | None] = SURE, **settings: Any) -> Any:
    fake = Unsure(sure)
    changed = {"expand": 1.0, "strength": 3.0, "adaptive": rule, **settings}
    answer = CoF(fake, Settings(**changed))(SQUARE, QUESTION)
    asked = [
        "looked" if r.highlight else "plain" if r.prompt == QUESTION else "box"
        for requests, _ in fake.calls
        for r in requests
    ]
    return answer, asked, fake


def test_doctests() -> None:
    found = doctest.testmod(adaptive)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("rule", "text", "asked"),
    [
        (None, "looked", ["box", "looked"]),
        (Rule(), "looked", ["plain", "box", "looked"]),
        (Rule(plain_at_most=0.79), "plain", ["plain"]),
        (Rule(plain_at_most=0.81), "looked", ["plain", "box", "looked"]),
        (Rule(box_at_least=0.51), "plain", ["plain", "box"]),
        (Rule(box_at_least=0.49), "looked", ["plain", "box", "looked"]),
        (Rule(area_at_most=0.07), "plain", ["plain", "box"]),
        (Rule(area_at_most=0.09), "looked", ["plain", "box", "looked"]),
        (Rule(ratio_at_least=0.51), "plain", ["plain", "box", "looked"]),
        (Rule(ratio_at_least=0.49), "looked", ["plain", "box", "looked"]),
    ],
)
def test_each_threshold(rule: Rule | None, text: str, asked: list[str]) -> None:
    answer, calls, fake = ask(rule)
    assert (answer.text, calls) == (text, asked)
    assert bool(answer.region) == (text == "looked") == bool(answer.boxes)
    assert bool(answer.reason) == (text == "plain")
    assert answer.found == ("box" in asked)
    before = len(fake.calls)
    assert answer.plain() == "plain"
    assert len(fake.calls) == before + (rule is None)  # known where a rule weighed it


def test_unknown_confidences_stop_nothing() -> None:
    strict = Rule(plain_at_most=0.0, box_at_least=1.0, ratio_at_least=9.0)
    answer, _, _ = ask(strict, dict.fromkeys(SURE))
    assert answer.text == "looked"


@pytest.mark.parametrize(
    ("steps", "box", "strength"),
    [
        ((), 0.5, 3.0),
        (((0.0, 7.0),), 0.5, 7.0),
        (((0.0, 2.0), (0.5, 9.0)), 0.4, 2.0),
        (((0.0, 2.0), (0.5, 9.0)), 0.6, 9.0),
        (((0.0, 9.0), (0.5, 2.0)), None, 2.0),
    ],
)
def test_how_hard(steps: Any, box: float | None, strength: float) -> None:
    answer, _, fake = ask(Rule(strengths=steps), {**SURE, "box": box})
    assert answer.settings.strength == strength
    assert fake.calls[-1][0][0].highlight.strength == strength


def test_a_lambda_of_one_is_the_rules_to_change() -> None:
    assert ask(Rule(strengths=((0.0, 7.0),)), strength=1.0)[0].text == "looked"
    assert ask(Rule(), strength=1.0)[1] == ["plain"]


def test_the_callers_word_stands_above_the_rule() -> None:
    never = Rule(plain_at_most=0.0, strengths=((0.0, 7.0),))
    cof = CoF(Unsure(SURE), Settings(strength=3.0, adaptive=never))
    assert cof(SQUARE, QUESTION, boxes=[BOX]).text == "looked"
    always = CoF(Unsure(SURE), Settings(adaptive=replace(never, plain_at_most=1.0)))
    answer = always.batch([Query(SQUARE, QUESTION, strength=5.0)])[0]
    assert answer.settings.strength == 5.0


def test_no_box_leaves_the_plain_answer() -> None:
    fake = Unsure(SURE, box="I cannot see one.")
    answer = CoF(fake, Settings(adaptive=Rule(), on_missing="whole"))(SQUARE, QUESTION)
    assert (answer.text, answer.region, answer.found) == ("plain", None, False)
    assert "no four numbers" in answer.reason


def test_rows_of_a_batch_are_decided_one_by_one() -> None:
    other = "What colour is it?"

    class Two(Unsure):
        def _reply(self, request: Request) -> Generation:
            if request.prompt == other:
                return Generation("sure", (1,), (0.0,))
            return super()._reply(request)

    fake = Two(SURE)
    cof = CoF(fake, Settings(adaptive=Rule(plain_at_most=0.9)))
    answers = cof.batch([(SQUARE, other), (SQUARE, QUESTION), (SQUARE, other)])
    assert [answer.text for answer in answers] == ["sure", "looked", "sure"]
    assert [len(requests) for requests, _ in fake.calls] == [3, 1, 1]


def test_a_rule_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    rule = Rule(0.9, 0.25, 0.5, 1.1, ((0.0, 2.0), (0.5, 8.0)))
    save_rule(path, rule, {"questions": 3})
    assert load_rule(path) == rule
    assert chosen_rule(str(path), "any") == rule
    assert chosen_rule("off", "any") is None
    assert json.loads(path.read_text("utf-8"))["fitted"] == {"questions": 3}


def test_the_rule_beside_the_weights(tmp_path: Path) -> None:
    with pytest.raises(CofError, match="cof adapt"):
        chosen_rule("on", str(tmp_path))
    save_rule(tmp_path / "adaptive.json", Rule(0.5), {})
    assert chosen_rule("on", str(tmp_path)) == Rule(0.5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no rule"),
        ("[]", "holds no rule"),
        ('{"rule": 3}', "holds no rule"),
        ('{"rule": []}', "holds no rule"),
        ('{"rule": {"size": 3}}', "size"),
        ('{"rule": {"plain_at_most": "high"}}', "plain_at_most must be a number"),
        ('{"rule": {"strengths": [[0.5, 2]]}}', "rising from 0"),
        ('{"rule": {"strengths": [[0, 0]]}}', "lambda above 0"),
        ('{"rule": {"strengths": 5}}', "strengths"),
    ],
)
def test_files_that_are_no_rules(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rule.json"
    path.write_text(text, "utf-8")
    with pytest.raises(CofError, match=problem):
        load_rule(path)
    with pytest.raises(CofError, match="There is no rule"):
        load_rule(tmp_path / "none.json")


@pytest.mark.parametrize(
    "values",
    [
        {"plain_at_most": 1.1},
        {"box_at_least": -0.1},
        {"area_at_most": math.nan},
        {"ratio_at_least": -1},
        {"strengths": ((0.0, 2.0), (0.0, 3.0))},
    ],
)
def test_thresholds_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(CofError):
        Rule(**values)


def test_settings_refuse_what_is_no_rule() -> None:
    with pytest.raises(CofError, match="Rule"):
        Settings(adaptive={"plain_at_most": 0.5})  # type: ignore[arg-type]


def test_the_option(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    save_rule(path, Rule(plain_at_most=0.0), {"settings": {"grounder": "prompt", "expand": 9.0}})
    picture = Path(adaptive.__file__).parent / "demo" / "scene-1.png"
    command = ["ask", str(picture), QUESTION, "--model", str(checkpoint("llava"))]
    command += ["--max-new-tokens", "1", "--expand", "1"]
    result = CliRunner().invoke(app, [*command, "--adaptive", str(path), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["boxes"] == []
    assert "Nothing was looked for" in said["reason"]
    assert said["settings"]["adaptive"]["plain_at_most"] == 0.0
    assert result.stderr == "Note: the rule was fitted with expand 9.0, not 1.0.\n"
    for choice, problem in (("on", "No rule comes with"), ("nowhere.json", "There is no rule")):
        result = CliRunner().invoke(app, [*command, "--adaptive", choice])
        assert result.exit_code == 2
        assert problem in result.stderr


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_rules_of_the_embedded_models_are_of_their_weights(name: str) -> None:
    folder = checkpoint_path(name)
    fitted = json.loads((folder / adaptive.RULE_FILE).read_text("utf-8"))["fitted"]
    engine = TransformersEngine.from_pretrained(folder, dtype=fitted["dtype"])
    assert weights_digest(engine.model) == fitted["weights"]
    rule = chosen_rule("on", str(folder))
    assert rule is not None
    settings = default_settings(name, "tiny")
    assert unlike("on", str(folder), settings.as_dict()) == []
    picture = Path(adaptive.__file__).parent / "demo" / "scene-1.png"
    answer = CoF(engine, settings.changed(adaptive=rule))(picture, QUESTION)
    assert (answer.region is None) == bool(answer.reason)
