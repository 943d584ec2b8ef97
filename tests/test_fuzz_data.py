"""Damaged data and damaged results are refused in one sentence, and at once."""

from __future__ import annotations

import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cof.errors import CofError
from cof.eval.data import BENCHMARKS
from cof.eval.data.base import Benchmark
from cof.eval.data.vstar import VStar
from cof.eval.evaluate import Evaluation, questions_digest
from cof.eval.report.publish import publish, rescore, write_table
from cof.eval.rules import RULES
from cof.eval.store import write_questions
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark


def scenes(folder: Path) -> Path:
    write_benchmark(folder, "test", num_objects=(4,), scenes=1)
    return folder


def annotated(folder: Path) -> Path:
    line = {"id": "color/1", "region": [0.1, 0.2, 0.5, 0.6], "num_objects": 3, "single": True}
    formats.json_lines(formats.mme(folder) / "annotations.jsonl", [line])
    return folder


# a benchmark, its data set, and the file of it that is damaged
SOURCES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("pope", formats.pope, "coco_pope_popular.json"),
    ("pope", lambda f: formats.pope_parquet(f / "a.parquet"), "a.parquet"),
    ("mmbench", lambda f: formats.tsv(f / "dev.tsv", formats.mmbench_rows()), "dev.tsv"),
    ("hrbench", lambda f: formats.tsv(f / "4k.tsv", formats.hrbench_rows()), "4k.tsv"),
    ("mme", lambda f: formats.mme_parquet(f / "a.parquet"), "a.parquet"),
    ("mme", formats.mme, "color/1.txt"),
    ("mme", annotated, "annotations.jsonl"),
    ("vstar", formats.vstar, "direct_attributes/sa_1.json"),
    ("vstar", formats.vstar, "direct_attributes/sa_1.jpg"),
    ("textvqa", formats.textvqa_ocr, "TextVQA_0.5.1_val.json"),
    ("textvqa", formats.textvqa_ocr, "TextVQA_Rosetta_OCR_v0.2_val.json"),
    ("textvqa", lambda f: formats.textvqa_parquet(f / "val.parquet"), "val.parquet"),
    ("refcoco", formats.refcoco, "refcoco_val.jsonl"),
    ("scenes", scenes, "questions.jsonl"),
]
# fmt: off
ODD = [
    b"[" * 20_000, b"9" * 5000, b'"\\ud800"', b"NaN", b"1e999", b"-1", b"null", b"{}", b"[[]]",
    b'{"a": 1}', b'"' + b"a/" * 3000 + b'"', b'"\\u0000"', "²".encode(), b"\xff\xfe", b"\t", b"\n",
    b"",
]
# fmt: on


def damage(content: bytes, kind: str, seed: int) -> bytes:
    """Cut, with flipped bits, with something odd in it, or with a value replaced by that."""
    rng = random.Random(seed)
    place = rng.randrange(len(content) + 1)
    odd = rng.choice(ODD)
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    if kind == "insert":
        return content[:place] + odd + content[place:]
    marks = [n for n, byte in enumerate(content) if byte in b",:\t\n[]{}"]
    if not marks:
        return odd
    start = rng.choice(marks)
    end = next((n for n in marks if n > start), len(content))
    return content[: start + 1] + odd + content[end:]


KINDS = st.sampled_from(["cut", "flip", "insert", "replace"])
SEEDS = st.integers(0, 10**6)


def sentence(act: Callable[[], object]) -> str:
    """The refusal of an act, or nothing; every other error is a defect."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)  # fonts lack odd letters
            act()
    except CofError as error:
        return str(error)
    finally:
        assert time.perf_counter() - start < 10  # a second, on a machine without other work
    return ""


@pytest.mark.parametrize(("name", "make", "file"), SOURCES)
def test_damaged_data_are_problems(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str
) -> None:
    path = make(tmp_path)
    content = (tmp_path / file).read_bytes()
    style: Any = "llava-ocr" if name == "textvqa" else "llava"

    @settings(derandomize=True, database=None, max_examples=40, deadline=None)
    @given(kind=KINDS, seed=SEEDS)
    def check(kind: str, seed: int) -> None:
        (tmp_path / file).write_bytes(damage(content, kind, seed))
        task = BENCHMARKS[name]
        assert "\n\n" not in sentence(lambda: use(task(path, prompt_style=style), tmp_path / "out"))

    check()


def use(task: Benchmark, folder: Path) -> None:
    """What a run does with questions before and after it asks them."""
    if task.check():
        return
    questions_digest(task.examples)
    write_questions(task.examples, folder)
    for rules in RULES:
        task.figures(task.examples, {e.id: "yes" for e in task.examples}, rules)
    for example in task.examples:
        task.score(example, "A")


# Finished runs

FILES = "results.json answers.jsonl questions.jsonl run.json data.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    task = VStar(formats.vstar(folder / "data"))
    evaluation = Evaluation.compare_usual(Settings(), task, batch_size=4)
    results = evaluation.run(
        AnyEngine(), {"vstar": task}, folder / "out", console=Console(quiet=True)
    )
    write_table(results, folder / "out")
    return folder / "out"


@pytest.mark.parametrize("file", FILES.split())
@settings(derandomize=True, database=None, max_examples=8, deadline=None)
@given(kind=KINDS, seed=SEEDS)
def test_damaged_results_are_refused(run: Path, file: str, kind: str, seed: int) -> None:
    work = run.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(run, work)
    (work / file).write_bytes(damage((work / file).read_bytes(), kind, seed))
    for act in (rescore, publish):
        assert "\n\n" not in sentence(lambda act=act: act(work))  # type: ignore[misc]
    # nothing is written elsewhere, whatever the names in the files
    assert {path.name for path in run.parent.iterdir()} == {"data", "out", "work"}
