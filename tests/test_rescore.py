"""Scoring a finished run again: the same rules give the same files, without model or data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from rich.console import Console

from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.compare import Comparison
from cof.eval.data.base import Benchmark
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.textvqa import TextVQA
from cof.eval.data.vstar import VStar
from cof.eval.paper import parts, run_paper
from cof.eval.report.study import write_report
from cof.eval.report.summary import write_summary
from cof.eval.rescore import rescore
from cof.eval.study import Plan
from cof.eval.tiny import run_study
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.types import Request

QUIET = Console(quiet=True)
SETTINGS = Settings(expand=1.5, strength=4.0)
DATA: dict[type[Benchmark], Any] = {
    MME: formats.mme,
    POPE: formats.pope,
    MMBench: lambda folder: formats.tsv(folder / "dev.tsv", formats.mmbench_rows()),
    TextVQA: formats.textvqa,
    VStar: formats.vstar,
    RefCOCO: formats.refcoco,
}


def says(request: Request) -> str:
    """A box for some, and answers that differ with the prompt's length and the highlight."""
    if "bounding box" in request.prompt or "Where?" in request.prompt:
        return "[0.25, 0.25, 0.5, 0.5]" if len(request.prompt) % 2 else "I see none."
    replies = ("Yes.", "no", "A", "(B) red", "I know", "")
    return replies[(len(request.prompt) + bool(request.highlight)) % len(replies)]


def ran(reader: type[Benchmark], data: Path, out: Path, **options: Any) -> Benchmark:
    task = reader(DATA[reader](data), **options)
    comparison = Comparison.usual(SETTINGS, task, batch_size=3)
    write_summary(comparison.run(FakeEngine(says), task, out, console=QUIET), out)
    return task


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def spoiled(out: Path) -> None:
    """What rescoring is to write anew, made useless but for what it reads of it."""
    for name in ("table.md", "metrics.csv", "lines.jsonl"):
        (out / name).write_text("", "utf-8")
    results = json.loads((out / "results.json").read_text("utf-8"))
    results |= {"metrics": {}, "groups": {}, "changed": {}, "grounding": {}, "seconds": {}}
    (out / "results.json").write_text(json.dumps(results), "utf-8")


@pytest.mark.parametrize("reader", DATA, ids=lambda reader: reader.name)
def test_the_same_rules_give_the_same_files(reader: type[Benchmark], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran(reader, tmp_path / "data", out)
    shutil.rmtree(tmp_path / "data")
    before = files(out)
    spoiled(out)
    assert rescore(out) == [out]
    assert files(out) == before


def test_other_rules_give_what_a_run_under_them_gives(tmp_path: Path) -> None:
    ran(POPE, tmp_path / "data", tmp_path / "one")
    ran(POPE, tmp_path / "data", tmp_path / "two", rules="vlmevalkit")
    wanted = files(tmp_path / "two")
    rescore(tmp_path / "one", "vlmevalkit")
    found = files(tmp_path / "one")
    for name in ("table.md", "metrics.csv"):
        assert found[name] == wanted[name]
    kept = {**json.loads(wanted["results.json"]), "seconds": None}
    assert {**json.loads(found["results.json"]), "seconds": None} == kept
    rescore(tmp_path / "one", "official")
    assert files(tmp_path / "one")["table.md"] != wanted["table.md"]


def test_shards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = ran(MMBench, tmp_path / "data", out, shard=(2, 2))
    before = files(out)
    spoiled(out)
    rescore(out)
    assert files(out) == before
    for shard in ((1, 2), (1, 1)):
        part = replace(task, shard=shard)
        comparison = Comparison.usual(SETTINGS, part, batch_size=3)
        results = comparison.run(FakeEngine(says), part, out, console=QUIET)
        write_summary(results, out)
    before = files(out)
    rescore(out)
    assert files(out) == before


def test_a_line_holds_all_that_is_known_of_a_question(tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = ran(VStar, tmp_path / "data", out)
    lines = [json.loads(line) for line in (out / "lines.jsonl").read_text("utf-8").splitlines()]
    assert [line["question"]["id"] for line in lines] == [e.id for e in task.examples]
    line, example = lines[0], task.examples[0]
    assert line["question"]["prompt"] == example.prompt
    assert line["question"]["answer"] == example.answer
    assert line["question"]["region"] == list(example.region or ())
    assert "bounding box" in line["grounding"]["prompt"]
    assert line["grounding"]["text"] in ("[0.25, 0.25, 0.5, 0.5]", "I see none.")
    assert line["grounding"]["found"] == bool(line["grounding"]["boxes"])
    assert list(line["answers"]) == ["plain", "whole", "cof", "oracle", "random"]
    cof = line["answers"]["cof"]
    assert cof["settings"] == "cof lambda=4 alpha=1.5 scope=all"
    for timed in (line, line["grounding"], *line["answers"].values()):
        assert timed["seconds"] >= 0
    assert line["rules"] == "official"
    assert {"model", "weights", "dtype", "versions"} <= line["about"].keys()
    for one in lines:  # the answers under the run's rules can be checked from the line alone
        for said in one["answers"].values():
            score = task.score(task.examples[lines.index(one)], said["text"])
            assert (said["parsed"], said["right"]) == (score.parsed, score.right)


def test_the_papers_tables(tmp_path: Path) -> None:
    formats.mme(tmp_path / "data" / "mme")
    formats.pope(tmp_path / "data" / "pope")
    formats.tsv(tmp_path / "data" / "mmbench" / "dev.tsv", formats.mmbench_rows())
    engine = FakeEngine(says, name="llava-hf/llava-1.5-7b-hf")
    out = tmp_path / "out"
    run_paper(engine, SETTINGS, parts(tmp_path / "data"), out, console=QUIET)
    before = files(out)
    assert before["paper.json"]
    spoiled(out / "mme")
    (out / "paper.md").write_text("", "utf-8")
    assert rescore(out) == [out / "mmbench-dev", out / "mme", out / "pope"]
    assert files(out) == before


def test_the_embedded_benchmarks_study(tmp_path: Path) -> None:
    plan = replace(Plan.quick(), scenes=1, validation_scenes=1, num_objects=(4, 8), batch_size=20)
    engine = FakeEngine(says, dialect=TINY)
    write_report(run_study(engine, plan, tmp_path, console=QUIET), tmp_path)
    before = files(tmp_path)
    shutil.rmtree(tmp_path / "work" / "test" / "images")
    results = json.loads(before["results.json"])
    for name in ("choice", "test", "seconds"):
        results[name] = {}
    (tmp_path / "results.json").write_text(json.dumps(results), "utf-8")
    (tmp_path / "lines.jsonl").unlink()
    rescore(tmp_path)
    found = files(tmp_path)
    for name in ("results.json", "table.md", "lines.jsonl"):
        assert found[name] == before[name]
    with pytest.raises(CofError, match="one rule set, exact match"):
        rescore(tmp_path, "llava")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CofError, match="no finished run in"):
        rescore(tmp_path)
    out = tmp_path / "out"
    ran(MME, tmp_path / "data", out)
    about = (out / "run.json").read_text("utf-8")
    (out / "run.json").write_text(about.replace('"seed": 0', '"seed": 1'), "utf-8")
    with pytest.raises(CofError, match="of another run than the results"):
        rescore(out)
    (out / "run.json").write_text(about, "utf-8")
    whole = (out / "answers.jsonl").read_text("utf-8").splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join(whole[1:]), "utf-8")
    with pytest.raises(CofError, match="1 questions lack an answer of `cof"):
        rescore(out)
    (out / "answers.jsonl").unlink()
    with pytest.raises(CofError, match=r"There is no .*answers.jsonl"):
        rescore(out)
    (out / "questions.jsonl").write_text('{"id": 1}\n', "utf-8")
    with pytest.raises(CofError, match="line 1 is no question"):
        rescore(out)
    (out / "questions.jsonl").unlink()
    with pytest.raises(CofError, match=r"There is no .*questions.jsonl"):
        rescore(out)
    (out / "results.json").write_text("{", "utf-8")
    with pytest.raises(CofError, match="is damaged"):
        rescore(out)
