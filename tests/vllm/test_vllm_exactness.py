"""vLLM's answers are those of the transformers engine, whatever else is in the batch."""

from __future__ import annotations

from platform import machine
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version")

import torch
from checkpoints import checkpoint
from helpers import (
    assert_equal,
    assert_same_maps,
    metric,
    mixed_requests,
    reference_engine,
    vllm_engine,
)

from cof.engines.transformers.engine import TransformersEngine
from cof.engines.vllm import cpu
from cof.types import Decoding


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    return reference_engine(checkpoint("llava"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 32, "max_num_seqs": 8},
        {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
    ],
    ids=["usual", "chunked prefill", "tensor parallel"],
)
def test_mixed_batch(options: dict[str, Any], reference: TransformersEngine) -> None:
    engine = vllm_engine(checkpoint("llava"), **options)
    assert_equal(engine, reference, mixed_requests())
    assert_equal(engine, reference, mixed_requests()[::-1])  # now from the prefix cache
    assert_same_maps(engine, reference, mixed_requests())


def test_images_of_other_shapes_are_padded(reference: TransformersEngine) -> None:
    engine = vllm_engine(checkpoint("llava"))
    assert_equal(engine, reference, mixed_requests((112, 60), images=1))


def test_preemption(reference: TransformersEngine) -> None:
    engine = vllm_engine(
        checkpoint("llava"), num_gpu_blocks_override=24, block_size=32, max_model_len=160
    )
    assert_equal(engine, reference, mixed_requests(), Decoding(max_new_tokens=40))
    assert metric(engine, "vllm:num_preemptions") > 0


@pytest.mark.skipif(machine() != "x86_64", reason="the kernels of x86, which write so on any of it")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", ["vec", "amx"])
@pytest.mark.parametrize("order", [[4, 0, 2], [1, 2, 3]], ids=str)
def test_the_cpu_cache_is_read_back(order: list[int], isa: str, dtype: torch.dtype) -> None:
    size, heads, width, blocks = 32, 3, 64, torch.tensor(order)
    keys, values = torch.randn(2, len(blocks) * size, heads, width).to(dtype)
    cache = torch.zeros(5, heads, size, 2 * width, dtype=dtype)
    slots = (blocks[:, None] * size + torch.arange(size)).flatten()
    parts = cache.view(5, heads, 2 * size, width).chunk(2, dim=2)
    cpu._custom_ops.cpu_attn_reshape_and_cache(keys, values, *parts, slots, isa)
    layer = SimpleNamespace(isa=isa)
    read = cpu.BiasedCPUAttention().read_cache(layer, cache, cpu.as_run(blocks))
    assert isinstance(cpu.as_run(blocks), slice) == (order[0] == 1)
    for found, written in zip(read, (keys, values), strict=True):
        assert torch.equal(found, written.transpose(0, 1))
