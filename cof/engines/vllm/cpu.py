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
        blocks: `(N,)` the KV blocks of its keys.
        masks: what `mask` has made.
    """

    row: BiasedRow
    blocks: Tensor
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
            metadata.biased.append(MaskedRow(row, blocks.long()))
        return metadata


class BiasedCPUAttention(BiasedAttention):
    """One layer's attention."""

    head_size: int

    def read_cache(self, layer: Any, kv_cache: Tensor, blocks: Tensor) -> Sequence[Tensor]:
        # the keys of a block and head come before its values, both in orders of their own
        _, heads, size, width = kv_cache.shape
        order = key_order(layer.isa, kv_cache.dtype, size, self.head_size)
        pages = kv_cache[blocks].view(-1, 2, size * width // 2)
        # of two dimensions and contiguous, which index_select is ten times faster with
        parts = [pages[:, part].contiguous().index_select(1, order[part]) for part in (0, 1)]
        pages = torch.stack(parts).view(2, len(blocks), heads, size, width // 2).transpose(1, 2)
        return pages.reshape(2, heads, len(blocks) * size, width // 2).unbind()

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


BiasedCPUBackend = biased_backend(CPUAttentionBackend, BiasedCPUAttention, BiasedCPUBuilder)


@cache
def key_order(isa: str, dtype: torch.dtype, block_size: int, head_size: int) -> Tensor:
    """Where vLLM's kernel for a set of instructions puts the numbers of a block's keys and values.

    It is looked up by writing numbers that are known, since the kernels differ in it.

    Returns:
        `(2, block_size * head_size)`: for keys and values, the place of each number of a
        `(block_size, head_size)` block.

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
    order = (found[0] + 256 * found[1]).argsort(-1)
    if not torch.equal((found[0] + 256 * found[1]).sort(-1).values, numbers.expand(2, -1)):
        raise RuntimeError(f"cof: the CPU KV cache of {isa} in {dtype} cannot be read back.")
    return order
