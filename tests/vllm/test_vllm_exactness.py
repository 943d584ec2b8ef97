"""vLLM's answers are those of the transformers engine, whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm.version")

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
