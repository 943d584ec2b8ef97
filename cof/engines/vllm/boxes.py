"""Boxes decoded by a template with vLLM, which takes one set of allowed tokens for a whole request.

So the first request may write any of the template's tokens. As long as these follow the template,
each is also the likeliest of the fewer that it allows there. A model that knows the format writes
the whole box so, in as many steps as it has tokens. What is left is asked for choice by choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from cof.prompting.box_template import CompiledBoxTemplate, PartialBox
from cof.types import Generation

Part = tuple[tuple[int, ...], dict[str, Any]]
"""The tokens of a box so far, which follow the prompt, and fields of vLLM's `SamplingParams`."""

MOST_ALLOWED, MOST_ENDS = 1024, 128  # with more, vLLM's model runner V2 ends, and the engine too

_GREEDY = {"repetition_penalty": 1.0, "detokenize": False}


def decode_boxes(
    starts: Sequence[PartialBox], ask: Callable[[Mapping[int, Part]], Sequence[Any]]
) -> list[Generation]:
    """The greedy box of each row, given before its first number.

    `ask` gets parts by row, and returns vLLM's `CompletionOutput` of each, decoded greedily.
    """
    boxes, chosen = list(starts), [Generation("") for _ in starts]
    fields = [_whole(start.compiled) for start in starts]
    while left := [row for row, box in enumerate(boxes) if not box.done]:
        outputs = ask({row: (boxes[row].tokens, fields[row]) for row in left})
        for row, output in zip(left, outputs, strict=True):
            boxes[row], chosen[row] = _follow(boxes[row], chosen[row], output)
            fields[row] = _GREEDY | {"max_tokens": 1, "allowed_token_ids": boxes[row].choices}
    return chosen


def _follow(box: PartialBox, chosen: Generation, output: Any) -> tuple[PartialBox, Generation]:
    """The box, and what was chosen in it, as far as the output follows the template."""
    place, ids, logprobs = len(box.tokens), chosen.token_ids, chosen.logprobs
    for token, values in zip(output.token_ids, output.logprobs, strict=True):
        settled = box.tokens[place : place + 1]
        if box.done or token not in (settled or box.choices):
            break
        if not settled:
            ids, logprobs = (*ids, token), (*logprobs, values[token].logprob)
            box = box.choose(token)
        place += 1
    return box, Generation(box.text if box.done else "", ids, logprobs)


@lru_cache
def _whole(template: CompiledBoxTemplate) -> dict[str, Any]:
    """A whole box, which ends where it is longest, or after a token that is nowhere else."""
    *before, last = template.slots
    others = {token for slot in before for ids in slot for token in ids}
    others.update(token for ids in last for token in ids[:-1])
    allowed = sorted(others.union(ids[-1] for ids in last))
    return _GREEDY | {
        "max_tokens": sum(max(map(len, slot)) for slot in template.slots),
        "allowed_token_ids": allowed if len(allowed) <= MOST_ALLOWED else None,
        "stop_token_ids": sorted({ids[-1] for ids in last} - others)[:MOST_ENDS],
    }
