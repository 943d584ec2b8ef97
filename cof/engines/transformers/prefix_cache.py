"""Prompts that begin where an earlier computation ended: the decoder's state after an image.

What a decoder computes for the text before an image and for the image itself depends on nothing
that comes later. So it is the same for both stages, for every question about the image, and under
a highlight for all tokens before the first whose query or key is biased.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from cof.attention.bias_mask import Bias, Branches


@dataclass(frozen=True, eq=False)
class Prefix:
    """A decoder's state after the text before an image and the image itself, nothing biased.

    Attributes:
        token_ids: the P tokens it stands for.
        states: keys and values of each layer, `(1, key heads, P, head size)`; never written to.
    """

    token_ids: tuple[int, ...]
    states: tuple[tuple[Tensor, Tensor], ...]


@dataclass(eq=False)
class LazyPrefix:
    """The prefix of one image, which the first question about the image fills in.

    Attributes:
        value: None until then. It depends on the image alone.
    """

    value: Prefix | None = None

    def fill(self, prefix: Prefix) -> None:
        """Set the value; a second one, from a thread that asked at the same time, is dropped."""
        if self.value is None:
            self.value = prefix


@dataclass(frozen=True, eq=False)
class Prompts:
    """B prompts about B images, ready to run.

    Attributes:
        inputs: padded token ids, `(B, L)`, and what else the model takes beside them.
        features: the vision features of each row's image.
        bias: what is added to attention; None: nothing.
        prefixes: of each row's image; empty if nothing is reused.
        reused: how many leading tokens of each row are not computed again.
        answer_type: what answers are in `token_type_ids`, where the model takes them.
        keeps_states: whether their states are read afterwards, so that the KV cache of every layer
            must be of full length.
    """

    inputs: dict[str, Tensor]
    features: list[Tensor]
    bias: Bias | None = None
    prefixes: tuple[Prefix, ...] = ()
    reused: tuple[int, ...] = ()
    answer_type: int = 0
    keeps_states: bool = False

    @property
    def cached(self) -> int:
        """How many places of a cache are filled before the first pass."""
        return max(self.reused, default=0)


def whole_cache(config: Any) -> DynamicCache:
    """An empty cache for the decoder of a model with this config, whose layers forget nothing.

    Layers with sliding windows keep all keys and values, so that they can be split and cropped;
    that they do not look farther than their windows is left to the masks.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


def keepable(cache: DynamicCache) -> bool:
    """Whether every layer's state can be cut to length (linear attention's cannot)."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def split(
    cache: DynamicCache, token_ids: Tensor, starts: Sequence[int], ends: Sequence[int]
) -> list[Prefix]:
    """The state of each row from its start to its end, of `(B, L)` tokens; copies, so that the
    rest of the cache can go."""
    layers: list[Any] = cache.layers
    return [
        Prefix(
            tuple(token_ids[row, start:end].tolist()),
            tuple(
                (
                    of.keys[row : row + 1, :, start:end].clone(),
                    of.values[row : row + 1, :, start:end].clone(),
                )
                for of in layers
            ),
        )
        for row, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def start_cache(prompts: Prompts, config: Any, beams: int = 1) -> DynamicCache:
    """A new cache that holds what is reused, each row as many times as there are beams."""
    cache = whole_cache(config)
    fill(cache, prompts)
    if beams > 1:
        cache.batch_repeat_interleave(beams)
    return cache


def fill(cache: Cache, prompts: Prompts) -> None:
    """Put what is reused into an empty cache, padded on the left."""
    rows = list(zip(prompts.prefixes, prompts.reused, strict=True))

    def aligned(states: Tensor, count: int) -> Tensor:
        missing = prompts.cached - count
        shown = states[:, :, :count]
        return pad(shown, (0, 0, missing, 0)) if missing else shown  # padding by nothing copies

    for number in range(len(rows[0][0].states) if rows else 0):
        keys, values = (
            torch.cat([aligned(prefix.states[number][part], count) for prefix, count in rows])
            for part in (0, 1)
        )
        cache.update(keys, values, number)


def reusable(prompts: Prompts, prefixes: Sequence[Prefix | None]) -> list[int]:
    """How many leading tokens each row has in its prefix, before anything biased."""
    ids = prompts.inputs["input_ids"].cpu()
    padding = prompts.inputs["attention_mask"].argmax(1).tolist()
    return [
        0 if prefix is None else _common(ids[row, start:], prefix, _first(prompts.bias, row, start))
        for row, (start, prefix) in enumerate(zip(padding, prefixes, strict=True))
    ]


def level(prompts: Prompts, most: Sequence[int]) -> list[int]:
    """At most so many leading tokens of each row, such that all rows have equally many left.

    The longest rest is computed in any case: the others would be padded to it, and so rows stay
    as they are."""
    lengths = prompts.inputs["attention_mask"].sum(1).tolist()
    left = max(length - count for length, count in zip(lengths, most, strict=True))
    return [max(length - left, 0) for length in lengths]


def unbiased(prompts: Prompts, ends: Sequence[int]) -> bool:
    """Whether the states of every row up to its end are those of a plain answer."""
    starts = prompts.inputs["attention_mask"].argmax(1).tolist()
    return all(
        _first(prompts.bias, row, start) >= end - start
        for row, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def resumed(prompts: Prompts, prefixes: Sequence[Prefix | None], reused: Sequence[int]) -> Prompts:
    """The same left-padded prompts as [padding | reused | padding | rest].

    What is left to compute is one rectangle then.

    Args:
        reused: how many tokens of each row's prefix; 0 where it has none, but not everywhere.
    """
    ids, seen = prompts.inputs["input_ids"], prompts.inputs["attention_mask"]
    length, counts = ids.shape[1], torch.tensor(reused, device=ids.device)[:, None]
    left = seen.sum(1, keepdim=True) - counts  # (B, 1)
    cached = max(reused)
    total = cached + int(left.max())
    at = torch.arange(total, device=ids.device).expand(len(ids), -1)
    begins = at < cached
    real = torch.where(begins, at >= cached - counts, at >= total - left)
    source = at + length - torch.where(begins, cached + left, total)
    source = torch.where(real, source, length - 1)  # any token that is no image
    inputs = {
        name: value.gather(1, source) if value.shape == ids.shape else value
        for name, value in prompts.inputs.items()
    }
    inputs["attention_mask"] = inputs["attention_mask"] * real
    bias = prompts.bias
    if bias is not None:
        # No token that is left moves forward: what is behind the image stays so.
        bias = replace(bias, values=bias.values.gather(1, source.to(bias.values.device)))
    known = next(prefix for prefix in prefixes if prefix is not None)
    return replace(
        prompts,
        inputs=inputs,
        bias=bias,
        prefixes=tuple(prefix or known for prefix in prefixes),  # of which nothing is taken
        reused=tuple(reused),
    )


def extended(prompts: Prompts, tokens: Sequence[Sequence[int]], pad_id: int) -> Prompts:
    """The prompts with more tokens at each row's end, the shorter ones padded before them."""
    longest = max(map(len, tokens))
    if not longest:
        return prompts
    ids = prompts.inputs["input_ids"]
    padded = [[pad_id] * (longest - len(of)) + list(of) for of in tokens]
    seen = [[0] * (longest - len(of)) + [1] * len(of) for of in tokens]
    types = [[prompts.answer_type] * longest] * len(ids)
    more = {"input_ids": padded, "attention_mask": seen, "token_type_ids": types}
    nothing = torch.zeros(len(ids), longest, dtype=torch.long, device=ids.device)
    inputs = {}
    for name, value in prompts.inputs.items():
        if value.shape == ids.shape:
            new = torch.tensor(more[name], device=ids.device) if name in more else nothing
            value = torch.cat([value, new], dim=1)
        inputs[name] = value
    return replace(prompts, inputs=inputs)


def branched(
    inputs: Mapping[str, Tensor], branches: Branches, answer_type: int
) -> dict[str, Tensor]:
    """Inputs with branches behind them, each node one place after its parent."""
    depth = branches.visible.sum(2)  # (B, N): a node sees its ancestors and itself
    more = {
        "input_ids": branches.tokens,
        "attention_mask": branches.seen,
        "token_type_ids": torch.full_like(branches.tokens, answer_type),
        "position_ids": inputs["position_ids"][..., -1:] + depth,
    }
    nothing, length = torch.zeros_like(branches.tokens), inputs["input_ids"].shape[1]
    return {
        name: torch.cat([value, more.get(name, nothing)], dim=-1)
        if value.shape[-1] == length
        else value
        for name, value in inputs.items()
    }


def _first(bias: Bias | None, row: int, start: int) -> int:
    """The first token of a row whose state the bias may change; no limit if there is none."""
    if bias is None or (bias.q_from is not None and int(bias.q_from[row]) > 0):
        return sys.maxsize  # biased queries come after the image, and so after every prefix
    columns = bias.values[row].nonzero()
    return int(columns[0]) - start if len(columns) else sys.maxsize


def _common(ids: Tensor, prefix: Prefix, limit: int) -> int:
    longest = min(len(prefix.token_ids), len(ids) - 1, limit)  # one token is left to compute
    differs = (ids[:longest] != torch.tensor(prefix.token_ids[:longest])).nonzero()
    return int(differs[0]) if len(differs) else longest
