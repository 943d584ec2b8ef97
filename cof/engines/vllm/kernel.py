"""Attention with a bias by key position over vLLM's paged KV cache, as one Triton kernel.

Tested interpreted (`TRITON_INTERPRET=1`) and compiled for compute capability 8.0 and 9.0; before it
read its tiles and biases at addresses, also on an H200. Its block sizes are not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import triton
from torch import Tensor
from triton import language as tl

TILE = 32
"""The most queries that one program computes; they are those of one request."""

KEYS = 32
"""The keys that a program reads at a time."""


@dataclass(frozen=True, eq=False)
class BiasedTiles:
    """The queries of a step that are biased, in tiles.

    A CUDA graph may read them: they are told by memory that stays where it is.

    Attributes:
        tiles: `(M, 6)` int64: the request's row in the step's block table, the first query's row
            among the step's tokens, its position in the request, the number of queries (1 ...
            TILE; 0: there is nothing to do), and the address of a bias and its length L. That is
            float32, a gate for each layer and head (where it is 0, queries are left alone), and
            `(L,)`, what is added to the scores of the keys; those from L on get 0.
        count: the first so many of the tiles are looked at.
        layers: of a bias.
        last_keys: `(tokens,)` int32, the last key that each of the step's tokens attends to; None:
            its own.
    """

    tiles: Tensor
    count: int
    layers: int
    last_keys: Tensor | None = None


def attend(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    output: Tensor,
    biased: BiasedTiles,
    *,
    layer: int,
    scale: float,
    window: int = 0,
) -> None:
    """Write attention with the bias to the rows and heads of `output` that are biased.

    Args:
        query: `(tokens, heads, D)`.
        kv_cache: `(blocks, KV heads, block size, 2 * D)`, keys before values, of any strides; it
            holds the keys of these queries too.
        block_table: `(requests of the step, N)` int32, the blocks of their keys.
        output: `(tokens, heads, D)`.
        layer: the number of this layer, for the gates.
        scale: of the scores, before the bias.
        window: how many keys a query attends to, itself included; 0: all.
    """
    heads, size = query.shape[1:]
    tensors = (query, kv_cache, block_table, output, biased.tiles, biased.last_keys)
    strides = [of.stride()[:-1] for of in (query, kv_cache, block_table, output)]
    _kernel[(biased.count, heads)](
        *tensors,
        layer * heads,
        biased.layers * heads,
        scale,
        *chain(*strides),
        BLOCK=kv_cache.shape[2],
        GROUP=heads // kv_cache.shape[1],
        SIZE=size,
        WIDTH=triton.next_power_of_2(size),
        WINDOW=window,
        TILE=TILE,
        KEYS=KEYS,
        num_stages=1,  # float32 heads of 256 leave no shared memory for more
    )


@triton.jit(do_not_specialize=["gate"])  # else it would be compiled anew for other layers
def _kernel(
    query,
    kv_cache,
    blocks,
    output,
    tiles,
    last_keys,
    gate,
    num_gates,
    scale,
    query_token,
    query_head,
    cache_block,
    cache_head,
    cache_slot,
    blocks_row,
    output_token,
    output_head,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    tiles += 6 * tile
    count = tl.load(tiles + 3).to(tl.int32)
    if count == 0:
        return
    bias = tl.load(tiles + 4).to(tl.pointer_type(tl.float32))
    if tl.load(bias + gate + head) == 0:
        return
    row = tl.load(tiles)
    first = tl.load(tiles + 1).to(tl.int32)
    position = tl.load(tiles + 2).to(tl.int32)
    num_values = tl.load(tiles + 5)

    rows, size = tl.arange(0, TILE), tl.arange(0, WIDTH)
    tokens = (first + rows).to(tl.int64)
    positions = position + rows
    held = rows < count
    inside = size < SIZE
    here = held[:, None] & inside[None, :]
    asked = tl.load(
        query + tokens[:, None] * query_token + head * query_head + size[None, :],
        mask=here,
        other=0.0,
    )
    last = positions
    if last_keys is not None:
        last = tl.load(last_keys + tokens, mask=held, other=0)
    end = tl.max(tl.where(held, last, 0)) + 1
    start = 0
    if WINDOW > 0:
        start = tl.maximum(position - WINDOW + 1, 0) // KEYS * KEYS

    largest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    summed = tl.zeros([TILE, WIDTH], tl.float32)
    for at in range(start, end, KEYS):
        keys = at + tl.arange(0, KEYS)
        exist = keys < end
        block = tl.load(blocks + row * blocks_row + keys // BLOCK, mask=exist, other=0)
        places = (
            block.to(tl.int64) * cache_block
            + head // GROUP * cache_head
            + keys % BLOCK * cache_slot
        )
        page = kv_cache + places[:, None] + size[None, :]
        known = exist[:, None] & inside[None, :]
        key = tl.load(page, mask=known, other=0.0)
        value = tl.load(page + SIZE, mask=known, other=0.0)
        added = tl.load(bias + num_gates + keys, mask=keys < num_values, other=0.0)

        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale + added[None, :]
        visible = exist[None, :] & (keys[None, :] <= last[:, None])
        if WINDOW > 0:
            visible &= positions[:, None] - keys[None, :] < WINDOW
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        # a row may see none of these keys, or be no query at all
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        kept = tl.exp(largest - shift)
        weights = tl.exp(scores - shift[:, None])
        total = total * kept + tl.sum(weights, 1)
        summed = summed * kept[:, None] + tl.dot(
            weights.to(value.dtype), value, input_precision="ieee"
        )
        largest = higher

    attended = summed / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(
        output + tokens[:, None] * output_token + head * output_head + size[None, :],
        attended.to(output.dtype.element_ty),
        mask=here,
    )
