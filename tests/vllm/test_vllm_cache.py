"""The prefix cache never serves one region's state to another, and serves all that is the same."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from helpers import CLOSE, FEW, LEFT, box, difference, metric, vllm_engine
from models import GRID, picture
from vllm import SamplingParams
from vllm.v1.core import kv_cache_utils

from cof.engines.vllm import plugin
from cof.engines.vllm.engine import VllmEngine
from cof.geometry.regions import Region
from cof.types import Generation, Highlight, Request

BLOCK = 32
IMAGES = [picture((112, 112), seed) for seed in range(3)]
QUESTIONS = ("What digit is on the star?", "What colour is the star?", "Is there a red circle?")
HITS = "vllm:prefix_cache_hits"


def interleaved(count: int, seed: int = 0) -> list[Request]:
    """Requests about few images: one in five plain, the others each with a region of its own or one
    of a few that come again and again."""
    rng = random.Random(seed)

    def region() -> Region:
        x, y = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
        return box(x, y, x + rng.uniform(0.1, 0.3), y + rng.uniform(0.1, 0.3))

    again = [region() for _ in range(4)]

    def highlight() -> Highlight | None:
        if rng.random() < 0.2:
            return None
        chosen = rng.choice(again) if rng.random() < 0.5 else region()
        strength = rng.choice((0.05, 0.5, 4.0, 20.0, 100.0))
        return Highlight(chosen, strength, scope=rng.choice(("all", "text")))

    return [Request(rng.choice(IMAGES), rng.choice(QUESTIONS), highlight()) for _ in range(count)]


def answers(engine: VllmEngine, requests: list[Request]) -> list[Generation]:
    """In parts, so that later requests find the blocks of earlier ones."""
    starts = range(0, len(requests), 200)
    return [r for at in starts for r in engine.generate(requests[at : at + 200], FEW)]


def test_answers_are_those_without_a_cache_unless_hashes_ignore_regions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = vllm_engine(checkpoint("llava"), block_size=BLOCK, enable_prefix_caching=False)
    on = vllm_engine(checkpoint("llava"), block_size=BLOCK)
    requests = interleaved(400)
    right = answers(off, requests)
    assert max(map(difference, answers(on, requests), right)) < CLOSE
    assert metric(on, HITS) > 0

    careless = vllm_engine(checkpoint("llava"), block_size=BLOCK, max_num_seqs=100)
    stock = plugin._stock_hash_keys
    monkeypatch.setattr(kv_cache_utils, "_gen_prompt_embeds_extra_hash_keys", stock)
    few = requests[:60]
    wrong = [*answers(careless, few), *answers(careless, few)]
    assert max(map(difference, wrong, right[:60] * 2)) > CLOSE
    with pytest.raises(RuntimeError, match="one region from another"):
        plugin.check_hashes()


def test_text_scope_reuses_the_whole_image() -> None:
    engine = vllm_engine(checkpoint("llava"), block_size=BLOCK, max_num_seqs=1)
    image = picture((112, 112), 99)
    question = "What is it that you see in this image?"
    engine.generate([Request(image, question)], FEW)

    def reused(highlight: Highlight) -> float:
        before = metric(engine, HITS)
        engine.generate([Request(image, question, highlight)], FEW)
        return metric(engine, HITS) - before

    image_end = 1 + len("USER: ") + GRID * GRID  # the start token comes first
    image_blocks = image_end // BLOCK * BLOCK
    assert reused(Highlight(LEFT, 60.0, scope="text")) == image_blocks
    assert reused(Highlight(LEFT, 60.0)) == 0  # its first key is in the first block
    assert reused(Highlight(LEFT, 60.0)) > image_blocks  # the same again
    assert reused(Highlight(LEFT, 50.0)) == 0  # another strength


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"runs":[[0,1,NaN]]}', '{"runs":[[-1,1,0.5]]}'),
        '{"runs":[[0,1,0.5]],"scope":"none"}',
    ],
)
def test_what_is_no_bias_never_reaches_the_scheduler(text: str) -> None:
    plugin.register()
    SamplingParams(extra_args={"cof": '{"runs":[[0,1,0.5]]}'})
    with pytest.raises(ValueError, match="must be a bias"):
        SamplingParams(extra_args={"cof": text})
