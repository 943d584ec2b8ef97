"""Images whose tokens attend to one another, as in Gemma 3, are computed in one piece.

vLLM cuts long prompts into chunks. A token whose image is cut could not attend to the rest of it.
`disable_chunked_mm_input` (`engine.model_options`) is to prevent that.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

_stock_schedule = Scheduler._try_schedule_encoder_inputs


def keep_images_whole() -> None:
    """Hook into this process's vLLM."""
    Scheduler._try_schedule_encoder_inputs = _schedule


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
