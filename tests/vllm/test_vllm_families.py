"""Every family that the engine takes: the bias lands where the transformers engine puts it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from helpers import (
    assert_equal,
    assert_same_maps,
    mixed_requests,
    reference_engine,
    show_the_same,
    vllm_engine,
)
from zoo import zoo

from cof.engines.vllm.engine import MODEL_TYPES
from cof.errors import CofError

SIZES = {
    "llava_next": (112, 56),
    "llava_onevision": (112, 60),
    "qwen2_vl": (112, 56),
    "qwen2_5_vl": (112, 56),
    "qwen3_vl": (128, 64),
    "internvl": (112, 56),
    "smolvlm": (168, 112),
    "idefics3": (168, 112),
    "gemma3": (112, 56),
}
"""Images of several tiles, or of rows and columns that differ."""


def test_all_are_tested() -> None:
    assert {"llava", *SIZES} == set(MODEL_TYPES)


@pytest.mark.parametrize("name", SIZES)
def test_family(name: str) -> None:
    engine = vllm_engine(checkpoint(name), max_model_len=1024)
    reference = reference_engine(checkpoint(name))
    show_the_same(reference, engine)
    requests = mixed_requests(SIZES[name], images=1)
    assert_equal(engine, reference, requests)
    assert_same_maps(engine, reference, requests)


def test_others_are_refused() -> None:
    with pytest.raises(CofError, match=r"not proven for models of type 'paligemma'.*transformers"):
        vllm_engine(zoo("paligemma"))


def test_images_that_look_ahead_are_never_cut() -> None:
    """An image has 20 tokens, and steps have 24: not enough beside five answers being written."""
    folder, small = checkpoint("gemma3"), {"block_size": 32, "max_model_len": 256}
    engine = vllm_engine(folder, max_num_batched_tokens=24, max_num_seqs=6, **small)
    reference = reference_engine(folder)
    show_the_same(reference, engine)
    requests = mixed_requests(SIZES["gemma3"])
    assert_equal(engine, reference, requests)
    assert_equal(engine, reference, requests[::-1])
