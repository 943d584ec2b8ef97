"""vLLM's answers are those of the transformers engine, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from helpers import (
    HIGHLIGHTS,
    assert_equal,
    mixed_requests,
    reference_engine,
    vllm_engine,
)
from PIL import Image

from cof.engines.transformers.engine import TransformersEngine
from cof.engines.vllm.engine import VllmEngine
from cof.tiny import checkpoint_path
from cof.types import Decoding, Request


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    return reference_engine(checkpoint("llava"))


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    return vllm_engine(checkpoint("llava"))


def test_mixed_batch(engine: VllmEngine, reference: TransformersEngine) -> None:
    assert_equal(engine, reference, mixed_requests())
    assert_equal(engine, reference, mixed_requests()[::-1])  # now from the prefix cache


def test_images_of_other_shapes_are_padded(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    assert_equal(engine, reference, mixed_requests((112, 60), images=1))


def test_chunked_prefill(reference: TransformersEngine) -> None:
    engine = vllm_engine(checkpoint("llava"), max_num_batched_tokens=32, max_num_seqs=8)
    assert_equal(engine, reference, mixed_requests())


def test_preemption(reference: TransformersEngine) -> None:
    engine = vllm_engine(
        checkpoint("llava"), num_gpu_blocks_override=24, block_size=32, max_model_len=160
    )
    assert_equal(engine, reference, mixed_requests(), Decoding(max_new_tokens=40))
    assert preemptions(engine) > 0


def preemptions(engine: VllmEngine) -> int:
    return sum(m.value for m in engine.client.llm.get_metrics() if m.name == "vllm:num_preemptions")


def test_embedded_model() -> None:
    folder = checkpoint_path("tiny-early")
    image = Image.open(folder.parents[1] / "demo" / "scene-1.png").convert("RGB")
    requests = [Request(image, "What digit is on the star?", light) for light in HIGHLIGHTS]
    assert_equal(vllm_engine(folder), reference_engine(folder), requests)


def test_tensor_parallel(reference: TransformersEngine) -> None:
    engine = vllm_engine(
        checkpoint("llava"), tensor_parallel_size=2, distributed_executor_backend="mp"
    )
    assert_equal(engine, reference, mixed_requests())
