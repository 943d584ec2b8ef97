"""What vLLM's attention needs to know to be biased, whatever computes it.

The stock kernel runs for the whole batch. Then the queries that are biased are computed again, from
the same paged keys and values, with the bias added to their scores: by `cpu` or by `gpu`. Where a
map is asked for, the weights of its query are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from cof.engines.vllm.maps import MOST, PlacedMap, place_map


class BiasedAttention:
    """A layer's attention that adds the bias; mixed into vLLM's own, which has these attributes."""

    num_heads: int
    sliding_window: Any
    scale: float
    kv_cache_dtype: str
    logits_soft_cap: float
    alibi_slopes: Any
    sinks: Any
    captured = False
    """Whether it is in a CUDA graph."""

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
        """vLLM's own, then what `metadata.biased` names once more, and the maps."""
        stock: Tensor = super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, output, *scales, **kwargs
        )
        if attn_metadata is not None and attn_metadata.biased:
            self.attend_again(layer, query, kv_cache, attn_metadata, output)
        batch = _batch.get()
        for row, token, wanted in batch.reading if batch is not None else ():
            number = extract_layer_index(layer.layer_name)
            if number in wanted.layers:
                blocks = attn_metadata.block_table[row, : wanted.query // kv_cache.shape[2] + 1]
                keys = self.read_cache(layer, kv_cache, blocks.long())[0][:, : wanted.query + 1]
                wanted.found[number] = self._weights(number, query[token], keys, wanted)
        return stock

    @property
    def first_head(self) -> int:
        """The number of this worker's first head in the model."""
        return int(get_tensor_model_parallel_rank()) * self.num_heads

    @property
    def window(self) -> int:
        """How many keys a query attends to, itself included; 0 or less: all."""
        span = self.sliding_window  # on GPUs: how many before it, and after it
        return int(span[0] + 1 if isinstance(span, tuple) else span)

    def _weights(self, layer: int, query: Tensor, keys: Tensor, wanted: PlacedMap) -> Tensor:
        """The share of its attention that a query `(heads, D)` gives to the image's keys,
        `(heads, K)`. It is the last of the S tokens of `keys`, `(KV heads, S, D)`."""
        asked = query.float().unflatten(0, (len(keys), -1))  # (KV heads, heads of each, D)
        scores = (asked @ keys.float().transpose(1, 2)).flatten(0, 1) * self.scale
        bias = wanted.bias
        if bias is not None and (bias.layers is None or layer in bias.layers):
            heads = chosen(bias.heads, self.first_head, self.num_heads)
            added = torch.from_numpy(heads[:, None] * bias.values)
            scores[:, : added.shape[1]] += added.to(scores)
        if self.window > 0:
            scores[:, : -self.window] = -torch.inf
        return torch.softmax(scores, -1)[:, torch.from_numpy(wanted.keys).to(scores.device)]

    def read_cache(self, layer: Any, kv_cache: Tensor, blocks: Tensor) -> Sequence[Tensor]:
        """Keys and values `(KV heads, N * block size, D)` of N blocks `(N,)`."""
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
        maps: what is to be read, by request.
        reading: of these in this step: for each the request's row in the block table, and the
            query's among the step's tokens.
        kept: the newest maps, by name.
    """

    request_ids: Callable[[Any], list[str]]
    biases: dict[str, PlacedBias] = field(default_factory=dict)
    maps: dict[str, PlacedMap] = field(default_factory=dict)
    reading: list[tuple[int, int, PlacedMap]] = field(default_factory=list)
    kept: dict[str, PlacedMap] = field(default_factory=dict)

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
            if (wanted := place_map(new, bias)) is not None:
                self.maps[new.req_id] = self.kept[wanted.name] = wanted
                if len(self.kept) > MOST:  # whoever asked for the oldest has gone
                    del self.kept[next(iter(self.kept))]
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


def biased_rows(common: Any, *, whole_images: bool = True) -> list[BiasedRow] | None:
    """Those of a `CommonAttentionMetadata`; None outside a step. `Batch.reading` is written beside.

    Args:
        common: of one step.
        whole_images: whether the stock kernel lets an image's tokens attend to all of their image,
            in models that do so. If it does not, its queries of images are computed again too.
    """
    batch = _batch.get()
    if batch is None:
        return None
    batch.reading, images = [], common.mm_req_doc_ranges or {}
    if not batch.biases and not batch.maps and (whole_images or not any(images.values())):
        return []
    rows = []
    starts = common.query_start_loc_cpu.tolist()
    lengths = common.seq_lens_cpu_upper_bound.tolist()  # exact, as nothing is speculative
    for row, request_id in enumerate(batch.request_ids(common)):
        start, stop, length = starts[row], starts[row + 1], lengths[row]
        position = length - (stop - start)
        bias, wanted = batch.biases.get(request_id), batch.maps.get(request_id)
        if wanted is not None and position <= wanted.query < length:
            batch.reading.append((row, start + wanted.query - position, wanted))
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
