"""The measurement of torch.compile: both ways answer, in the same rounds."""

from __future__ import annotations

from torch._dynamo.utils import counters
from transformers import CompileConfig

from bench import compiled
from bench.machine import machine
from bench.shapes import SHAPES, make_engine


def test_both_ways_are_measured_round_by_round() -> None:
    before = counters["stats"]["unique_graphs"]
    engine = make_engine(SHAPES["smoke"], compiled.IMAGE_TOKENS, "float32", "cpu")
    # graphs are captured as ever, but no C++ compiler is needed
    records = compiled.measured(engine, 4, 2, CompileConfig(backend="eager"))
    assert [of["answer"] for of in records] == ["plain", "CoF, text"]
    for of in records:
        assert {way: len(runs) for way, runs in of["later"].items()} == {"usual": 2, "compiled": 2}
        assert of["first"].keys() == of["later"].keys()
    assert counters["stats"]["unique_graphs"] > before  # one of the two ways is compiled
    about = {**machine("cpu"), "shape": "smoke", "tokens": 4, "dtype": "float32"}
    assert compiled.table(about, records).count("\n| CoF, text | ") == 1
