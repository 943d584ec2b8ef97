"""vLLM's attention, with the bias of the requests that have one.

The stock kernel runs for the whole batch. Then the queries that are biased are computed again, from
the same paged keys and values, with the bias added to their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from cof.engines.vllm.bias import PlacedBias, place_bias


@dataclass
class Batch:
    """The biased requests of one worker.

    Attributes:
        request_ids: `CommonAttentionMetadata` -> the request of each of its rows.
        biases: by request.
    """

    request_ids: Callable[[Any], list[str]]
    biases: dict[str, PlacedBias] = field(default_factory=dict)

    @contextmanager
    def step(self, scheduled: Any) -> Iterator[None]:
        """Follow the requests that come and go in a `SchedulerOutput`, and bias what runs inside.

        Outside, where vLLM runs made-up batches, nothing is biased.
        """
        for request_id in scheduled.finished_req_ids:
            self.biases.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            bias = place_bias(new.sampling_params, new.mm_features)
            if bias is not None:
                self.biases[new.req_id] = bias
        token = _batch.set(self)
        try:
            yield
        finally:
            _batch.reset(token)


_batch: ContextVar[Batch | None] = ContextVar("cof_vllm_batch", default=None)


@dataclass(frozen=True, eq=False)
class BiasedRow:
    """The queries of one request that are biased in this step.

    Attributes:
        start, stop: their rows among the step's query tokens, Q of them.
        blocks: `(N,)` the KV blocks of their S keys.
        query_positions: `(Q,)`.
        values: `(S,)` float32, what the keys get.
        layers, heads: those that carry the bias; None: all.
    """

    start: int
    stop: int
    blocks: Tensor
    query_positions: Tensor
    values: Tensor
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None


def biased_rows(common: Any, block_size: int) -> list[BiasedRow]:
    """Those of a `CommonAttentionMetadata`."""
    batch = _batch.get()
    if batch is None or not batch.biases:
        return []
    rows = []
    ends = common.query_start_loc_cpu.tolist()[1:]
    lengths = common.seq_lens.tolist()
    begin = 0
    for row, request_id in enumerate(batch.request_ids(common)):
        end, length = ends[row], lengths[row]
        bias = batch.biases.get(request_id)
        if bias is not None and length > bias.start:
            first = max(length - (end - begin), bias.start)
            values = torch.zeros(length)
            known = min(length, len(bias.values))
            values[:known] = torch.from_numpy(bias.values[:known])
            blocks = common.block_table_tensor[row, : -(-length // block_size)].long()
            positions = torch.arange(first, length)
            start = end - (length - first)
            rows.append(BiasedRow(start, end, blocks, positions, values, bias.layers, bias.heads))
        begin = end
    return rows


class BiasedBackend(CPUAttentionBackend):
    """vLLM's CPU attention, biased."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return BiasedAttention

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return BiasedMetadataBuilder


class BiasedMetadataBuilder(CPUAttentionMetadataBuilder):
    """Writes `BiasedRow`s into the metadata that a step's layers share."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata.biased = biased_rows(common_attn_metadata, self.block_size)
        return metadata


class BiasedAttention(CPUAttentionBackendImpl):
    """One layer's attention."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        *scales: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        stock: Tensor = super().forward(
            layer, query, key, value, kv_cache, attn_metadata, output, *scales, **kwargs
        )
        rows = attn_metadata.biased if attn_metadata is not None else []
        if rows:
            index = extract_layer_index(layer.layer_name)
            order = key_order(layer.isa, kv_cache.dtype, kv_cache.shape[2], self.head_size)
            for row in rows:
                if row.layers is None or index in row.layers:
                    part = query[row.start : row.stop]
                    output[row.start : row.stop] = self._attend(part, kv_cache, row, order)
        return stock

    def _attend(self, query: Tensor, kv_cache: Tensor, row: BiasedRow, order: Tensor) -> Tensor:
        """Attention of `(Q, heads, D)` to the row's keys, with its bias."""
        keys, values = read_blocks(kv_cache, row.blocks, order)
        length = len(row.values)
        distance = row.query_positions[:, None] - torch.arange(length)  # (Q, S)
        visible = distance >= 0
        if self.sliding_window > 0:
            visible &= distance < self.sliding_window
        mask = self._head_bias(row)[:, None].masked_fill(~visible, -torch.inf)  # (heads or 1, Q, S)
        attended = nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None, :, :length],
            values[None, :, :length],
            attn_mask=mask[None].to(query.dtype),
            scale=self.scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1)

    def _head_bias(self, row: BiasedRow) -> Tensor:
        """What this worker's heads add to the scores of the keys: `(heads or 1, S)`."""
        if row.heads is None:
            return row.values[None]
        first = get_tensor_model_parallel_rank() * self.num_heads
        chosen = torch.tensor([first + head in row.heads for head in range(self.num_heads)])
        return chosen[:, None] * row.values


def read_blocks(kv_cache: Tensor, blocks: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values `(KV heads, N * block size, D)` of N blocks of vLLM's CPU cache.

    Args:
        kv_cache: `(blocks, KV heads, block size, 2 * D)`; the keys of a block and head come before
            its values, each of them in an order of its own.
        order: that of `key_order`.
    """
    _, heads, size, width = kv_cache.shape
    pages = kv_cache[blocks].view(-1, 2, size * width // 2)
    # of two dimensions and contiguous, which index_select is ten times faster with
    parts = [pages[:, part].contiguous().index_select(1, order[part]) for part in (0, 1)]
    pages = torch.stack(parts).view(2, len(blocks), heads, size, width // 2).transpose(1, 2)
    keys, values = pages.reshape(2, heads, len(blocks) * size, width // 2)
    return keys, values


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
