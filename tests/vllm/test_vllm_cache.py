"""The prefix cache never serves one region's state to another, and serves all that is the same."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from helpers import FEW, LEFT, vllm_engine
from interleaved import answers, cached_tokens, differing, interleaved_requests
from models import GRID, picture
from vllm import SamplingParams
from vllm.v1.core import kv_cache_utils

from cof.engines.vllm import plugin
from cof.types import Highlight, Request

BLOCK = 32
IMAGES = [picture((112, 112), seed) for seed in range(3)]


def test_no_answer_differs_from_that_without_a_cache() -> None:
    requests = interleaved_requests(IMAGES, 400)
    off = vllm_engine(checkpoint("llava"), block_size=BLOCK, enable_prefix_caching=False)
    on = vllm_engine(checkpoint("llava"), block_size=BLOCK)
    assert differing(answers(on, requests), answers(off, requests)) == 0
    assert cached_tokens(on) > 0


def test_answers_differ_where_hashes_ignore_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = interleaved_requests(IMAGES, 60, seed=1)
    off = vllm_engine(checkpoint("llava"), block_size=BLOCK, enable_prefix_caching=False)
    right = answers(off, requests)
    careless = vllm_engine(checkpoint("llava"), block_size=BLOCK, max_num_seqs=100)
    stock = plugin._stock_hash_keys
    monkeypatch.setattr(kv_cache_utils, "_gen_prompt_embeds_extra_hash_keys", stock)
    assert differing([*answers(careless, requests), *answers(careless, requests)], right * 2) > 0
    with pytest.raises(RuntimeError, match="one region from another"):
        plugin.check_hashes()


def test_text_scope_reuses_the_whole_image() -> None:
    engine = vllm_engine(checkpoint("llava"), block_size=BLOCK, max_num_seqs=1)
    image = picture((112, 112), 99)
    question = "What is it that you see in this image?"
    engine.generate([Request(image, question)], FEW)

    def reused(highlight: Highlight) -> int:
        before = cached_tokens(engine)
        engine.generate([Request(image, question, highlight)], FEW)
        return cached_tokens(engine) - before

    image_end = 1 + len("USER: ") + GRID * GRID  # the start token comes first
    image_blocks = image_end // BLOCK * BLOCK
    assert reused(Highlight(LEFT, 60.0, scope="text")) == image_blocks
    assert reused(Highlight(LEFT, 60.0)) == 0  # its first key is in the first block
    assert reused(Highlight(LEFT, 60.0)) > image_blocks  # the same again
    assert reused(Highlight(LEFT, 50.0)) == 0  # another strength


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"runs": []}', "null"),
        '{"runs":[[0,1,NaN]],"scope":"all","layers":null,"heads":null,"bidirectional":false}',
        '{"runs":[[-1,1,0.5]],"scope":"all","layers":null,"heads":null,"bidirectional":false}',
        '{"runs":[[0,1,0.5]],"scope":"none","layers":null,"heads":null,"bidirectional":false}',
    ],
)
def test_what_is_no_bias_never_reaches_the_scheduler(text: str) -> None:
    with pytest.raises(ValueError, match="must be a bias"):
        SamplingParams(extra_args={"cof": text})
