"""Short passes as CUDA graphs: one launch in the place of thousands.

A pass over few tokens takes the GPU less time than Python takes to launch its kernels. A pass with
the shapes and the addresses of an earlier one is replayed in one launch instead. So keys and values
stand in buffers that stay where they are, attention reads these up to a multiple of `BLOCK` tokens
and the mask hides what is not filled, and the new tokens are padded to a few sizes. The bias is in
the mask, which is an input of the pass. Passes over images and other long ones run as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast

from cof.attention.registry import is_in_mask
from cof.errors import CofError

SIZES = (1, 16, 32, 64, 128)
"""The new tokens of a short pass, in each row."""

MOST_TOKENS = 1024  # in all rows: beyond, the GPU is busy for longer than the launches take
BLOCK, MOST_GRAPHS = 256, 64

UNREAD = ("image_grid_thw", "mm_token_type_ids", "token_type_ids")
"""Of what masks and positions were made: as long as the whole prompt, and not read any more."""

Run = Callable[..., Tensor]
"""`(cache, places of the new tokens, other tensors)` -> logits."""

Capture = Callable[..., Run]
"""`(run, cache, tensors)` -> the same pass, faster."""


class FixedLayer(DynamicLayer):
    """One layer's keys and values, each in a buffer `(B, heads, room, D)` that does not move."""

    def __init__(self, graphs: Graphs, number: int) -> None:
        self.graphs, self.number = graphs, number
        self.length = 0
        self.whole: list[Tensor] = []

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        return self.length > 0

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        return self.whole[0][:, :, : self.length]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        return self.whole[1][:, :, : self.length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if self.graphs.places is None:
            end, first = self.reach(key_states.shape[2]), self.length
            self.make_room(end, new)
            self.length += key_states.shape[2]
            for buffer, states in zip(self.whole, new, strict=True):
                buffer[:, :, first : self.length] = states
        else:
            end = self.graphs.end
            for buffer, states in zip(self.whole, new, strict=True):
                buffer.index_copy_(2, self.graphs.places, states)
        return self.whole[0][:, :, :end], self.whole[1][:, :, :end]

    def make_room(self, tokens: int, like: Sequence[Tensor]) -> None:
        """Move to larger buffers if these hold fewer tokens; `like` has their other sizes."""
        if self.whole and tokens <= self.whole[0].shape[2]:
            return
        old = [buffer[:, :, : self.length].clone() for buffer in self.whole]
        room = _round_up(tokens) + BLOCK
        self.whole = [
            self.graphs.buffer((self.number, part), states, room)
            for part, states in enumerate(like)
        ]
        for buffer, states in zip(self.whole, old, strict=False):
            buffer[:, :, : self.length] = states

    def reach(self, new: int) -> int:
        """How many keys the queries of new tokens are given."""
        end = self.length + new
        # one key more than there are: with nothing to hide there would be no mask
        return _round_up(end + 1) if self.pad(new) == new else end

    def pad(self, new: int) -> int:
        """The size of a short pass with room for so many tokens in each row; -1: it is long."""
        if not self.length:  # a prompt's first pass
            return -1
        size = next((size for size in SIZES if size >= new), MOST_TOKENS + 1)
        return size if len(self.whole[0]) * size <= MOST_TOKENS else -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reach(query_length), 0

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)


class FixedCache(Cache):
    """A KV cache in buffers that do not move; sliding-window layers are kept whole too."""

    def __init__(self, graphs: Graphs, layers: int) -> None:
        super().__init__(layers=[FixedLayer(graphs, number) for number in range(layers)])

    def pad(self, new: int) -> int:
        """How many tokens a pass over so many is to have, to be short; as many, if it is long."""
        return max(self.layers[0].pad(new), new)

    def is_short(self, new: int) -> bool:
        """Whether a pass over so many tokens can be replayed."""
        return self.layers[0].pad(new) == new


class CudaGraph:
    """A pass recorded as a CUDA graph: what it computes, in one launch."""

    def __init__(self, run: Run, cache: FixedCache, *tensors: Tensor, pool: Any) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        self.graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(tensors[0].device),
            # other threads may go on, with models of their own
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.logits = run(cache, *self.inputs)

    def __call__(self, cache: FixedCache, *tensors: Tensor) -> Tensor:
        for ours, given in zip(self.inputs, tensors, strict=True):
            ours.copy_(given)
        self.graph.replay()
        return self.logits.clone()  # the next graph overwrites them


class Graphs:
    """The short passes of one model, and the buffers that they share.

    One batch at a time has them. Threads that come while they are taken run as ever.

    Attributes:
        steps: what runs a pass of each kind; None: it was seen once, and is captured if it recurs.
        places, end: during a short pass, where its tokens' keys and values go, `(Q,)`, and up to
            where attention reads.
    """

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        """Take over the forward passes of a model that have a `FixedCache`.

        Args:
            capture: in the place of `CudaGraph`, such as `torch.compile` around its first argument.
        """
        self.capture = capture or partial(CudaGraph, pool=torch.cuda.graph_pool_handle())
        self.steps: dict[Any, Run | None] = {}
        self.places: Tensor | None = None
        self.end = 0
        self._buffers: dict[Any, Tensor] = {}
        self._free, self._owner = threading.Lock(), 0
        self.config, self.dtype, self._forward = model.config, model.dtype, model.forward

        @wraps(model.forward)
        def forward(*args: Any, **inputs: Any) -> Any:
            return self._dispatch(*args, **inputs)

        model.forward = forward

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Inside, this thread has the buffers, if they are free."""
        if not self._free.acquire(blocking=False):
            yield
            return
        self._owner = threading.get_ident()
        try:
            yield
        except BaseException:  # it may have run out of memory
            self.clear()
            raise
        finally:
            self._owner = 0
            self._free.release()

    def new_cache(self, layers: int) -> FixedCache | None:
        """An empty cache, which ends all earlier ones; None where others have the buffers."""
        return FixedCache(self, layers) if self._owner == threading.get_ident() else None

    def buffer(self, name: Any, like: Tensor, room: int) -> Tensor:
        """Zeros `(B, heads, room, D)` at the same address as ever, or else without any graph."""
        shape = (*like.shape[:2], room, like.shape[3])
        needed, flat = prod(shape), self._buffers.get(name)
        if flat is None or len(flat) < needed:
            self.steps.clear()
            flat = self._buffers[name] = like.new_zeros(1 << (needed - 1).bit_length())
        # a number that is none would be seen through the mask
        return flat[:needed].view(shape).zero_()

    def clear(self) -> None:
        """Free the memory."""
        self.steps.clear()
        self._buffers.clear()

    def _dispatch(self, *args: Any, **inputs: Any) -> Any:
        cache = next((of for of in inputs.values() if isinstance(of, FixedCache)), None)
        ids = inputs.get("input_ids")
        if cache is None or ids is None or not self._replays(cache, ids.shape[1], inputs):
            return self._forward(*args, **inputs)
        new, first = ids.shape[1], cache.get_seq_length()
        self.end = cache.layers[0].reach(new)
        for layer in cache.layers:
            layer.make_room(self.end, layer.whole)
        places = torch.arange(first, first + new, device=ids.device)
        like = torch.empty((*ids.shape, 0), dtype=self.dtype, device=ids.device)
        seen = inputs.pop("attention_mask", None)
        if seen is None:  # no padding; but what is free is to be hidden
            seen = ids.new_ones((len(ids), first + new))
        masks = create_masks_for_generate(self.config, like, seen, cache)
        other = {name: of for name, of in inputs.items() if of is not cache and name not in UNREAD}
        leaves, spec = tree_flatten(other | {"attention_mask": masks})
        constants = [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        tensors = [places, *(leaf for leaf in leaves if isinstance(leaf, Tensor))]
        (name,) = (name for name, of in inputs.items() if of is cache)

        def run(cache: FixedCache, places: Tensor, *tensors: Tensor) -> Tensor:
            given = iter(tensors)
            filled = [next(given) if leaf is ... else leaf for leaf in constants]
            self.places = places
            try:
                logits: Tensor = self._forward(**tree_unflatten(filled, spec) | {name: cache}).logits
            finally:
                self.places = None
            return logits

        shapes = [(of.shape, of.dtype) for of in tensors]
        kind = (self.end, cache.layers[0].whole[0].shape, str(spec), str(constants), str(shapes))
        step = self.steps.pop(kind, run)
        if step is None:
            step = self.capture(run, cache, *tensors)
        logits = step(cache, *tensors)
        self.steps[kind] = None if step is run else step  # the last one is the latest
        if len(self.steps) > MOST_GRAPHS:
            del self.steps[next(iter(self.steps))]
        for layer in cache.layers:
            layer.length += new
        return CausalLMOutputWithPast(logits=logits)

    def _replays(self, cache: FixedCache, new: int, inputs: dict[str, Any]) -> bool:
        """Whether a pass is short, and nothing but its logits is asked for."""
        more = ("mm_encoder_outputs", "pixel_values", "output_hidden_states", "output_attentions")
        asked = any(inputs.get(name) is not None for name in more)
        return not asked and is_in_mask() and cache.is_short(new)


def runs_graphs(adapter: Any, asked: bool | None) -> bool:
    """Whether the short passes of an adapter's model are replayed; see `TransformersEngine`.

    Raises:
        CofError: they are asked for where there can be none.
    """
    if asked is False:
        return False
    model = adapter.model
    devices = {parameter.device for parameter in model.parameters()}
    whole = len(devices) == 1 and next(iter(devices)).type == "cuda"
    can = whole and adapter.reuses_states and not getattr(model, "is_quantized", False)
    if asked and not can:
        raise CofError(
            "cuda_graphs takes a model on one GPU, not quantised, whose decoder has a KV cache in "
            "every layer and reads the image as tokens: leave it out."
        )
    return can and (asked or adapter.family.graphs)


def _round_up(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK

