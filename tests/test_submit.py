"""The xlsx file for MMBench's server."""

from __future__ import annotations

from pathlib import Path

import formats
import pytest
from fakes import FakeEngine
from openpyxl import load_workbook
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.errors import CofError
from cof.eval.data.mmbench import MMBench, submit_mmbench
from cof.eval.evaluate import Evaluation
from cof.settings import Settings
from cof.types import Request


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
    evaluation.run(FakeEngine(says), tasks, folder / "out", console=Console(quiet=True))
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
def test_no_finished_run(tmp_path: Path, text: str | None) -> None:
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
def test_refusals(tmp_path: Path, file: str, text: str, message: str) -> None:
    task = answered(tmp_path)
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(CofError, match=message):
        submit_mmbench(
            MMBench(task.path), tmp_path / "out" / "answers.jsonl", "plain", tmp_path / "a.xlsx"
        )
    assert not (tmp_path / "a.xlsx").exists()
