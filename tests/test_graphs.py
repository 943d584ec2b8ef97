"""Short passes in buffers that do not move give the same answers, and can be captured.

What holds on CPUs: a pass that is replayed reads nothing but its inputs and the buffers
(`Replayed`), and torch.compile sees one graph in each, which no question compiles anew. That a GPU
replays them is held where there is one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import picture
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import assert_same, engine, folder

from cof.engines.transformers import graphs
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.graphs import FixedCache, Graphs, Run
from cof.errors import CofWarning, OutOfMemory
from cof.geometry.regions import Region
from cof.prompting.dialects import LLAVA
from cof.types import Decoding, Highlight, Request

BOX = Region(boxes=((0.4, 0.6, 0.6, 0.9),))
LOWER = Region(boxes=((0.1, 0.8, 0.5, 1.0), (0.7, 0.7, 0.9, 0.9)))
IMAGES = [picture((60, 40)), picture((40, 90), 1), picture((64, 64), 2)]
PLAIN = [None, None, None]
TEXT = [Highlight(BOX, 8.0, "text"), None, Highlight(LOWER, 0.2, "text")]
ALL = [Highlight(LOWER, 8.0), Highlight(BOX, 3.0, "text"), None]
CHOSEN = [Highlight(BOX, 30.0, "text", layers=(1,)), None, Highlight(LOWER, 9.0, heads=(0, 1))]
PROVEN = ["gemma3", "internvl", "llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl"]
QUESTIONS = ("which digit?", "hi", "a longer question about it")
SHORT, BY_TEMPLATE = Decoding(max_new_tokens=4), Decoding(box_template=LLAVA.box_template)


class Replayed:
    """As a CUDA graph: the first pass again, at its addresses, with new numbers in its inputs."""

    def __init__(self, run: Run, cache: FixedCache, *tensors: Tensor) -> None:
        self.run, self.cache, self.inputs = run, copy(cache), [of.clone() for of in tensors]
        self.cache.layers = list(map(copy, cache.layers))  # the cache itself may move

    def __call__(self, cache: FixedCache, *tensors: Tensor) -> Tensor:
        for ours, given in zip(self.inputs, tensors, strict=True):
            ours.copy_(given)
        return self.run(self.cache, *self.inputs)


def compiled(run: Run, *_: Any) -> Any:
    return torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=False)


def with_graphs(name: str, capture: Callable[..., Run]) -> TransformersEngine:
    made = TransformersEngine.from_pretrained(folder(name))
    made.adapter = replace(made.adapter, graphs=Graphs(made.model, capture))
    return made


def requests(images: Any, highlights: Any) -> list[Request]:
    return list(map(Request, images, QUESTIONS, highlights))


def steps_of(made: TransformersEngine) -> dict[Any, Any]:
    assert made.adapter.graphs is not None
    return made.adapter.graphs.steps


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=64):  # one for each kind of pass
        yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("prefill", [True, False], ids=["prefix", "whole"])
@pytest.mark.parametrize("name", [*PROVEN, "gemma4", "paligemma"])
def test_boxes_and_answers_stay_the_same(
    name: str, prefill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "BLOCK", 32)  # buffers are moved as in long answers
    stock, made = engine(name), with_graphs(name, Replayed)
    ours, theirs = (each.encode(IMAGES, prefill=prefill) for each in (made, stock))
    for highlights, decoding in itertools.product((PLAIN, TEXT, ALL, CHOSEN), (SHORT, BY_TEMPLATE)):
        expected = stock.generate(requests(theirs, highlights), decoding)
        for _ in range(2):
            assert_same(made.generate(requests(ours, highlights), decoding), expected)
        assert_same(made.generate(requests(ours, highlights)[:1], decoding), expected[:1])
    assert any(steps_of(made).values())


class Operations(TorchDispatchMode):
    """The names of all that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PROVEN)
def test_a_pass_waits_for_nothing_and_takes_nothing_from_the_host(name: str) -> None:
    names: set[str] = set()

    def watched(run: Run, cache: FixedCache, *tensors: Tensor) -> Run:
        with Operations() as operations:
            run(cache, *tensors)
        names.update(operations.names)
        return run

    made = with_graphs(name, watched)
    images = made.encode(IMAGES, prefill=True)
    for highlights, decoding in itertools.product((PLAIN, TEXT), (SHORT, BY_TEMPLATE)):
        for _ in range(2):
            made.generate(requests(images, highlights), decoding)
    assert "aten::index_copy_" in names
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
    assert not names & (
        waits | {"aten::lift_fresh", "aten::lift_fresh_copy", "aten::scalar_tensor"}
    )


@pytest.mark.parametrize("name", PROVEN)
def test_a_pass_is_one_graph(name: str) -> None:
    stock, made = engine(name), with_graphs(name, compiled)
    ours, theirs = (each.encode(IMAGES[:1], prefill=True) for each in (made, stock))
    for decoding in (SHORT, BY_TEMPLATE):
        expected = stock.generate(requests(theirs, TEXT)[:1], decoding)
        for _ in range(3):
            assert_same(made.generate(requests(ours, TEXT)[:1], decoding), expected)
    assert counters["stats"]["unique_graphs"] == len(steps_of(made)) >= 3


def test_no_question_compiles_anew() -> None:
    stock, made = engine("llava"), with_graphs("llava", compiled)
    ours, theirs = (each.encode(IMAGES, prefill=True) for each in (made, stock))
    rng = random.Random(0)

    def ask(number: int) -> None:
        rows, box = 1 + number % 2 * 2, number % 4 > 1
        questions = ["".join(rng.choices("abc ", k=rng.randint(9, 18))) for _ in range(rows)]
        x, y, strength = rng.uniform(0, 0.6), rng.uniform(0, 0.6), rng.uniform(2, 30)
        where = Highlight(Region(boxes=((x, y, x + 0.3, y + 0.3),)), strength, "text")
        decoding = BY_TEMPLATE if box else Decoding(max_new_tokens=rng.randint(2, 9))
        replies = [
            each.generate([Request(next(images), asked, where) for asked in questions], decoding)
            for each, images in ((made, iter(ours)), (stock, iter(theirs)))
        ]
        assert_same(*replies)

    for number in range(12):
        ask(number)
    known = counters["stats"]["unique_graphs"], len(steps_of(made))
    for number in range(50):
        ask(number)
    assert (counters["stats"]["unique_graphs"], len(steps_of(made))) == known


def test_a_thread_that_finds_the_buffers_taken_runs_as_ever() -> None:
    stock, made = engine("llava"), with_graphs("llava", Replayed)
    expected = stock.generate(requests(IMAGES, TEXT), BY_TEMPLATE)
    with ThreadPoolExecutor(1) as thread, made._running():
        reply = thread.submit(made.generate, requests(IMAGES, TEXT), BY_TEMPLATE)
        assert_same(reply.result(), expected)
        assert not steps_of(made)
    assert_same(made.generate(requests(IMAGES, TEXT), BY_TEMPLATE), expected)
    assert steps_of(made)


def test_what_is_read_of_the_image_stays_the_same() -> None:
    stock, made = engine("llava"), with_graphs("llava", Replayed)
    ours, theirs = (each.encode(IMAGES, prefill=True) for each in (made, stock))
    for _ in range(2):  # the second time prefixes are known
        one, other = (
            each.image_attentions(requests(images, TEXT))
            + each.phrase_similarities(requests(images, TEXT), QUESTIONS)
            for each, images in ((made, ours), (stock, theirs))
        )
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_another_attention_of_the_users_stays() -> None:
    made = with_graphs("llava", Replayed)
    made.model.set_attn_implementation({"text_config": "eager"})
    assert_same(
        made.generate(requests(IMAGES, PLAIN), SHORT),
        engine("llava").generate(requests(IMAGES, PLAIN), SHORT),
    )
    assert made.model.config.text_config._attn_implementation == "eager"
    assert not steps_of(made)


def test_memory_is_freed_where_it_ran_out() -> None:
    made = with_graphs("llava", Replayed)
    made.generate(requests(IMAGES, TEXT), SHORT)
    assert steps_of(made)
    with pytest.raises(OutOfMemory), made._running():
        raise MemoryError
    assert not steps_of(made)
    made.generate(requests(IMAGES, TEXT), SHORT)


def test_a_capture_that_fails_is_a_note() -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("operation not permitted\nwhen capturing")

    stock, made = engine("llava"), with_graphs("llava", fail)
    expected = stock.generate(requests(IMAGES, TEXT), SHORT)
    with pytest.warns(CofWarning, match=r"as ever \(operation not permitted\)") as notes:
        replies = [made.generate(requests(IMAGES, TEXT), SHORT) for _ in range(3)]
    assert len(notes) == 1
    for each in replies:
        assert_same(each, expected)


def test_graphs_are_for_gpus() -> None:
    with pytest.warns(CofWarning, match="No CUDA graphs"):
        made = TransformersEngine.from_pretrained(folder("llava"), cuda_graphs=True)
    assert made.adapter.graphs is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PROVEN)
def test_a_gpu_replays_them(name: str) -> None:
    made, stock = (
        TransformersEngine.from_pretrained(folder(name), dtype="float32", cuda_graphs=wanted)
        for wanted in (True, False)
    )
    ours, theirs = (each.encode(IMAGES, prefill=True) for each in (made, stock))
    for highlights, decoding in itertools.product((PLAIN, TEXT, ALL), (SHORT, BY_TEMPLATE)):
        expected = stock.generate(requests(theirs, highlights), decoding)
        for _ in range(3):
            assert_same(made.generate(requests(ours, highlights), decoding), expected, 1e-3)
    assert any(steps_of(made).values())
