"""What vLLM's attention needs to know to be biased, whatever computes it.

The stock kernel runs for the whole batch. Then the queries that are biased are computed again, from
the same paged keys and values, with the bias added to their scores: by `cpu` or by `gpu`. Where a
map is asked for (`maps`), the weights of its query are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index

from cof.engines.vllm.bias import PlacedBias, chosen, place_bias
from cof.engines.vllm.maps import KeptMaps, PlacedMap, attention_weights, place_map


class BiasedAttention:
    """A layer's attention that adds the bias; mixed into vLLM's own, which has these attributes."""

    num_heads: int
    scale: float
    kv_cache_dtype: str
    logits_soft_cap: float
    alibi_slopes: Any
    sinks: Any

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *scales: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """vLLM's own, and then what `metadata.biased` names once more."""
        stock: Tensor = super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, output, *scales, **kwargs
        )
        if attn_metadata is not None and attn_metadata.biased:
            self.attend_again(layer, query, kv_cache, attn_metadata, output)
        batch = _batch.get()
        if attn_metadata is not None and attn_metadata.maps and batch is not None:
            number = extract_layer_index(layer.layer_name)
            for row in attn_metadata.maps:
                order = row.wanted.order
                if number in order.layers:
                    blocks = attn_metadata.block_table[row.row]
                    weights = self._weights(layer, number, query[row.token], kv_cache, blocks, row)
                    batch.kept.keep(order.key, number, weights)
        return stock

    @property
    def first_head(self) -> int:
        """The number of this worker's first head in the model."""
        return int(get_tensor_model_parallel_rank()) * self.num_heads

    def _weights(
        self, layer: Any, number: int, query: Tensor, kv_cache: Tensor, blocks: Tensor, row: MapRow
    ) -> Tensor:
        """What the query of a map gives to its keys, `(heads, K)`."""
        length, bias = row.wanted.query + 1, row.bias
        keys = self.read_keys(layer, kv_cache, blocks[: -(-length // kv_cache.shape[2])].long())
        added = np.zeros((self.num_heads, length), dtype=np.float32)
        if bias is not None and (bias.layers is None or number in bias.layers):
            heads, values = chosen(bias.heads, self.first_head, self.num_heads), bias.values
            added[heads, : len(values)] = values[:length]
        weights = attention_weights(
            query,
            keys[:, :length],
            torch.from_numpy(added).to(query.device),
            scale=self.scale,
            window=self.window,
        )
        return weights[:, torch.from_numpy(row.wanted.keys).to(query.device)]

    @property
    def window(self) -> int:
        """How many keys a query attends to, itself included; 0 or less: all."""
        raise NotImplementedError

    def read_keys(self, layer: Any, kv_cache: Tensor, blocks: Tensor) -> Tensor:
        """`(KV heads, N * block size, D)` of the N blocks `(N,)`."""
        raise NotImplementedError

    def attend_again(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: Any, output: Tensor
    ) -> None:
        """Write attention with the bias to the rows of `output` in `metadata.biased`."""
        raise NotImplementedError


def biased_backend(stock: Any, attention: type, builder: type) -> Any:
    """A class to be given to vLLM in place of its backend `stock`: with the attention and metadata
    of that, into which ours are mixed."""
    name = f"Biased{stock.__name__}"
    impl = type(f"{name}Impl", (attention, stock.get_impl_cls()), {})
    metadata = type(f"{name}MetadataBuilder", (builder, stock.get_builder_cls()), {})
    ours = {"get_impl_cls": lambda: impl, "get_builder_cls": lambda: metadata}
    return type(name, (stock,), {key: staticmethod(get) for key, get in ours.items()})


@dataclass
class Batch:
    """The biased requests of one worker.

    Attributes:
        request_ids: `CommonAttentionMetadata` -> the request of each of its rows.
        biases: by request.
        maps: that are asked for, by request.
        kept: those that have been read.
    """

    request_ids: Callable[[Any], list[str]]
    biases: dict[str, PlacedBias] = field(default_factory=dict)
    maps: dict[str, PlacedMap] = field(default_factory=dict)
    kept: KeptMaps = field(default_factory=KeptMaps)

    @contextmanager
    def step(self, scheduled: Any) -> Iterator[None]:
        """Follow the requests that come and go in a `SchedulerOutput`, and bias what runs inside.

        Outside, where vLLM runs made-up batches, nothing is biased.
        """
        for request_id in scheduled.finished_req_ids:
            self.biases.pop(request_id, None)
            self.maps.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            bias = place_bias(new.sampling_params, new.mm_features)
            if bias is not None:
                self.biases[new.req_id] = bias
            wanted = place_map(new.sampling_params, new.mm_features, new.prompt_len)
            if wanted is not None:
                self.maps[new.req_id] = wanted
        token = _batch.set(self)
        try:
            yield
        finally:
            _batch.reset(token)


_batch: ContextVar[Batch | None] = ContextVar("cof_vllm_batch", default=None)


@dataclass(frozen=True, eq=False)
class BiasedRow:
    """Queries of one request that are computed again in this step; Q of them, the last of S keys.

    Attributes:
        row: of the request in the step's block table.
        start, stop: the queries' rows among the step's tokens.
        position: of the first query in the request.
        bias: what is added to the scores of its keys; None: nothing.
        last_keys: `(Q,)` int32, the last key that each query attends to. It is a later one than
            itself where an image's tokens attend to all of their image.
    """

    row: int
    start: int
    stop: int
    position: int
    bias: PlacedBias | None
    last_keys: NDArray[np.int32]

    @property
    def length(self) -> int:
        """S."""
        return self.position + len(self.last_keys)

    @property
    def looks_ahead(self) -> bool:
        """Whether a query attends to later tokens."""
        return bool((self.last_keys > np.arange(self.position, self.length)).any())


def biased_rows(common: Any, *, whole_images: bool = True) -> list[BiasedRow]:
    """Those of a `CommonAttentionMetadata`.

    Args:
        common: of one step.
        whole_images: whether the stock kernel lets an image's tokens attend to all of their image,
            in models that do so. If it does not, its queries of images are computed again too.
    """
    batch = _batch.get()
    if batch is None:
        return []
    images = common.mm_req_doc_ranges or {}
    if not batch.biases and (whole_images or not any(images.values())):
        return []
    rows = []
    starts = common.query_start_loc_cpu.tolist()
    lengths = common.seq_lens_cpu_upper_bound.tolist()  # exact, as nothing is speculative
    for row, request_id in enumerate(batch.request_ids(common)):
        start, stop, length = starts[row], starts[row + 1], lengths[row]
        position = length - (stop - start)
        bias = batch.biases.get(request_id)
        begins = [] if bias is None else [bias.start]
        spans = [span for span in images.get(row, ()) if span[0] < length and position <= span[1]]
        if not whole_images:
            begins += [first for first, _ in spans]
        first = max(min(begins, default=length), position)
        if first < length:
            last_keys = np.arange(first, length, dtype=np.int32)
            for begin, end in spans:
                last_keys[(last_keys >= begin) & (last_keys <= end)] = end
            rows.append(BiasedRow(row, start + first - position, stop, first, bias, last_keys))
    return rows


@dataclass(frozen=True, eq=False)
class MapRow:
    """A query of a step whose attention is wanted.

    Attributes:
        row: of its request in the step's block table.
        token: its row among the step's tokens.
        wanted: the map.
        bias: its request's, if that is on its scores.
    """

    row: int
    token: int
    wanted: PlacedMap
    bias: PlacedBias | None


def map_rows(common: Any) -> list[MapRow]:
    """Those of a `CommonAttentionMetadata`, where prompts end of which a map is wanted."""
    batch = _batch.get()
    if batch is None or not batch.maps:
        return []
    rows = []
    starts = common.query_start_loc_cpu.tolist()
    lengths = common.seq_lens_cpu_upper_bound.tolist()
    for row, request_id in enumerate(batch.request_ids(common)):
        wanted = batch.maps.get(request_id)
        if wanted is not None and 0 < lengths[row] - wanted.query <= starts[row + 1] - starts[row]:
            bias = batch.biases.get(request_id)
            bias = bias if bias is not None and bias.start <= wanted.query else None
            rows.append(MapRow(row, starts[row + 1] - lengths[row] + wanted.query, wanted, bias))
    return rows
