"""The paper's tables again: its figures, rows and sums; a whole run on generated data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import FakeEngine
from models import checkpoint
from rich.console import Console
from typer.testing import CliRunner, Result

from cof.cli import app
from cof.errors import CofError
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.paper import (
    FIGURES,
    PARITY,
    PUBLISHED,
    collect_paper,
    find_parts,
    paper_methods,
    published,
    run_paper,
)
from cof.eval.report.publish import write_table
from cof.presets import PRESETS, default_settings
from cof.settings import Settings
from cof.types import Request
from lab.studies.synthetic import write_synthetic

SUMS = {  # as printed in table I
    ("LLaVA-1.5-7B", "plain"): 2184.0,
    ("LLaVA-1.5-7B", "cof"): 2240.6,
    ("LLaVA-1.5-13B", "plain"): 2219.2,
    ("LLaVA-1.5-13B", "cof"): 2253.2,
    ("InstructBLIP-13B", "plain"): 1807.2,
    ("InstructBLIP-13B", "cof"): 1861.5,
}


def test_published_figures_add_up() -> None:
    assert set(PUBLISHED) == {row.model for row in PRESETS["paper"]}
    for (model, row), total in SUMS.items():
        assert len(PUBLISHED[model][row]) == len(FIGURES)
        assert sum(PUBLISHED[model][row]) == pytest.approx(total)
    assert published("llava-hf/llava-1.5-13b-hf") is PUBLISHED["LLaVA-1.5-13B"]
    assert published("/models/instructblip-vicuna-13b") is PUBLISHED["InstructBLIP-13B"]
    assert published("somebody/else") == {}


def test_rows() -> None:
    name = "llava-hf/llava-1.5-13b-hf"
    llava = paper_methods(default_settings(name), name)
    assert list(llava) == ["plain", "whole", "cof", PARITY]
    assert llava["cof"].settings == default_settings(name)
    assert llava[PARITY].settings.released
    assert llava[PARITY].settings.option("strength") == 4.5
    assert PARITY not in paper_methods(Settings(), "Salesforce/instructblip-vicuna-13b")
    other = paper_methods(Settings(expand=1.5, strength=8.0), "mine")
    parity = other[PARITY].settings
    assert (parity.expand, parity.option("strength"), parity.released) == (1.5, 8.0, True)
    no_lambda = paper_methods(Settings(focus="crop"), "mine")
    assert no_lambda[PARITY].settings.option("strength") == 2.0


def data(folder: Path) -> Path:
    """All four parts in the real formats; the test split has no answers, like the real one."""
    formats.mme(folder / "MME_Benchmark_release_version")
    formats.pope(folder / "POPE")
    mmbench = formats.mmbench_rows()
    formats.tsv(folder / "mmbench" / "mmbench_dev_20230712.tsv", mmbench)
    for row in mmbench:
        row["answer"] = ""
    formats.tsv(folder / "mmbench" / "mmbench_test_20230712.tsv", mmbench)
    return folder


def right(request: Request) -> str:
    if "bounding box" in request.prompt:
        return "[0.1, 0.1, 0.5, 0.5]"
    if "Is it red" in request.prompt or "Is it you" in request.prompt or "One?" in request.prompt:
        return "yes"
    return "red" if "A." in request.prompt else "no"


def test_ours_beside_the_papers(tmp_path: Path) -> None:
    found = find_parts(data(tmp_path / "data"))
    assert list(found) == ["mme", "mmbench-dev", "mmbench-test", "pope"]
    engine = FakeEngine(right, name="llava-hf/llava-1.5-7b-hf")
    settings = default_settings(engine.name)
    out = tmp_path / "out"
    results = run_paper(engine, settings, found, out, console=Console(quiet=True))
    numbers = collect_paper(results)
    assert numbers["ours"]["plain"]["MME-P"] == 400
    assert numbers["ours"]["plain"]["MME-C"] == 200
    assert "MMBench test" not in numbers["ours"]["plain"]  # only its server knows
    assert "sum" not in numbers["ours"]["plain"]
    assert numbers["published"]["cof"]["sum"] == 2240.6
    table = write_table(results, out)
    assert "| plain, ours | 400.0 | 200.0 | 0.0 | - |" in table
    assert "| plain, paper | 1510.7 | 285.0 | 64.3 | 66.4 | 87.3 | 86.1 | 84.2 | 2184.0 |" in table
    assert "mmbench-dev: intervals" in table
    assert "mmbench-test: intervals" not in table
    assert "| plain, difference | -1110.7 | -85.0 | -64.3 | - |" in table
    for part in ("mme", "mmbench-dev", "mmbench-test", "pope"):
        assert (out / part / "answers.jsonl").is_file()
    lights = [r.highlight for call, _ in engine.calls for r in call if r.highlight]
    assert {light.cells for light in lights} == {"coverage", "corners"}
    assert {light.strength for light in lights} == {2.0}


def test_the_english_split_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("MMBench_DEV_CN.tsv", "MMBench_DEV_EN.tsv", "mmbench/mmbench_test_cn_2023.tsv"):
        formats.tsv(tmp_path / name, formats.mmbench_rows())
    found = find_parts(tmp_path)
    assert found["mmbench-dev"] == MMBench(tmp_path / "MMBench_DEV_EN.tsv")
    assert "mmbench-test" not in found


def test_archives_beside_the_data_are_passed_over(tmp_path: Path) -> None:
    formats.mme(tmp_path / "mme_release")
    for archive in ("mme.zip", "MME.tar.gz"):
        (tmp_path / archive).touch()
    assert find_parts(tmp_path)["mme"] == MME(tmp_path / "mme_release")
    formats.mme_parquet(tmp_path / "mme-00000-of-00001.parquet")
    assert find_parts(tmp_path)["mme"] == MME(tmp_path / "mme-00000-of-00001.parquet")


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(CofError, match="There is no folder"):
        find_parts(tmp_path / "nowhere")
    with pytest.raises(CofError, match=r"None of the paper's data is there.*mme/: the release"):
        find_parts(tmp_path)


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["reproduce", "paper", *map(str, arguments)])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, num_objects=(4,), scenes=1)
    return folder


def llava() -> tuple[str, ...]:
    model = str(checkpoint("llava"))
    return "--model", model, "--batch-size", "4", "--max-new-tokens", "2", "--limit", "4"


def test_reproduce_on_generated_data(synthetic: Path, tmp_path: Path) -> None:
    result = invoke("--data", synthetic, *llava(), "--out", tmp_path)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["paper"] == {"published": {}, "missing": ["mmbench-test"]}
    assert "mmbench-test is not there and left out: put it at" in result.output
    assert list(results["methods"]) == ["plain", "whole", "cof", PARITY]
    assert (tmp_path / "table.md").read_text("utf-8") in result.output
    assert "The paper has no figures for this model." in result.output


def test_dry_run(synthetic: Path, tmp_path: Path) -> None:
    result = invoke("--data", synthetic, *llava(), "--dry-run", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "mmbench-test is not there and left out: put it at" in result.output
    assert "pope: 18 questions in" in result.output
    assert "Weights: 0.00 GiB in torch.float32 on cpu." in result.output
    assert "pope: about" in result.output
    assert "In all about" in result.output
    assert not (tmp_path / "out").exists()
    (tmp_path / "data").mkdir()
    for more in ((), ("--dry-run",)):
        empty = invoke("--data", tmp_path / "data", *llava(), *more)
        assert empty.exit_code == 2
        assert "None of the paper's data is there" in empty.stderr
    unread = invoke("--data", tmp_path / "data", "--model", tmp_path / "none")
    assert "None of the paper's data is there" in unread.stderr  # before the model is looked for
    absent = invoke("--data", synthetic, "--model", tmp_path / "none", "--dry-run")
    assert absent.exit_code == 2
    assert "No model could be loaded" in absent.stderr
    assert "left out: put it at" in absent.stderr
