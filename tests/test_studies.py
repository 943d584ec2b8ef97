"""The studies on the scenes: what they choose, compare, and report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes import AnyEngine, FakeEngine, describe_image
from matplotlib.figure import Figure
from models import checkpoint
from rich.console import Console

from cof.errors import CofError
from cof.eval.data.base import Benchmark
from cof.eval.examples import Example, open_image
from cof.eval.methods import sample_box_elsewhere
from cof.eval.report.charts import COLORS
from cof.eval.report.document import markdown
from cof.eval.report.publish import make_blocks
from cof.focuses import FOCUSES
from cof.geometry.boxes import FULL, area, intersection
from cof.grounders import GROUNDERS
from cof.prompting.dialects import TINY, Dialect, fill
from cof.settings import Settings
from cof.types import Generation, Request
from lab.studies.__main__ import main
from lab.studies.charts import errorbars, name_lines
from lab.studies.scenes import (
    FOCUSES_COMPARED,
    SOURCES,
    SYNTHETIC,
    Plan,
    run_effect,
    run_grid,
    run_synthetic,
)
from lab.studies.synthetic import FIRST

QUIET = Console(quiet=True)
SPLITS = ("validation", "test")
PLAN = Plan(
    scenes=1,
    validation_scenes=1,
    num_objects=(4, 8),
    strengths=(2.0, 8.0),
    expands=(1.0, 1.3),
    batch_size=20,
)


@dataclass
class Seer(AnyEngine):
    """Answers rightly if it looks at the true region; about colour only if it looks nowhere.

    Its boxes are true for every other question, and questions about positions have none. It is
    surer of those whose boxes are true.
    """

    name: str = "seer"
    dialect: Dialect = TINY
    known: dict[tuple[str, str], tuple[int, Example]] = field(default_factory=dict)

    @classmethod
    def of(cls, tasks: Sequence[Benchmark]) -> Seer:
        seer = cls()
        for task in tasks:
            for number, example in enumerate(task.examples):
                shown = describe_image(open_image(example.image))
                seer.known[shown, example.prompt] = (number, example)
                about = example.question or example.prompt
                seer.known[shown, fill(TINY.template, about)[0]] = (number, example)
        return seer

    def _reply(self, request: Request) -> Generation:
        number, example = self.known.get(
            (describe_image(request.image), request.prompt), (0, Example("", Path(), "", ""))
        )
        true, text = example.region or FULL, "I do not know"
        looks = request.highlight is not None and any(
            intersection(box, true) > 0.5 * area(true) for box in request.highlight.region.boxes
        )
        if request.prompt.endswith("\nWhere?"):
            box = true if number % 2 == 0 else sample_box_elsewhere(true, "wrong")
            numbers = self.frame(request.image.size).from_image(box)
            text = str([round(v, 4) for v in numbers])
            text = "I see none." if example.kind == "position" else text
        elif looks != (example.kind == "color") and not (request.highlight and not looks):
            text = example.answer
        return Generation(text, (0,), (math.log(0.9 if number % 2 == 0 else 0.4),))


# Does it help?


def test_effect(tmp_path: Path) -> None:
    """Cut short in the choice of settings and on the test scenes, it goes on."""
    tasks, out = PLAN.draw(tmp_path / "scenes"), tmp_path / "out"
    known = Seer.of([tasks[split]["scenes"] for split in SPLITS]).known
    for calls in (10, 13):
        engine = Seer(known=known, dies_after=calls)
        with pytest.raises(KeyboardInterrupt):
            run_effect(engine, Settings(), PLAN, out, console=QUIET)
    results = run_effect(Seer(known=known), Settings(), PLAN, out, console=QUIET)
    with pytest.raises(CofError, match=r"another run \(model differ"):
        run_effect(Seer(name="other"), Settings(), PLAN, out, console=QUIET)
    assert (out / "objects.svg").read_text("utf-8").startswith("<svg")
    (boxes, tried), numbers = results["tables"], results["tasks"]["scenes"]
    assert list(results["methods"]) == [
        *("plain", "whole", "cof", "attention", "two looks", "cof, if unsure", "oracle", "random")
    ]
    _, *cof = [row for row in tried["rows"] if row[0] in ("", "cof")]
    best = results["methods"]["cof"]
    assert len(cof) == 2 * 2 * 2
    assert max(cof, key=lambda row: row[3])[1] == f"{best} (chosen)"  # of equals the mildest
    assert "scope=all strength=2" in best
    assert "max_plain_confidence" in results["methods"]["cof, if unsure"]
    digits, every = numbers["groups"]["digit"], numbers["groups"]["all"]
    assert digits["plain"]["value"] == digits["random"]["value"] == 0
    assert digits["oracle"]["value"] == digits["whole"]["value"] == 1
    assert 0 < digits["cof"]["value"] < 1
    color = numbers["groups"]["color"]
    assert color["oracle"]["broken"] == color["plain"]["n"]
    # what it is sure of are the questions that it finds: the threshold has to give some up
    assert every["cof, if unsure"]["broken"] <= every["cof"]["broken"]
    cells = {row[0]: dict(zip(boxes["head"], row, strict=True)) for row in boxes["rows"]}
    right = cells["plain wrong, box right"]
    assert right["cof"] == right["oracle"] == right["n"] > right["plain"] == 0
    assert sum(cell["n"] for cell in cells.values()) > right["n"]
    text = markdown(make_blocks(results))
    n = tried["rows"][0][2]
    assert f"Chosen on {n} questions (scenes validation-04-0000-digit-1 to validation-08-" in text
    assert f"**cof**: looks at what its own grounder finds; `{results['methods']['cof']}`" in text


# Where to look, and how


def test_grid(tmp_path: Path) -> None:
    engine = AnyEngine()
    results = run_grid(engine, Settings(), PLAN, tmp_path, console=QUIET)
    cells = set(results["methods"]) - {"plain"}
    everywhere = {f"{source} x {focus}" for source in SOURCES for focus in FOCUSES_COMPARED}
    # of the whole image nothing is cropped, and around it no frame drawn
    assert everywhere - cells == {"whole x crop", "whole x overlay"}
    _, *tried = results["tables"][1]["rows"]
    assert {row[0] for row in tried} == set(FOCUSES_COMPARED)
    assert sum(row[0] == "attention" for row in tried) == len(PLAN.strengths)
    crops = {row[1].removesuffix(" (chosen)") for row in tried if row[0] == "crop"}
    assert crops == {"prompt x crop expand=1", "prompt x crop expand=1.3"}
    # the strength that was chosen for a focus is used by all sources
    strength = results["methods"]["prompt x attention"].partition("strength=")[2]
    for source in SOURCES:
        assert results["methods"][f"{source} x attention"].endswith(f"strength={strength}")
    text = markdown(make_blocks(results))
    value = results["tasks"]["scenes"]["groups"]["fine"]["oracle x crop"]["value"]
    assert f"{value:.3f} (" in text
    calls = len(engine.calls)
    again = run_grid(engine, Settings(), PLAN, tmp_path, console=QUIET)
    assert again == results
    assert len(engine.calls) == calls
    with pytest.raises(CofError, match="another run"):
        run_grid(engine, Settings(), replace(PLAN, scenes=2), tmp_path, console=QUIET)


def test_the_grid_knows_all_grounders_and_focuses() -> None:
    assert set(FOCUSES) - set(FOCUSES_COMPARED) == {"none", "contrast", "beside"}
    assert set(GROUNDERS) - set(SOURCES) == {"given", "none", "detector"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sources": ("given",)}, "no grounder given; choose of"),
        ({"sources": ("prompt+nowhere",)}, "no grounder prompt[+]nowhere"),
        ({"focuses": ("zoom",)}, "no focus zoom; choose of"),
        ({"focuses": ()}, "no focus at all"),
        ({"sources": ("prompt", "detector")}, "--set detector=ID"),
    ],
)
def test_grids_that_there_are_not(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    engine = AnyEngine(dies_after=0)
    with pytest.raises(CofError, match=message):
        run_grid(engine, Settings(), PLAN, tmp_path, console=QUIET, **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--split headline --limit 5", "asked whole"),
        ("--split headline --scenes 5", "asked whole"),
        ("--split headline --quick", "asked whole"),
        ("--choose-on headline", "not chosen on headline"),
        ("--choose-on test", "not chosen on test"),
    ],
)
def test_headline_figures_are_of_all_their_questions_and_nothing_is_chosen_on_them(
    tmp_path: Path, options: str, message: str
) -> None:
    for study in ("tiny", "grid", "synthetic"):
        with pytest.raises(CofError, match=message):
            main([study, "--out", str(tmp_path / "out"), *options.split()])
    assert not list(tmp_path.iterdir())


# Synthetic MME, POPE and MMBench


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], str]:
    tasks = PLAN.draw(tmp_path_factory.mktemp("synthetic"), "tiny")
    examples = [e for split in SPLITS for task in tasks[split].values() for e in task.examples]
    return {(describe_image(open_image(e.image)), e.prompt): e.answer for e in examples}


def test_synthetic(truth: Mapping[tuple[str, str], str], tmp_path: Path) -> None:
    """Right where it looks with lambda 8 and an unexpanded box, else it always says the same."""

    def reply(request: Request) -> str:
        answer = truth.get((describe_image(request.image), request.prompt))
        if answer is None:
            return "[0.25, 0.25, 0.50, 0.50]"
        highlight = request.highlight
        boxes = highlight.region.boxes if highlight and highlight.strength == 8 else ()
        if boxes == ((0.25, 0.25, 0.5, 0.5),):
            return answer
        return "A" if answer in "ABCD" else "yes"

    engine = FakeEngine(reply, dialect=replace(TINY, name="tiny"))
    results = run_synthetic(engine, Settings(), PLAN, tmp_path, console=QUIET)
    (tried,), tasks = results["tables"], results["tasks"]
    best = results["methods"]["cof"]
    assert best == "prompt x attention expand=1 scope=all strength=8"
    assert len(tried["rows"]) == 1 + 2 + 2  # the plain model, each lambda, each alpha
    assert ["cof", f"{best} (chosen)", "1.000"] in [[*row[:2], row[3]] for row in tried["rows"]]
    assert list(tasks) == list(SYNTHETIC)
    assert tasks["mme"]["figures"]["perception"]["cof"]["value"] == 1000  # five tasks
    assert tasks["mme"]["figures"]["perception"]["plain"]["value"] == 250
    assert tasks["pope"]["figures"]["random f1"]["whole"]["difference"] == 0
    assert tasks["mmbench"]["figures"]["circular"]["plain"]["value"] == 0
    assert tasks["mmbench"]["figures"]["circular"]["cof"]["value"] == 100
    for path in (tmp_path / "data").glob("*/*/annotations.jsonl"):
        held_out = path.parts[-3] == "validation"
        seeds = [json.loads(line)["scene"] % 10_000 for line in path.read_text().splitlines()]
        assert all((seed >= FIRST["validation"]) == held_out for seed in seeds)
    text = markdown(make_blocks(results))
    assert "| perception | cof | 1000.0 [1000.0, 1000.0] | +750.0 [+750.0, +750.0] |" in text


def test_commands_on_a_random_model(tmp_path: Path) -> None:
    """And once more: nothing is asked, and every file stays as it is."""
    for study in (
        "tiny --quick",
        "grid --quick --grounders whole,oracle --focuses attention",
        "synthetic --quick",
        "effect --scenes 1",
    ):
        out = tmp_path / study.split()[0]
        model = checkpoint("llava")
        which = str(model) if "effect" in study else f"--model {model} --limit 2"
        name, *options = f"{study} --dtype float32 --out {out}".split()
        command = [name, *which.split(), *options]
        main(command)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        main(command)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        folder = out / model.name if "effect" in study else out
        results = json.loads((folder / "results.json").read_text("utf-8"))
        assert str(tmp_path) not in json.dumps(results) + (out / "table.md").read_text("utf-8")
    assert (out / "effect.svg").is_file()


def test_methods_are_named_beside_their_lines() -> None:
    axes = Figure().subplots()
    for method in COLORS:
        errorbars(axes, [0, 1], [{"value": v, "low": 0, "high": 1} for v in (0.3, 0.5)], method)
    name_lines(axes)
    heights = [name.xyann[1] for name in axes.texts]
    assert {name.get_text() for name in axes.texts} == set(COLORS)
    assert all(above - below > 0.049 for above, below in pairwise(heights))
    assert max(heights) <= 1
    assert min(heights) >= 0
    assert axes.get_legend() is None  # which would cover points
