"""Reports and rescoring: every number is one of the results, and nothing else is needed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import formats
import pytest
from fakes import AnyEngine, FakeEngine
from openpyxl import load_workbook
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.errors import CofError
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench, submit_mmbench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.textvqa import TextVQA
from cof.eval.evaluate import Evaluation
from cof.eval.report.charts import draw
from cof.eval.report.document import (
    Card,
    Heading,
    Items,
    Number,
    Table,
    Text,
    csv_text,
    html,
    markdown,
)
from cof.eval.report.publish import publish, rescore, write_table
from cof.eval.runs import find_runs
from cof.settings import Settings
from cof.types import Request
from lab.studies.scenes import Plan, run_effect

QUIET = Console(quiet=True)
DATA: dict[type[Benchmark], Any] = {
    MME: formats.mme,
    POPE: formats.pope,
    MMBench: lambda folder: formats.tsv(folder / "dev.tsv", formats.mmbench_rows()),
    TextVQA: formats.textvqa,
    RefCOCO: formats.refcoco,
}
TABLE = Table(
    "t",
    ["method", "n", "accuracy"],
    [["plain", 3, Number(0.5, ".2f", 0.25, 0.75)], ["a|b_c", 4, Number(-1.5, "+.1f")]],
)


def run(benchmark: type[Benchmark], folder: Path) -> Path:
    task = benchmark(DATA[benchmark](folder / "data"))
    evaluation = Evaluation.compare_usual(Settings(), task)
    results = evaluation.run(AnyEngine(), {task.name: task}, folder / "out", console=QUIET)
    write_table(results, folder / "out")
    return folder / "out"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tables_in_every_format() -> None:
    assert markdown([TABLE]) == (
        "| method | n | accuracy |\n|---|--:|--:|\n| plain | 3 | 0.50 [0.25, 0.75] |\n"
        "| a\\|b_c | 4 | -1.5 |\n"
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(TABLE))))
    assert rows[0]["accuracy low"] == "0.25"
    assert rows[1]["accuracy low"] == ""


def test_the_page_escapes_what_it_shows() -> None:
    card = Card("fixed", "digit", "<b>?</b>", "7", [("plain", "<script>", False)], "AAAA")
    blocks = [Heading("A <b>"), Text("`x` y"), Items([("n", "t")]), TABLE, card]
    page = html("T", "lead", [("s", "S", blocks)])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<code>x</code> y" in page
    assert not re.search(r"(src|href)=.?https?:", page)  # it opens offline


def test_charts_are_well_formed_and_the_same_each_time() -> None:
    first, second = (draw("c", "A & B", lambda of: of.subplots().plot([1, 2])) for _ in "ab")
    assert first.svg == second.svg
    assert ElementTree.fromstring(first.svg).tag.endswith("svg")


@pytest.mark.parametrize("benchmark", DATA, ids=lambda b: b.name)
def test_the_same_rules_give_the_same_files(benchmark: type[Benchmark], tmp_path: Path) -> None:
    """Without the model, and without the data."""
    out = run(benchmark, tmp_path)
    publish(out)
    before = files(out)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    assert rescore(out) == [out]
    assert {name: data for name, data in files(out).items() if not name.startswith("report")} == {
        name: data for name, data in before.items() if not name.startswith("report")
    }


def test_other_rules_are_those_of_a_run_under_them(tmp_path: Path) -> None:
    out = run(POPE, tmp_path)
    rescore(out, "lmms-eval")
    scored = json.loads((out / "results.json").read_text("utf-8"))["tasks"]["pope"]
    task = POPE(tmp_path / "data", rules="lmms-eval")
    evaluation = Evaluation.compare_usual(Settings(), task)
    fresh = evaluation.run(AnyEngine(), {"pope": task}, tmp_path / "fresh", console=QUIET)
    assert scored["rules"] == "lmms-eval"
    for name in ("figures", "groups", "metrics", "unparsed", "changed"):
        assert scored[name] == fresh["tasks"]["pope"][name]
    assert "rules `lmms-eval`" in (out / "table.md").read_text("utf-8")


def test_replies_of_another_run_are_refused(tmp_path: Path) -> None:
    out = run(POPE, tmp_path)
    about = json.loads((out / "run.json").read_text("utf-8"))
    (out / "run.json").write_text(json.dumps({**about, "seed": 5}), "utf-8")
    with pytest.raises(CofError, match="of another run than the results"):
        rescore(out)
    written = publish(out)  # the numbers are still the numbers
    assert "no questions are shown" in written[1].read_text("utf-8")


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    out = run(POPE, tmp_path)
    results = json.loads((out / "results.json").read_text("utf-8"))
    results["settings"]["cof"]["square"] = False
    (out / "results.json").write_text(json.dumps(results), "utf-8")
    for act in (publish, rescore):
        with pytest.raises(CofError, match=r"of another version of cof.* 'square'"):
            act(out)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"about": {}}'])
def test_damaged_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, "utf-8")
    for command in ("report", "rescore"):
        result = CliRunner().invoke(app, [command, str(tmp_path)])
        assert result.exit_code == 2
        assert "run the evaluation again" in result.stderr
    with pytest.raises(CofError, match="no finished run"):
        find_runs(tmp_path / "empty")


def test_a_report_of_several_runs(tmp_path: Path) -> None:
    run(POPE, tmp_path / "a")
    plan = Plan(scenes=1, validation_scenes=1, num_objects=(4, 8), strengths=(2.0, 4.0, 8.0))
    run_effect(AnyEngine(), Settings(), plan, tmp_path / "study", console=QUIET)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text("utf-8")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "2 runs" in page
    for title in ("pope", "Does it help?", "What was run", "Settings tried"):
        assert title in page
        assert title in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    charts = sorted(path.name for path in (tmp_path / "report").glob("*.svg"))
    assert "study-scenes-kinds.svg" in charts
    assert page.count("<svg") == len(charts)
    for path in (tmp_path / "report").glob("*.csv"):
        assert len(path.read_text("utf-8").splitlines()) > 1


# The xlsx file for MMBench's server


def says(request: Request) -> str:
    if "bounding box" in request.prompt:
        return "[0.1, 0.1, 0.5, 0.5]"
    return "B. \x08looked" if request.highlight else "=A1"


def answered(folder: Path) -> MMBench:
    """A test split with rotations and without answers, after a run in `folder/out`."""
    rows = formats.mmbench_rows(rotations=True)
    for row in rows:
        del row["answer"]
        row |= {"source": "here", "comment": "", "split": "test"}
        row["question"] = row["question"].replace("so", "\x08so")
    task = MMBench(formats.tsv(folder / "test.tsv", rows))
    evaluation = Evaluation.compare_usual(Settings(), task)
    tasks = {"mmbench": task}
    evaluation.run(FakeEngine(says), tasks, folder / "out", console=QUIET)
    return task


def test_columns_and_predictions(tmp_path: Path) -> None:
    answered(tmp_path)
    arguments = ["submit", "mmbench", str(tmp_path / "out"), "--data", str(tmp_path / "test.tsv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for method, reply in (("plain", "=A1"), ("cof", "B. looked")):
        book = load_workbook(tmp_path / "out" / f"submission-{method}.xlsx")
        # cells are text, whatever they begin with
        assert {row[6].data_type for row in book.active.rows} == {"s"}
        head, *rows = [[cell.value for cell in row] for row in book.active.rows]
        assert rows[-1][1] == "Is it so?"
        assert head == ["index", "question", "A", "B", "C", "D", "prediction", "split"]
        assert [row[0] for row in rows] == [0, 10**6, 2 * 10**6, 3 * 10**6, 1, 1 + 10**6]
        assert {row[6] for row in rows} == {reply}
        assert rows[1][2:6] == ["blue", "green", "cyan", "red"]


@pytest.mark.parametrize("text", ["{", "[]", '{"methods": {}}', None])
def test_nothing_to_submit(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text, "utf-8")
    result = CliRunner().invoke(app, ["submit", "mmbench", str(tmp_path), "--data", "any.tsv"])
    assert result.exit_code == 2
    assert "run the evaluation again" in result.stderr or "cof eval mmbench" in result.stderr


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("test.tsv", "index\tquestion\tA\tB\timage\n", "holds no questions"),
        ("test.tsv", "index\tA\n0\tred\n", "lacks question, B;"),
        ("out/answers.jsonl", "", "Without an answer: 6, the first is question 0"),
        (
            "out/answers.jsonl",
            '{"id": "0", "method": "plain", "text": "A"}\n',
            "Without an answer: 5, the first is question 1000000",
        ),
    ],
)
def test_submissions_that_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    task = answered(tmp_path)
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(CofError, match=message):
        submit_mmbench(
            MMBench(task.path), tmp_path / "out" / "answers.jsonl", "plain", tmp_path / "a.xlsx"
        )
    assert not (tmp_path / "a.xlsx").exists()
