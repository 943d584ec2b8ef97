"""vLLM's attention on CPUs, biased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from cof.engines.vllm.attention import BiasedAttention, BiasedRow, biased_backend, biased_rows
from cof.engines.vllm.bias import chosen


@dataclass(frozen=True, eq=False)
class MaskedRow:
    """A `BiasedRow` with what its layers share.

    Attributes:
        row: itself.
        blocks: the KV blocks of its keys, `(N,)`; as a slice where they follow one another.
        masks: what `mask` has made.
    """

    row: BiasedRow
    blocks: Tensor | slice
    masks: dict[tuple[int, bool], Tensor] = field(default_factory=dict)

    def mask(self, window: int, biased: bool) -> Tensor:
        """What is added to its scores, `(Q, S)` float32; -inf where a query does not attend to a
        key. `window`: how many keys a query attends to, itself included; 0: all."""
        if (window, biased) in self.masks:
            return self.masks[window, biased]
        row, bias = self.row, self.row.bias
        keys, queries = torch.arange(row.length), torch.arange(row.position, row.length)[:, None]
        mask = torch.zeros(len(queries), row.length)
        if biased and bias is not None:
            values = torch.from_numpy(bias.values[: row.length])
            mask[:, : len(values)] = torch.where(queries >= bias.start, values, 0.0)
        visible = keys <= torch.from_numpy(row.last_keys)[:, None]
        if window > 0:
            visible &= queries - keys < window
        made = self.masks[window, biased] = mask.masked_fill_(~visible, -torch.inf)
        return made


class BiasedCPUBuilder:
    """Writes `MaskedRow`s into the metadata that a step's layers share."""

    block_size: int

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        # the stock kernel is causal in images too
        metadata.biased = []
        for row in biased_rows(common_attn_metadata, whole_images=False) or ():
            blocks = metadata.block_table[row.row, : -(-row.length // self.block_size)]
            metadata.biased.append(MaskedRow(row, as_run(blocks)))
        return metadata


class BiasedCPUAttention(BiasedAttention):
    """One layer's attention."""

    def read_cache(self, layer: Any, kv_cache: Tensor, blocks: Tensor | slice) -> Sequence[Tensor]:
        # the keys of a block and head come before its values, both in orders of their own
        _, heads, size, width = kv_cache.shape
        axes = cache_axes(layer.isa, kv_cache.dtype, size, width // 2)
        pages = kv_cache[blocks].flatten(2).unflatten(2, (2, -1))  # keys and values
        of_block, of_head, *_ = pages.stride()
        return [
            part.as_strided((heads, len(pages), *shape), (of_head, of_block, *strides)).reshape(
                heads, -1, width // 2
            )
            for part, (shape, strides) in zip(pages.unbind(2), axes, strict=True)
        ]

    def attend_again(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: Any, output: Tensor
    ) -> None:
        index = extract_layer_index(layer.layer_name)
        for masked in metadata.biased:
            row, mask = masked.row, self._mask(masked, index)
            if mask is None:
                continue
            keys, values = self.read_cache(layer, kv_cache, masked.blocks)
            attended = nn.functional.scaled_dot_product_attention(
                query[row.start : row.stop].transpose(0, 1)[None],
                keys[None, :, : row.length],
                values[None, :, : row.length],
                attn_mask=mask[None].to(query.dtype),
                scale=self.scale,
                enable_gqa=True,
            )
            output[row.start : row.stop] = attended[0].transpose(0, 1)

    def _mask(self, masked: MaskedRow, layer: int) -> Tensor | None:
        """This layer's, `(heads or 1, Q, S)`; None where the stock kernel's output is right."""
        row, bias, window = masked.row, masked.row.bias, self.window
        if bias is None or (bias.layers is not None and layer not in bias.layers):
            return masked.mask(window, False)[None] if row.looks_ahead else None
        if bias.heads is None:
            return masked.mask(window, True)[None]
        heads = torch.from_numpy(chosen(bias.heads, self.first_head, self.num_heads))
        return torch.where(
            heads[:, None, None], masked.mask(window, True), masked.mask(window, False)
        )


def as_run(blocks: Tensor) -> Tensor | slice:
    """Blocks as a slice if they follow one another, so that the cache is read without a copy."""
    run = slice(int(blocks[0]), int(blocks[0]) + len(blocks))
    alike = torch.equal(blocks, torch.arange(run.start, run.stop, dtype=blocks.dtype))
    return run if alike else blocks.long()


BiasedCPUBackend = biased_backend(CPUAttentionBackend, BiasedCPUAttention, BiasedCPUBuilder)


Axes = tuple[list[int], list[int]]
"""A shape and strides."""


@cache
def cache_axes(isa: str, dtype: torch.dtype, block_size: int, head_size: int) -> list[Axes]:
    """How vLLM's kernel for a set of instructions lays out a block's keys, and its values.

    It is looked up by writing numbers that are known, since the kernels differ in it.

    Returns:
        Of keys and of values, the axes in which what is stored reads as `(block_size, head_size)`:

        >>> cache_axes("vec", torch.float32, 32, 64)  # a row for each number, and for each token
        [([32, 64], [1, 32]), ([2048], [1])]

    Raises:
        RuntimeError: the cache does not hold the numbers as they are (such as in fp8).
    """
    count = block_size * head_size
    numbers = torch.arange(count)
    found = []
    for digits in (numbers % 256, numbers // 256):  # what bfloat16 holds exactly
        written = digits.to(dtype).view(block_size, 1, head_size)
        cache = torch.zeros(1, 1, 2 * block_size, head_size, dtype=dtype)
        keys, values = cache.chunk(2, dim=2)
        slots = torch.arange(block_size)
        _custom_ops.cpu_attn_reshape_and_cache(written, written, keys, values, slots, isa)
        found.append(cache.view(2, count).long())
    axes: list[Axes] = []
    for stored in found[0] + 256 * found[1]:
        shape: list[int] = []
        strides: list[int] = []
        places, read = stored.argsort().tolist(), 1
        while read < count:  # one more axis, as long as its steps are equal
            step, size = places[read], 2
            while size * read < count and places[size * read] == size * step:
                size += 1
            shape, strides, read = [size, *shape], [step, *strides], size * read
        if not torch.equal(stored.as_strided(shape, strides).flatten(), numbers):
            raise RuntimeError(f"cof: the CPU KV cache of {isa} in {dtype} cannot be read back.")
        axes.append((shape, strides))
    return axes
