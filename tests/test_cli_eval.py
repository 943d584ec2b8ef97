"""`cof eval NAME PATH` on tiny data in each benchmark's own format and a random model."""

from __future__ import annotations

from pathlib import Path

import formats
from typer.testing import CliRunner, Result

from cof import cli
from cof.cli import evaluate
from cof.eval.data import BENCHMARKS


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])


def test_every_benchmark_has_a_command() -> None:
    assert set(evaluate.BENCHMARKS) == set(BENCHMARKS)


def test_check(tmp_path: Path) -> None:
    formats.pope(tmp_path)
    good = invoke("pope", tmp_path, "--check")
    assert (good.exit_code, good.output) == (0, f"{tmp_path}: no problems.\n")
    (tmp_path / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    (tmp_path / "coco_pope_random.json").write_text("{}\n", "utf-8")
    bad = invoke("pope", tmp_path, "--check")
    assert bad.exit_code == 2
    assert "line 1: lacks text, label, image" in bad.stdout
    assert "there is no image" in bad.stdout
    assert "has 2 problems, listed above" in bad.stderr
    refused = invoke("pope", tmp_path, "--model", "nowhere")  # before the model is looked for
    assert refused.exit_code == 2
    assert "--check" in refused.stderr
    assert "nowhere" not in refused.stderr


def test_refusals(tmp_path: Path) -> None:
    path = formats.mme(tmp_path)
    for arguments, message in (
        ((path, "--rules", "mine"), "There are no rules 'mine'"),
        ((path, "--prompt-style", "mine"), "There is no prompt style 'mine'"),
        ((path, "--shard", "half"), "--shard takes i/n, such as 2/4, not 'half'."),
        ((tmp_path / "nowhere",), "There is no"),
    ):
        result = invoke("mme", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
