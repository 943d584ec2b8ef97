"""Short passes as CUDA graphs: one launch in the place of thousands.

A pass over few tokens takes the GPU less time than Python takes to launch its kernels. A pass with
the shapes and addresses of an earlier one is replayed in one launch instead. So keys and values
stand in buffers that do not move, attention reads these up to a multiple of `BLOCK` tokens, the
mask hides what is not filled and holds the bias, and new tokens are padded to a few `SIZES`.
First passes, long ones, and those with chosen layers or heads run as ever.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast

from cof.attention.registry import is_in_mask
from cof.errors import CofWarning, OutOfMemory

SIZES = (1, 16, 32, 64, 128)  # the new tokens of a short pass, in each row
MOST_TOKENS = 1024  # in all rows: beyond, the GPU works for longer than launches take
BLOCK, MOST_GRAPHS = 256, 64

KNOWN = {
    *("input_ids", "position_ids", "attention_mask", "past_key_values", "cache", "use_cache"),
    *("return_dict", "logits_to_keep", "image_grid_thw", "mm_token_type_ids", "token_type_ids"),
}
"""What a short pass may be given: its masks and positions stand for all that varies."""

Run = Callable[..., Tensor]
"""`(cache, places of the new tokens, ids, positions, masks)` -> logits `(B, Q, V)`."""


def pad_pass(rows: int, new: int) -> int:
    """How many tokens a pass over so many in each row should have, to be short if it can."""
    return next((size for size in SIZES if new <= size and rows * size <= MOST_TOKENS), new)


class FixedLayer(DynamicLayer):
    """One layer's keys and values, in two buffers `(B, heads, room, D)` that do not move."""

    def __init__(self, graphs: Graphs, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graphs, self.number = graphs, number
        self.whole: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        new, places, end = (key_states, value_states), self.graphs.places, self.graphs.end
        if places is None:
            first, count = self.get_seq_length(), key_states.shape[2]
            places, end = torch.arange(count, device=key_states.device) + first, self.reach(count)
            self.make_room(end, new)
            self.fill(count)
        for buffer, states in zip(self.whole, new, strict=True):
            buffer.index_copy_(2, places, states)
        return self.whole[0][:, :, :end], self.whole[1][:, :, :end]

    def make_room(self, tokens: int, like: Sequence[Tensor]) -> None:
        """Take larger buffers if these hold fewer tokens; `like` has their other sizes."""
        if self.whole and tokens <= self.whole[0].shape[2]:
            return
        old = [buffer[:, :, : self.get_seq_length()].clone() for buffer in self.whole]
        room = _round_up(tokens) + BLOCK
        self.whole = [
            self.graphs.buffer((self.number, part), of, room) for part, of in enumerate(like)
        ]
        for buffer, states in zip(self.whole, old, strict=False):
            buffer[:, :, : states.shape[2]] = states

    def fill(self, count: int) -> None:
        """Count so many tokens more as filled."""
        end = self.get_seq_length() + count
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.whole)
        self.is_initialized = True

    def reach(self, new: int) -> int:
        """How many keys the queries of new tokens are given."""
        end = self.get_seq_length() + new
        if end == new or new not in SIZES or len(self.whole[0]) * new > MOST_TOKENS:
            return end
        return _round_up(end + 1)  # with nothing to hide there would be no mask

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reach(query_length), 0


class FixedCache(Cache):
    """A KV cache in the buffers of a model's graphs; sliding-window layers are kept whole too."""

    def __init__(self, graphs: Graphs, layers: int) -> None:
        self.fixed = [FixedLayer(graphs, number) for number in range(layers)]
        super().__init__(layers=[*self.fixed])


class CudaGraph:
    """A pass recorded as a CUDA graph."""

    def __init__(self, run: Run, cache: FixedCache, *tensors: Tensor, pool: Any) -> None:
        self.inputs, self.graph = [tensor.clone() for tensor in tensors], torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(tensors[0].device),
            # other threads may go on meanwhile
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.logits = run(cache, *self.inputs)

    def __call__(self, cache: FixedCache, *tensors: Tensor) -> Tensor:
        for ours, given in zip(self.inputs, tensors, strict=True):
            ours.copy_(given)
        self.graph.replay()
        return self.logits.clone()  # the next graph writes where they are


class Graphs:
    """The short passes of one model, and the buffers that they share.

    One thread at a time has the buffers; those that find them taken run as ever.

    Attributes:
        steps: what runs each kind of pass; None: it was seen once, and is captured if it recurs.
        places, end: during a short pass, where its keys and values go, `(Q,)`, and up to where
            attention reads.
    """

    def __init__(self, model: Any, capture: Callable[..., Run] | None = None) -> None:
        """Take over the model's short passes.

        Args:
            capture: `(run, cache, tensors)` -> the same, faster, such as
                `lambda run, *_: torch.compile(run, dynamic=False)`; None: `CudaGraph`.
        """
        self.capture = capture or partial(CudaGraph, pool=torch.cuda.graph_pool_handle())
        self.steps: dict[Any, Run | None] = {}
        self.places: Tensor | None = None
        self.end = 0
        self._buffers: dict[Any, Tensor] = {}
        self._free, self._owner = threading.Lock(), 0
        self._model, self._forward = model, model.forward

        @wraps(model.forward)
        def forward(*args: Any, **inputs: Any) -> Any:
            cache = next((of for of in inputs.values() if isinstance(of, FixedCache)), None)
            if cache is None or not self._is_short(cache, inputs):
                return self._forward(*args, **inputs)
            logits: Any = self._run_short(cache, inputs)
            return CausalLMOutputWithPast(logits=logits)

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
        except OutOfMemory:
            self.steps.clear()
            self._buffers.clear()
            raise
        finally:
            self._owner = 0
            self._free.release()

    @property
    def leased(self) -> bool:
        """Whether this thread has the buffers; a new `FixedCache` ends all earlier ones then."""
        return self._owner == threading.get_ident()

    def buffer(self, name: Any, like: Tensor, room: int) -> Tensor:
        """Zeros `(B, heads, room, D)`, at the same address as ever or without any graph left."""
        shape = (*like.shape[:2], room, like.shape[3])
        needed, flat = prod(shape), self._buffers.get(name)
        if flat is None or len(flat) < needed:
            self.steps.clear()
            flat = self._buffers[name] = like.new_empty(1 << (needed - 1).bit_length())
        return flat[:needed].view(shape).zero_()  # NaN would be seen through the mask

    def _is_short(self, cache: FixedCache, inputs: dict[str, Any]) -> bool:
        """Whether a pass has a size of ours, and nothing but masks tells it from others."""
        ids, other = inputs.get("input_ids"), inputs.keys() - KNOWN
        if ids is None or inputs.get("position_ids") is None or not is_in_mask():
            return False
        longer = cache.fixed[0].reach(ids.shape[1]) > cache.get_seq_length() + ids.shape[1]
        return longer and all(inputs[name] is None for name in other)

    def _run_short(self, cache: FixedCache, inputs: dict[str, Any]) -> Tensor:
        """Logits `(B, Q, V)` after all new tokens."""
        ids, known = inputs["input_ids"], cache.get_seq_length()
        self.end = cache.fixed[0].reach(ids.shape[1])
        for layer in cache.fixed:
            layer.make_room(self.end, layer.whole)
        seen = inputs.get("attention_mask")
        if seen is None:  # nothing is padding; but what is not filled is to be hidden
            seen = ids.new_ones((len(ids), known + ids.shape[1]))
        like = torch.empty((*ids.shape, 0), dtype=self._model.dtype, device=ids.device)
        masks = create_masks_for_generate(self._model.config, like, seen, cache)
        kinds = list(masks) if isinstance(masks, dict) else []
        places = torch.arange(ids.shape[1], device=ids.device) + known
        positions = inputs["position_ids"].clone(memory_format=torch.contiguous_format)  # a slice
        tensors = [places, ids, positions, *(masks.values() if kinds else [masks])]
        (name,) = (name for name, of in inputs.items() if of is cache)

        def run(cache: FixedCache, places: Tensor, *tensors: Tensor) -> Tensor:
            self.places, (ids, positions, *masks) = places, tensors
            mask = dict(zip(kinds, masks, strict=True)) if kinds else masks[0]
            given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
            try:
                logits: Tensor = self._forward(**given, **{name: cache}, use_cache=True).logits
            finally:
                self.places = None
            return logits

        shapes = tuple((of.shape, of.dtype) for of in tensors)
        kind, step = (self.end, cache.fixed[0].whole[0].shape, shapes), run
        if kind in self.steps:  # it recurs
            step = self.steps.pop(kind) or self._captured(run, cache, tensors)
        logits = step(cache, *tensors)
        self.steps[kind] = None if step is run else step
        if len(self.steps) > MOST_GRAPHS:
            del self.steps[next(iter(self.steps))]  # the one not used for longest
        for layer in cache.fixed:
            layer.fill(ids.shape[1])
        return logits

    def _captured(self, run: Run, cache: FixedCache, tensors: list[Tensor]) -> Run:
        """A pass captured; if that fails, the same pass, with a note the first time."""
        try:
            return self.capture(run, cache, *tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.capture = lambda run, *_: run
            reason = str(error).partition("\n")[0]
            note = f"No CUDA graphs, passes run as ever ({reason}): say cuda_graphs=False."
            warnings.warn(note, CofWarning, stacklevel=2)
            return run


def runs_graphs(adapter: Any) -> bool:
    """Whether the short passes of an adapter's model can be replayed, with a note if not."""
    model, devices = adapter.model, {of.device for of in adapter.model.parameters()}
    alone = len(devices) == 1 and model.device.type == "cuda"
    if alone and adapter.reuses_states and not getattr(model, "is_quantized", False):
        return True
    note = "No CUDA graphs: they take a model on one GPU, not quantised, with images in its prompt."
    warnings.warn(note, CofWarning, stacklevel=2)
    return False


def _round_up(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK
