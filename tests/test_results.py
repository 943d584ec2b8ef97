"""From records to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import formats
import pytest

from cof.eval.data.pope import POPE
from cof.eval.data.scenes import Scenes
from cof.eval.examples import Example
from cof.eval.methods import PLAIN, Method, grounding_key
from cof.eval.results import collect_results, judge_box
from cof.eval.rules import RULES
from cof.eval.store import Record, Replies
from cof.geometry.boxes import XYXY
from cof.settings import Settings

BOX: XYXY = (0.25, 0.25, 0.5, 0.5)
COF = Method(Settings(strength=4.0))
FOUND = grounding_key(COF.settings.grounders[0])
EXAMPLES = [
    Example(f"{n}", Path(f"{n % 2}.png"), "?", "7", BOX, "digit", 4, single=n < 4) for n in range(5)
]


def records(key: str, right: str, **changes: Any) -> dict[str, Record]:
    """One record for each sign of `right`: + right, - wrong, . unparsed."""
    texts = {"+": "7", "-": "3", ".": "?"}
    return {f"{n}": Record(f"{n}", key, texts[sign], **changes) for n, sign in enumerate(right)}


def test_boxes_are_judged_by_their_centre_and_overlap() -> None:
    def judge(*boxes: XYXY) -> tuple[bool, float]:
        return judge_box(EXAMPLES[0], Record("0", FOUND, "", boxes=boxes))

    assert judge() == (False, 0.0)
    assert judge(BOX) == (True, 1.0)
    assert judge((0.25, 0.25, 0.5, 0.75)) == (True, 0.5)
    assert judge((0.75, 0.75, 1.0, 1.0)) == (False, 0.0)
    assert judge((0.25, 0.25, 0.375, 0.5), (0.375, 0.25, 0.5, 0.5)) == (True, 1.0)


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    elsewhere: XYXY = (0.6, 0.6, 0.7, 0.7)
    boxes = [BOX, elsewhere, BOX, elsewhere, BOX]
    replies = Replies(
        EXAMPLES,
        {
            "plain": records("plain", "++..."),
            COF.key: records(COF.key, "+.++."),
            FOUND: {f"{n}": Record(f"{n}", FOUND, "", boxes=(box,)) for n, box in enumerate(boxes)},
        },
    )
    return collect_results(Scenes(tmp_path), {"plain": PLAIN, "cof": COF}, replies, seed=0)


def test_a_small_case(results: dict[str, Any]) -> None:
    assert set(results["groups"]) == {"fine", "fine, 4 objects", "all", "4 objects"}
    cof, plain = results["groups"]["all"]["cof"], results["groups"]["all"]["plain"]
    assert (cof["n"], cof["value"], cof["unparsed"]) == (5, 0.6, 2)
    assert (cof["fixed"], cof["broken"], cof["difference"]) == (2, 1, 0.2)
    # one image: two fixed; the other: one broken
    assert cof["p"] == 1.0
    assert "difference" not in plain
    assert results["changed"] == {"cof": {"fixed": ["2", "3"], "broken": ["1"]}}
    assert results["unparsed"] == {"plain": 3, "cof": 2}
    boxes = results["grounding"][FOUND]["all"]
    assert (boxes["found"]["n"], boxes["centre"]["n"]) == (5, 4)
    values = [boxes[name]["value"] for name in ("found", "centre", "mean_iou", "iou_50")]
    assert values == [1.0, 0.5, 0.5, 0.5]
    assert results["figures"]["fine"]["cof"]["value"] == 60
    assert results["metrics"].keys() == set(RULES)


def test_a_refused_question_is_wrong_and_unparsed_under_every_rule_set(tmp_path: Path) -> None:
    """The official rule of POPE reads an empty reply as yes."""
    task = POPE(formats.pope(tmp_path))
    yes = {e.id: Record(e.id, "plain", "yes") for e in task.examples}
    ids = [e.id for e in task.examples if e.kind == "random" and e.answer == "yes"]
    refused = yes | {id: Record(id, "cof", "", right=False, error="no") for id in ids}
    empty = yes | {id: Record(id, "cof", "") for id in ids}

    def f1(records: Mapping[str, Record]) -> dict[str, float]:
        replies = Replies(task.examples, {"plain": yes, COF.key: records})
        numbers = collect_results(task, {"plain": PLAIN, "cof": COF}, replies, seed=0)
        assert numbers["errors"]["plain"] == 0
        assert numbers["unparsed"]["cof"] == numbers["errors"]["cof"]
        assert numbers["changed"]["cof"]["broken"] == (ids if numbers["errors"]["cof"] else [])
        return {rules: numbers["metrics"][rules]["cof"]["random f1"] for rules in RULES}

    assert set(f1(refused).values()) == {0}
    assert f1(empty)["official"] == pytest.approx(200 / 3, abs=1e-3)
