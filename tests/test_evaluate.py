"""Methods compared on a benchmark: figures under all rule sets, resuming, shards, refusals."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine, FakeEngine
from rich.console import Console

from cof.errors import CofError
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.scenes import Scenes
from cof.eval.evaluate import Evaluation
from cof.eval.examples import Example
from cof.eval.methods import PLAIN, Method, grounding_key
from cof.eval.report.document import markdown
from cof.eval.report.publish import make_blocks
from cof.eval.results import collect_results, judge_box
from cof.eval.rules import RULES
from cof.eval.store import Record, Replies, Store, write_questions
from cof.geometry.boxes import XYXY
from cof.settings import Settings
from cof.types import Request

SETTINGS = Settings(expand=1.0, strength=4.0)
COF = "prompt x attention expand=1 scope=all strength=4"


def says(request: Request) -> str:
    """Boxes when asked for them; "Yes." with a highlight, else "no"."""
    if "bounding box" in request.prompt:
        return "[0.25, 0.25, 0.5, 0.5]" if "red" in request.prompt else "I see none."
    return "Yes." if request.highlight else "no"


def run(
    task: Benchmark, out: Path, engine: Any = None, console: Console | None = None, **options: Any
) -> dict[str, Any]:
    evaluation = Evaluation.compare_usual(SETTINGS, task, batch_size=2, **options)
    console = console or Console(quiet=True)
    return evaluation.run(engine or FakeEngine(says), {task.name: task}, out, console=console)


def test_figures_under_every_rule_set(tmp_path: Path) -> None:
    results = run(POPE(formats.pope(tmp_path / "data")), tmp_path / "out")
    assert results["methods"] == {
        "plain": "plain",
        "whole": "whole x attention scope=all strength=4",
        "cof": COF,
    }
    assert results["settings"]["cof"] == {**SETTINGS.as_dict(), "given": ""}
    numbers = results["tasks"]["pope"]
    assert set(numbers["metrics"]) == set(RULES)
    assert numbers["metrics"]["official"]["plain"]["random accuracy"] == 50
    assert numbers["metrics"]["official"]["plain"]["random f1"] == 0
    assert numbers["figures"]["random f1"]["whole"]["value"] == pytest.approx(200 / 3, abs=1e-3)
    # "Yes." is no exact "yes"
    assert numbers["metrics"]["lmms-eval"]["whole"]["random unparsed"] == 100
    assert numbers["metrics"]["lmms-eval"]["whole"]["random f1"] == 0
    groups = numbers["groups"]["all"]
    assert groups["whole"]["fixed"] == groups["whole"]["broken"] == 6
    assert numbers["changed"]["whole"]["fixed"][:2] == ["random-1", "random-3"]
    assert numbers["changed"]["cof"] == {"fixed": [], "broken": []}  # no box: the plain model
    assert numbers["grounding"][grounding_key(SETTINGS.grounders[0])]["all"]["found"]["value"] == 0


def test_only_boxes_are_measured_on_referring_expressions(tmp_path: Path) -> None:
    engine = FakeEngine(lambda _: "[0.25, 0.5, 0.75, 1.0]")  # of the padded square
    results = run(RefCOCO(formats.refcoco(tmp_path / "data")), tmp_path / "out", engine)
    assert results["methods"] == {}
    numbers = results["tasks"]["refcoco"]
    assert numbers["groups"] == numbers["figures"] == {}
    boxes = numbers["grounding"][grounding_key(SETTINGS.grounders[0])]["all"]
    assert (boxes["found"]["n"], boxes["found"]["value"]) == (2, 1)
    assert boxes["mean_iou"]["value"] > 0
    assert "mean IoU" in markdown(make_blocks(results))


@pytest.mark.parametrize("deaths", [[0], [5], [4, 3, 2]])
def test_interrupted_and_sharded_runs_end_with_the_same_file(
    tmp_path: Path, deaths: list[int]
) -> None:
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows()))
    whole = run(task, tmp_path / "whole", AnyEngine())
    for death in deaths:
        with pytest.raises(KeyboardInterrupt):
            run(task, tmp_path / "killed", AnyEngine(dies_after=death))
    run(task, tmp_path / "killed", AnyEngine())
    for part in (1, 2):
        results = run(replace(task, shard=(part, 2)), tmp_path / "sharded", AnyEngine())
        assert results["tasks"]["mmbench"]["questions"] == (4, 2)[part - 1]
    merged = run(task, tmp_path / "sharded", AnyEngine(dies_after=0))
    answers = [tmp_path / name / "answers.jsonl" for name in ("whole", "killed", "sharded")]
    assert len({path.read_bytes() for path in answers}) == 1
    assert merged["tasks"] == whole["tasks"]


def test_every_field_of_a_question_survives_its_file(tmp_path: Path) -> None:
    more = ("kind", 3, True, "q", ("x", "y"), ("A", "a"), "group", "area", True, "dev")
    example = Example("1", Path("a/b.png"), "p", "A", (0.0, 0.1, 0.2, 1.0), *more)
    other = Example("2", Path("c.png"), "p\u2028\n", "")
    write_questions([example, other], tmp_path)
    Store(tmp_path / "answers.jsonl").append([Record("1", "plain", "A")])
    assert Replies.read(tmp_path, (1, 1)).examples == [example, other]


def test_other_questions_or_settings_are_refused(tmp_path: Path) -> None:
    data = formats.mme(tmp_path / "data")
    run(MME(data), tmp_path / "out")
    run(MME(data, rules="vlmevalkit"), tmp_path / "out")  # replies are scored again, not asked for
    for task, options, what in (
        (MME(data, prompt_style="official"), {}, "prompt_style, data differ"),
        (MME(data), {"max_new_tokens": 5}, "max_new_tokens differ"),
        (MME(data), {"seed": 5}, "seed differ"),
        (MME(data, limit=2), {}, "limit, data differ"),
    ):
        with pytest.raises(CofError, match=what):
            run(task, tmp_path / "out", **options)
    with pytest.raises(CofError, match="model differ"):
        run(MME(data), tmp_path / "out", FakeEngine(says, name="other"))
    image = (data / "color" / "1.png").read_bytes()
    formats.save(data / "color" / "1.png", 9)  # another image
    with pytest.raises(CofError, match="data differ"):
        run(MME(data), tmp_path / "out")
    (data / "color" / "1.png").write_bytes(image)
    run(MME(data.rename(tmp_path / "elsewhere")), tmp_path / "out")
    region = {"id": "color/1", "region": [0, 0, 0.5, 0.5], "num_objects": 1, "single": True}
    formats.json_lines(tmp_path / "elsewhere" / "annotations.jsonl", [region])
    with pytest.raises(CofError, match="data differ"):
        run(MME(tmp_path / "elsewhere"), tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text("{", "utf-8")
    with pytest.raises(CofError, match="is damaged"):
        run(MME(tmp_path / "elsewhere"), tmp_path / "out")


def test_refused_questions_are_told_of(tmp_path: Path) -> None:
    engine, text = AnyEngine(refuses=("cat",)), io.StringIO()
    task = POPE(formats.pope(tmp_path / "data"))
    results = run(task, tmp_path / "out", engine, Console(file=text, width=200))
    assert "pope: 3 questions could not be asked and count as wrong" in text.getvalue()
    assert results["tasks"]["pope"]["errors"] == {"plain": 3, "whole": 3, "cof": 3}
    report = markdown(make_blocks(results))
    assert "could not be asked, and count as wrong: plain 3, whole 3, cof 3." in report
    for row in results["tasks"]["pope"]["figures"]["random f1"].values():
        assert f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in report
    assert "answers read by the rules `official` (the benchmarks' own scripts)" in report
    assert "- **vlmevalkit**: VLMEvalKit at e8e78f0" in report
    again = AnyEngine(dies_after=0, refuses=("cat",))
    assert run(task, tmp_path / "out", again)["tasks"] == results["tasks"]


# From records to numbers

BOX: XYXY = (0.25, 0.25, 0.5, 0.5)
LOOKING = Method(Settings(strength=4.0))
FOUND = grounding_key(LOOKING.settings.grounders[0])
FIVE = [
    Example(f"{n}", Path(f"{n % 2}.png"), "?", "7", BOX, "digit", 4, single=n < 4) for n in range(5)
]


def records(key: str, right: str, **changes: Any) -> dict[str, Record]:
    """One record for each sign of `right`: + right, - wrong, . unparsed."""
    texts = {"+": "7", "-": "3", ".": "?"}
    return {f"{n}": Record(f"{n}", key, texts[sign], **changes) for n, sign in enumerate(right)}


def test_boxes_are_judged_by_their_centre_and_overlap() -> None:
    def judge(*boxes: XYXY) -> tuple[bool, float]:
        return judge_box(FIVE[0], Record("0", FOUND, "", boxes=boxes))

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
        FIVE,
        {
            "plain": records("plain", "++..."),
            LOOKING.key: records(LOOKING.key, "+.++."),
            FOUND: {f"{n}": Record(f"{n}", FOUND, "", boxes=(box,)) for n, box in enumerate(boxes)},
        },
    )
    return collect_results(Scenes(tmp_path), {"plain": PLAIN, "cof": LOOKING}, replies, seed=0)


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
        replies = Replies(task.examples, {"plain": yes, LOOKING.key: records})
        numbers = collect_results(task, {"plain": PLAIN, "cof": LOOKING}, replies, seed=0)
        assert numbers["errors"]["plain"] == 0
        assert numbers["unparsed"]["cof"] == numbers["errors"]["cof"]
        assert numbers["changed"]["cof"]["broken"] == (ids if numbers["errors"]["cof"] else [])
        return {rules: numbers["metrics"][rules]["cof"]["random f1"] for rules in RULES}

    assert set(f1(refused).values()) == {0}
    assert f1(empty)["official"] == pytest.approx(200 / 3, abs=1e-3)
