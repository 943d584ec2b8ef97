"""What vLLM loads of us in each of its processes (entry point `vllm.general_plugins`).

The scheduler's process must never serve the KV blocks of one region to another, so the hash of a
block names the bias it was computed under. The workers add the bias (`worker`).

The scheduler also cuts long prompts into chunks. Where the tokens of an image attend to one
another, as in Gemma 3, none could attend to what is cut off, so images are computed in one piece.
`disable_chunked_mm_input` (`engine.model_options`) is to do that, but see `_schedule`.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.core.sched.scheduler import Scheduler

from cof.engines.vllm import maps
from cof.engines.vllm.bias import KEY, RequestBias, place_bias
from cof.engines.vllm.versions import is_tested

_stock_hash_keys = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
_stock_verify = SamplingParams._verify_extra_args
_stock_schedule = Scheduler._try_schedule_encoder_inputs


def register() -> None:
    """`hook`; a vLLM that we do not know is left alone where that fails, as nobody may have asked
    for us. If somebody has, the worker does not start.

    Raises:
        RuntimeError: see `hook`.
    """
    try:
        hook()
    except Exception as error:
        if is_tested():
            raise
        logging.getLogger("vllm.cof").warning("cof leaves this vLLM alone: %s", error)


def hook() -> None:
    """Hook into this process's vLLM.

    Raises:
        RuntimeError: the hashes of KV blocks do not tell regions apart.
    """
    # All that hash blocks call `generate_block_hash_extra_keys`, some by a name of their own; it
    # finds this function by its module's name for it.
    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = _hash_keys
    SamplingParams._verify_extra_args = _verify_extra_args
    Scheduler._try_schedule_encoder_inputs = _schedule
    check_hashes()


def _verify_extra_args(sampling_params: SamplingParams) -> None:
    """Refuse what is no bias or map where a request is made: later, it would end the engine."""
    _stock_verify(sampling_params)
    for key, read in ((KEY, RequestBias.from_json), (maps.KEY, maps.ORDER.validate_python)):
        if (asked := sampling_params.extra_args.get(key)) is not None:
            read(asked)


def _hash_keys(request: Any, start: int, end: int) -> list[Any]:
    """What a block of the tokens `start ... end - 1` is hashed with beside its tokens."""
    keys: list[Any] = _stock_hash_keys(request, start, end)
    bias = place_bias(request.sampling_params, request.mm_features)
    if bias is not None and end > bias.start:
        return [*keys, (KEY, bias.digest)]
    return keys


def _schedule(
    scheduler: Any,
    request: Any,
    num_computed_tokens: int,
    num_new_tokens: int,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """vLLM's own lets a chunk begin at an image, or inside it, and end before its end."""
    if scheduler.scheduler_config.disable_chunked_mm_input:
        for feature in request.mm_features:
            start = feature.mm_position.offset
            end = num_computed_tokens + num_new_tokens
            if start < end < start + feature.mm_position.length:
                num_new_tokens = max(start - num_computed_tokens, 0)
    return _stock_schedule(scheduler, request, num_computed_tokens, num_new_tokens, *args, **kwargs)


def check_hashes() -> None:
    """Ask for what the blocks of three requests that differ in their regions alone are hashed with.

    Raises:
        RuntimeError: blocks that hold different keys and values would hash alike, or blocks that
            hold the same would not.
    """
    for hashed_with in (
        kv_cache_utils.generate_block_hash_extra_keys,
        block_pool.generate_block_hash_extra_keys,
    ):
        blocks = [(0, 16), (16, 32), (32, 48)]
        requests = [_request(first) for first in (None, 20, 24)]
        different = [
            len({hashed_with(request, start, end, 0) for request in requests})
            for start, end in blocks
        ]
        if different != [1, 3, 3]:
            raise RuntimeError(
                "cof: vLLM's prefix cache would not tell one region from another, so that answers "
                "would be wrong; run it with the plugin cof, and without others that change how it "
                "hashes blocks."
            )


def _request(first: int | None) -> Any:
    """A request about an image of 40 tokens, four of them biased from `first` on."""
    bias = {} if first is None else {KEY: RequestBias(((first, 4, 1.0),)).to_json()}
    position = SimpleNamespace(offset=0, length=40, is_embed=None)
    return SimpleNamespace(
        mm_features=[SimpleNamespace(identifier="image", mm_position=position)],
        sampling_params=SimpleNamespace(extra_args=bias),
        lora_request=None,
        cache_salt=None,
        prompt_embeds=None,
    )
