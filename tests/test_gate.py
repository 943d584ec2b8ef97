"""The threshold with a promise: it is kept as often as it says, and refused where data are few."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from statistics import median

import formats
import pytest
from fakes import FakeEngine
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.errors import CofError
from cof.eval.data.pope import POPE
from cof.eval.evaluate import Evaluation
from cof.eval.gate import RightAnswer, choose_threshold
from cof.eval.sweep import CHOSEN, Choice
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark
from cof.types import Request
from lab.studies import promise


def population(rng: random.Random, images: int, most: int) -> list[RightAnswer]:
    """Looking breaks surer answers more often, in one half of the images: of all answers with a
    confidence up to t the share t**3 / 10 is broken."""
    answers = []
    for image in range(images):
        fragile = rng.random() < 0.5
        for _ in range(rng.randint(1, most)):
            sure = rng.random()
            answers.append(RightAnswer(str(image), sure, fragile and rng.random() < 0.6 * sure**2))
    return answers


@pytest.mark.parametrize("most", [1, 3])
def test_the_promise_is_kept(most: int) -> None:
    rng, at_most, runs = random.Random(most), 0.02, 300
    found = [choose_threshold(population(rng, 400, most), at_most) for _ in range(runs)]
    kept = sum(threshold**3 / 10 <= at_most for threshold in found)
    assert kept / runs >= 0.95 - 3 * (0.05 * 0.95 / runs) ** 0.5
    assert median(found) > 0.6 * (10 * at_most) ** (1 / 3)  # of what is right where all is known


def test_few_data_promise_nothing() -> None:
    answers = [RightAnswer(str(n), 0.5, False) for n in range(298)]
    # 0.99**299 is the first power below 0.05
    with pytest.raises(CofError, match=r"at most 1.0% .* about 298 images, and 299 are"):
        choose_threshold(answers, 0.01)
    assert choose_threshold([*answers, RightAnswer("298", 0.5, False)], 0.01) == 1.0
    together = [RightAnswer(str(n // 10), 0.5, False) for n in range(299)]
    with pytest.raises(CofError, match="about 30 images, and 299 are"):
        choose_threshold(together, 0.01)
    with pytest.raises(CofError, match="cannot be promised"):
        choose_threshold([], 0.5)
    with pytest.raises(CofError, match="above 0 and below 1"):
        choose_threshold(answers, 1.0)


def test_promises_are_tried_on_the_other_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking breaks the answers about every second image."""

    def says(request: Request) -> str:
        if "bounding box" in request.prompt:
            return "[0.25, 0.25, 0.5, 0.5]"
        odd = int(re.findall(r"\d+", request.prompt)[0]) % 2
        return "no" if request.highlight and odd else "yes"

    for number in range(40):
        formats.save(tmp_path / "data" / f"{number}.png", number)
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": f"Is it {n}?", "label": "yes"}
        for n in range(40)
    ]
    formats.json_lines(tmp_path / "data" / "coco_pope_random.json", rows)
    task, out = POPE(tmp_path / "data"), tmp_path / "out"
    evaluation = Evaluation.compare_usual(Settings(), task)
    evaluation.run(FakeEngine(says), {"scenes": task}, out, console=Console(quiet=True))
    monkeypatch.setattr(promise, "PROMISED", (0.9,))
    promise.main(out)
    (row,) = json.loads((out / "promise.json").read_text("utf-8"))
    assert (row["kept"], row["images"], row["threshold"]) == (1.0, 20, 1.0)
    assert row["share"] == pytest.approx(0.5, abs=0.1)


def test_a_sweep_with_a_promise(tmp_path: Path) -> None:
    """Choosing, promising and measuring are done on different images; a second run asks nothing."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_benchmark(data, "test", num_objects=(4,), scenes=16)

    def sweep(*more: str) -> object:
        words = "--model tiny-early --share 0.8 --limit 12 --try strength=4 --try scope=text"
        return CliRunner().invoke(
            app, ["sweep", "scenes", str(data), "--out", str(out), *words.split(), *more]
        )

    first = sweep("--break-at-most", "0.99", "--then-test")
    assert first.exit_code == 0, first.output
    told = re.search(r"breaks at most 99.0% of right answers", first.output)
    choice = Choice.read(out / CHOSEN)
    assert told is not None
    assert told[0] in choice.about["promise"]
    assert 0 < choice.settings.max_plain_confidence <= 1
    results = json.loads((out / "test" / "results.json").read_text("utf-8"))
    assert results["settings"]["cof"] == {**choice.settings.as_dict(), "given": ""}
    assert choice.about["promise"] in (out / "test" / "table.md").read_text("utf-8")
    again = sweep("--break-at-most", "0.99")
    assert again.exit_code == 0, again.output
    few = sweep("--break-at-most", "0.01", "--out", str(tmp_path / "few"))
    assert (few.exit_code, "cannot be promised" in few.stderr) == (2, True)
    both = sweep("--break-at-most", "0.99", "--try", "max_plain_confidence=0.5")
    assert (both.exit_code, "leave it out of --try" in both.stderr) == (2, True)
