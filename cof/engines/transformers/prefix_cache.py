"""The prefix cache: prompts that continue from the decoder's KV cache after an image.

A causal decoder's keys and values for the text before an image and for the image depend on nothing
that follows. So they are the same in both stages and for every question about the image; with a
highlight, up to the first token whose query or key is biased.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cof.attention.bias_mask import Bias, Branches
from cof.engines.transformers.graphs import pad_pass

_TAKES = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _TAKES else "past_key_values"
"""What this version of transformers calls a KV cache, as an argument and in outputs."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The KV cache of a chat up to the end of an image, without any bias.

    Attributes:
        token_ids: its P tokens.
        states: keys and values of each layer, `(1, key heads, P, head size)`; never written to.
    """

    token_ids: tuple[int, ...] = ()
    states: tuple[tuple[Tensor, Tensor], ...] = ()


Key = tuple[tuple[int, ...], tuple[Any, ...]]
"""What tells the prefixes of one image apart: their tokens, and the images in them."""

MAX_PREFIXES = 4
"""The most prefixes that are kept of one image, which has one for each history it stood in."""


@dataclass(frozen=True, eq=False)
class Head:
    """A row of a batch up to the end of the image that is looked at."""

    span: tuple[int, int]  # the start and the end of its tokens in the row
    key: Key  # see `Key`
    store: dict[Key, Prefix]  # the prefixes of the image, where this one is or will be

    @property
    def prefix(self) -> Prefix | None:
        """Its states; None: they are to be computed."""
        return self.store.get(self.key)

    def fill(self, prefix: Prefix) -> None:
        """Keep a prefix; threads that fill at the same time keep equal ones."""
        self.store[self.key] = prefix
        if len(self.store) > MAX_PREFIXES:
            self.store.pop(next(iter(self.store)), None)


@dataclass(frozen=True, eq=False)
class Prompts:
    """B prompts about B images, ready to run.

    Attributes:
        inputs: padded token ids, `(B, L)`, and the model's other text inputs.
        features: the vision features of each row's images.
        bias: what is added to attention scores; None: nothing.
        cache: the keys and values of their leading tokens; None: it is made by the first pass. A
            pass adds to it, so that such prompts are run once.
        cached: how many columns of `inputs` the cache holds before the first pass.
        answer_type: the value of answer tokens in `token_type_ids`, where the model takes them.
    """

    inputs: dict[str, Tensor]
    features: list[Tensor]
    bias: Bias | None = None
    cache: Cache | None = None
    cached: int = 0
    answer_type: int = 0


def full_length_cache(config: Any) -> DynamicCache:
    """An empty KV cache of full length for the decoder of a model with this config.

    Sliding-window layers keep all keys and values too, so that they can be split and cropped; the
    masks enforce the windows.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


def split_cache(cache: Any, token_ids: Tensor, spans: Sequence[tuple[int, int]]) -> list[Prefix]:
    """The part of each row from a start to an end, of `(B, L)` tokens; copied, so that the rest of
    the cache can be freed."""
    prefixes = []
    for row, (start, end) in enumerate(spans):
        part = (slice(row, row + 1), slice(None), slice(start, end))
        states = [(layer.keys[part].clone(), layer.values[part].clone()) for layer in cache.layers]
        prefixes.append(Prefix(tuple(token_ids[row, start:end].tolist()), tuple(states)))
    return prefixes


def join_prefixes(
    prefixes: Sequence[Prefix], reused: Sequence[int], cache: Cache, beams: int = 1
) -> None:
    """Fill an empty KV cache with the first `reused` tokens of each prefix, padded on the left,
    each row once for every beam."""
    most = max(reused)
    some = prefixes[reused.index(most)]  # where nothing is reused, any will do
    rows = [(prefix if n else some, n) for prefix, n in zip(prefixes, reused, strict=True)]

    def align(states: Tensor, count: int) -> Tensor:
        used = states[:, :, :count]
        # padding by 0 would copy
        return used if count == most else pad(used, (0, 0, most - count, 0))

    for number in range(len(some.states)):
        keys, values = (
            torch.cat([align(prefix.states[number][part], count) for prefix, count in rows])
            for part in (0, 1)
        )
        cache.update(keys, values, number)
    if beams > 1:
        cache.batch_repeat_interleave(beams)


def count_reusable(prompts: Prompts, prefixes: Sequence[Prefix]) -> list[int]:
    """How many leading tokens of each row are in its prefix and before its first biased one."""
    ids = prompts.inputs["input_ids"].cpu()
    counts = []
    for row, prefix in enumerate(prefixes):
        start = int(prompts.inputs["attention_mask"][row].argmax())  # after the padding
        unbiased = first_biased(prompts.bias, row, start)
        # one token is always computed
        longest = min(len(prefix.token_ids), ids.shape[1] - start - 1, unbiased)
        same = ids[row, start : start + longest] == torch.tensor(prefix.token_ids[:longest])
        counts.append(int(same.cumprod(0).sum()))
    return counts


def resume_prompts(prompts: Prompts, reused: Sequence[int], *, fixed: bool = False) -> Prompts:
    """The same left-padded prompts as [padding | reused | padding | rest].

    The rest, which is left to compute, is one rectangle then.

    Args:
        reused: how many leading tokens of each row will be in the cache; not all 0.
        fixed: whether the rest is to have the size of a short pass (`graphs.pad_pass`).
    """
    ids, seen = prompts.inputs["input_ids"], prompts.inputs["attention_mask"]
    length, counts = ids.shape[1], torch.tensor(reused, device=ids.device)[:, None]
    left = seen.sum(1, keepdim=True) - counts  # (B, 1)
    cached = max(reused)
    rest = int(left.max())
    total = cached + (pad_pass(len(ids), rest) if fixed else rest)
    at = torch.arange(total, device=ids.device).expand(len(ids), -1)
    in_prefix = at < cached
    real = torch.where(in_prefix, at >= cached - counts, at >= total - left)
    source = at + length - torch.where(in_prefix, cached + left, total)
    source = torch.where(real, source, length - 1)  # any token but an image token
    inputs = {
        name: value.gather(1, source) if value.shape == ids.shape else value
        for name, value in prompts.inputs.items()
    }
    inputs["attention_mask"] = inputs["attention_mask"] * real
    bias = prompts.bias
    if bias is not None:
        q_from = None if bias.q_from is None else bias.q_from + total - length  # the rest moves
        values = bias.values.gather(1, source.to(bias.values.device))
        bias = replace(bias, values=values, q_from=q_from)
    return replace(prompts, inputs=inputs, bias=bias, cached=cached)


def extend_prompts(prompts: Prompts, tokens: Sequence[Sequence[int]], pad_id: int) -> Prompts:
    """The prompts with more tokens at each row's end; padding stands before them."""
    longest = max(map(len, tokens))
    if not longest:
        return prompts
    device = prompts.inputs["input_ids"].device
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in tokens]
    seen = [[0] * (longest - len(row)) + [1] * len(row) for row in tokens]
    more = (torch.tensor(ids, device=device), torch.tensor(seen, device=device))
    return replace(prompts, inputs=_append(prompts.inputs, *more, prompts.answer_type))


def append_branches(
    inputs: Mapping[str, Any], branches: Branches, answer_type: int
) -> dict[str, Any]:
    """Inputs with branches at their end, each node at the position after its parent's."""
    depth = branches.visible.sum(2)  # (B, N): a node attends to its ancestors and itself
    positions = inputs["position_ids"][..., -1:] + depth
    return _append(inputs, branches.tokens, branches.seen, answer_type, position_ids=positions)


def _append(
    inputs: Mapping[str, Any], ids: Tensor, seen: Tensor, answer_type: int, **more: Tensor
) -> dict[str, Any]:
    """Inputs with N tokens of answers at the end of each row."""
    more |= {
        "input_ids": ids,
        "attention_mask": seen,
        "token_type_ids": torch.full_like(ids, answer_type),
    }
    length, nothing = inputs["input_ids"].shape[1], torch.zeros_like(ids)
    return {
        name: torch.cat([value, more.get(name, nothing)], dim=-1)
        if isinstance(value, Tensor) and value.shape[-1] == length
        else value
        for name, value in inputs.items()
    }


def first_biased(bias: Bias | None, row: int, start: int) -> int:
    """The first token of a row whose state the bias may change, counted from `start`; `sys.maxsize`
    if there is none."""
    if bias is None or (bias.q_from is not None and int(bias.q_from[row]) > 0):
        return sys.maxsize  # biased queries come after the image, that is after every prefix
    columns = bias.values[row].nonzero()
    return int(columns[0]) - start if len(columns) else sys.maxsize
