"""vLLM's attention on GPUs, biased: FlashAttention's backend and Triton's, whose caches are alike.

For vLLM's model runners V1 and V2; of it, a GPU has run the kernel alone, and not in graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
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


class TileBuffer:
    """Tells the kernel of each step's biased queries in one place, from which CUDA graphs read."""

    def __init__(self, most: int, shape: tuple[int, int], first_head: int, device: Any) -> None:
        """For at `most` so many tiles. `shape`: the model's layers, and this worker's heads, of
        which `first_head` is the first one's number in the model."""
        self.tiles = torch.zeros(most, 6, dtype=torch.int64, device=device)
        self._shape, self._first_head = shape, first_head
        self._bias = lru_cache(maxsize=1024)(self._pack_bias)
        self._used, self._biases = 0, list[Tensor]()

    def write(self, rows: Sequence[BiasedRow], num_tokens: int, least: int) -> BiasedTiles | None:
        """Rows of a step, in the place of those before, as the kernel takes them: so many tiles at
        `least`. None if that is none."""
        self._biases = [self._bias(row.bias) for row in rows if row.bias is not None]  # kept alive
        gates = self._shape[0] * self._shape[1]
        tiles = [
            (row.row, at, row.position + at - row.start, min(TILE, row.stop - at), *of)
            for row, bias in zip(rows, self._biases, strict=True)
            for of in [(bias.data_ptr(), len(bias) - gates)]
            for at in range(row.start, row.stop, TILE)
        ]
        written = tiles + [(0,) * 6] * (self._used - len(tiles))
        if written:
            async_tensor_h2d(np.array(written), out=self.tiles[: len(written)])
        self._used = len(tiles)
        last_keys = None
        if any(row.looks_ahead for row in rows):
            numbers = np.zeros(num_tokens, dtype=np.int32)
            for row in rows:
                numbers[row.start : row.stop] = row.last_keys
            last_keys = async_tensor_h2d(numbers, self.tiles.device)
        count = max(least, len(tiles))
        return BiasedTiles(self.tiles, count, self._shape[0], last_keys) if count else None

    def _pack_bias(self, bias: PlacedBias) -> Tensor:
        layers = chosen(bias.layers, 0, self._shape[0])
        heads = chosen(bias.heads, self._first_head, self._shape[1])
        packed = np.concatenate([np.outer(layers, heads).ravel(), bias.values])
        made: Tensor = async_tensor_h2d(packed.astype(np.float32), self.tiles.device)
        return made


tile_buffer = cache(TileBuffer)
"""One for all layers of a worker, whichever builder writes."""


class BiasedBuilder:
    """Writes `BiasedTiles` into the metadata that a step's layers share."""

    # Only steps that decode: in others, maps are read as attention is called.
    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    vllm_config: Any
    model_config: Any
    num_heads_q: int
    device: Any

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        rows, common = biased_rows(common_attn_metadata), common_attn_metadata
        buffer = tile_buffer(
            self.vllm_config.scheduler_config.max_num_batched_tokens,
            (self.model_config.hf_text_config.num_hidden_layers, self.num_heads_q),
            get_tensor_model_parallel_rank() * self.num_heads_q,
            self.device,
        )
        # a graph captures a made-up batch, of which any request may be biased in later steps
        least = common.num_reqs if rows is None else 0
        metadata.biased = buffer.write(rows or (), common.num_actual_tokens, least)
        return metadata


class BiasedGPUAttention(BiasedAttention):
    """One layer's attention."""

    def read_cache(self, layer: Any, kv_cache: Tensor, blocks: Tensor) -> Sequence[Tensor]:
        return kv_cache[blocks].transpose(0, 1).flatten(1, 2).chunk(2, -1)

    def attend_again(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: Any, output: Tensor
    ) -> None:
        self.captured |= query.is_cuda and torch.cuda.is_current_stream_capturing()
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
