"""The GPU's attention on a CPU: our metadata and interpreted kernel, over a cache like there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from test_vllm_kernel import plain
from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from cof.engines.vllm.attention import biased_backend
from cof.engines.vllm.gpu import BiasedBuilder, BiasedGPUAttention


class Plain(CPUAttentionBackendImpl):
    """Attention without a bias."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sliding_window = (self.sliding_window - 1, 0) if self.sliding_window > 0 else (-1, -1)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        size = kv_cache.shape[2]
        kv_cache[slot_mapping // size, :, slot_mapping % size] = torch.cat([key, value], -1)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        **scales: Any,
    ) -> Tensor:
        if attn_metadata is None:
            return output
        starts = attn_metadata.query_start_loc.tolist()
        for row, length in enumerate(attn_metadata.seq_lens.tolist()):
            own = slice(starts[row], starts[row + 1])
            cached = kv_cache[attn_metadata.block_table[row].long()].transpose(1, 2)
            cached = cached.flatten(0, 1)[:length]
            last = torch.arange(length)[starts[row] - starts[row + 1] :]
            parts = (query[own], *cached.split(self.head_size, -1))
            output[own] = plain(*parts, torch.zeros(1, length), last, scale=self.scale)
        return output


class StockBuilder(CPUAttentionMetadataBuilder):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.num_heads_q = self.num_heads
        self.model_config = self.vllm_config.model_config

    def build(self, common_prefix_len: int, common: Any, fast_build: bool = False) -> Any:
        return SimpleNamespace(
            block_table=common.block_table_tensor,
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
        )


class StockBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[Plain]:
        return Plain

    @staticmethod
    def get_builder_cls() -> type[StockBuilder]:
        return StockBuilder


Backend = biased_backend(StockBackend, BiasedGPUAttention, BiasedBuilder)
