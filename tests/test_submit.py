"""The xlsx file for MMBench's server."""

from __future__ import annotations

from pathlib import Path

import formats
import pytest
from openpyxl import load_workbook
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.data.mmbench import MMBench
from cof.eval.evaluate import Evaluation
from cof.eval.submit import submit_mmbench
from cof.settings import Settings
from cof.types import Request


def says(request: Request) -> str:
    if "bounding box" in request.prompt:
        return "[0.1, 0.1, 0.5, 0.5]"
    return "B. \x08looked" if request.highlight else "A"


def answered(folder: Path) -> MMBench:
    """A test split with rotations and without answers, after a run in `folder/out`."""
    rows = formats.mmbench_rows(rotations=True)
    for row in rows:
        del row["answer"]
        row |= {"source": "here", "comment": "", "split": "test"}
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
    for method, reply in (("plain", "A"), ("cof", "B. looked")):
        book = load_workbook(tmp_path / "out" / f"submission-{method}.xlsx")
        head, *rows = [[cell.value for cell in row] for row in book.active.rows]
        assert head == ["index", "question", "A", "B", "C", "D", "prediction", "split"]
        assert [row[0] for row in rows] == [0, 10**6, 2 * 10**6, 3 * 10**6, 1, 1 + 10**6]
        assert {row[6] for row in rows} == {reply}
        assert rows[1][2:6] == ["blue", "green", "cyan", "red"]
    wrong = CliRunner().invoke(app, [*arguments, "--method", "mine"])
    assert wrong.exit_code == 2
    assert "There is no method 'mine'" in wrong.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"methods": {}}', None])
def test_no_finished_run(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text, "utf-8")
    arguments = ["submit", "mmbench", str(tmp_path), "--data", "any.tsv"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "run the evaluation again" in result.stderr or "cof eval mmbench" in result.stderr


def test_cells_are_text_whatever_they_begin_with(tmp_path: Path) -> None:
    task = answered(tmp_path)
    answers, out = tmp_path / "out" / "answers.jsonl", tmp_path / "a.xlsx"
    text = answers.read_text("utf-8").replace('"text": "A"', '"text": "=A1"')
    answers.write_text(text, "utf-8")
    data = task.path.read_text("utf-8").replace("Is it so?", "Is it\x08 so?")
    task.path.write_text(data, "utf-8")
    submit_mmbench(task, answers, "plain", out)
    _, *rows = list(load_workbook(out).active.rows)
    assert {(row[6].value, row[6].data_type) for row in rows} == {("=A1", "s")}
    assert rows[-1][1].value == "Is it so?"
    assert rows[-1][0].value == 1 + 10**6


def test_data_of_another_kind_is_refused(tmp_path: Path) -> None:
    task = answered(tmp_path)
    arguments = (tmp_path / "out" / "answers.jsonl", "plain", tmp_path / "a.xlsx")
    head = task.path.read_text("utf-8").partition("\n")[0]
    task.path.write_text(f"{head}\n", "utf-8")
    with pytest.raises(CofError, match="holds no questions"):
        submit_mmbench(MMBench(task.path), *arguments)
    task.path.write_text("index\tA\n0\tred\n", "utf-8")
    with pytest.raises(CofError, match="lacks the columns question, B"):
        submit_mmbench(MMBench(task.path), *arguments)


def test_refusals(tmp_path: Path) -> None:
    task = answered(tmp_path)
    out, answers = tmp_path / "a.xlsx", tmp_path / "out" / "answers.jsonl"
    with pytest.raises(CofError, match="There are no answers"):
        submit_mmbench(task, tmp_path / "none.jsonl", "plain", out)
    with pytest.raises(CofError, match="holds no method 'mine', but plain, prompt x attention"):
        submit_mmbench(task, answers, "mine", out)
    lines = answers.read_text("utf-8").splitlines()
    answers.write_text("\n".join(line for line in lines if '"1000001"' not in line) + "\n", "utf-8")
    with pytest.raises(CofError, match="Without an answer: 1, the first is question 1000001"):
        submit_mmbench(task, answers, "plain", out)
    assert not out.exists()
