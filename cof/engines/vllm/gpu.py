"""vLLM's attention on GPUs, biased: FlashAttention's backend and Triton's, whose caches are alike.

Written for vLLM's model runners V1 and V2; only the kernel has been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

from cof.engines.vllm.attention import BiasedAttention, BiasedRow, biased_backend, biased_rows
from cof.engines.vllm.bias import PlacedBias, chosen
from cof.engines.vllm.kernel import TILE, BiasedTiles, attend


def pack_rows(
    rows: Sequence[BiasedRow], num_tokens: int, shape: tuple[int, int], first_head: int, device: Any
) -> BiasedTiles | None:
    """Rows as the kernel takes them; None if there are none.

    Args:
        rows: of one step; each has a bias.
        num_tokens: of the step.
        shape: the model's layers, and this worker's heads.
        first_head: the number of this worker's first head in the model.
        device: where the tensors go.
    """
    if not rows:
        return None
    tiles = [
        (number, row.row, at, row.position + at - row.start, min(TILE, row.stop - at))
        for number, row in enumerate(rows)
        for at in range(row.start, row.stop, TILE)
    ]
    biases = tuple(row.bias for row in rows if row.bias is not None)
    last_keys = None
    if any(row.looks_ahead for row in rows):
        numbers = np.zeros(num_tokens, dtype=np.int32)
        for row in rows:
            numbers[row.start : row.stop] = row.last_keys
        last_keys = async_tensor_h2d(numbers, device)
    return BiasedTiles(
        async_tensor_h2d(np.array(tiles, dtype=np.int32), device),
        *_pack_biases(biases, shape, first_head, device),
        last_keys,
    )


@lru_cache(maxsize=4)
def _pack_biases(
    biases: tuple[PlacedBias, ...], shape: tuple[int, int], first_head: int, device: Any
) -> tuple[Tensor, Tensor]:
    """`BiasedTiles.values` and `.gates`, which stay the same while answers are decoded."""
    values = np.zeros((len(biases), max(len(bias.values) for bias in biases)), dtype=np.float32)
    gates = np.zeros((len(biases), *shape), dtype=bool)
    for row, bias in enumerate(biases):
        values[row, : len(bias.values)] = bias.values
        gates[row] = chosen(bias.layers, 0, shape[0])[:, None] & chosen(
            bias.heads, first_head, shape[1]
        )
    return async_tensor_h2d(values, device), async_tensor_h2d(gates, device)


class BiasedBuilder:
    """Writes `BiasedTiles` into the metadata that a step's layers share."""

    # A graph of a whole pass would replay the attention of the step that it was captured in. In
    # piecewise graphs, to which vLLM then falls back, attention runs as it is called.
    _cudagraph_support = AttentionCGSupport.NEVER
    model_config: Any
    num_heads_q: int
    device: Any

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        metadata.biased = pack_rows(
            biased_rows(common_attn_metadata),
            common_attn_metadata.num_actual_tokens,
            (self.model_config.hf_text_config.num_hidden_layers, self.num_heads_q),
            get_tensor_model_parallel_rank() * self.num_heads_q,
            self.device,
        )
        return metadata


class BiasedGPUAttention(BiasedAttention):
    """One layer's attention."""

    def read_cache(self, layer: Any, kv_cache: Tensor, blocks: Tensor) -> Sequence[Tensor]:
        return kv_cache[blocks].transpose(0, 1).flatten(1, 2).chunk(2, -1)

    def attend_again(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: Any, output: Tensor
    ) -> None:
        attend(
            query,
            kv_cache,
            metadata.block_table,
            output,
            metadata.biased,
            layer=extract_layer_index(layer.layer_name),
            scale=self.scale,
            window=self.window,
        )


BiasedFlashBackend = biased_backend(FlashAttentionBackend, BiasedGPUAttention, BiasedBuilder)
BiasedTritonBackend = biased_backend(TritonAttentionBackend, BiasedGPUAttention, BiasedBuilder)
