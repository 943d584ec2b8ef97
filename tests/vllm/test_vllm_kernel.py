"""The GPU kernel is plain attention with a bias in its mask: on a GPU if there is one (vLLM is not
needed), else interpreted.

On an H200 (torch 2.11, Triton 3.6) it ran as it was before CUDA graphs read its tiles; since then
interpreted alone.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
from torch import Tensor, nn
from triton.language import bfloat16, float32
from triton.runtime.interpreter import InterpreterBuilder

from cof.engines.vllm.kernel import TILE, BiasedTiles, attend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ, reason="no GPU, nor an interpreter"
)


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter multiplies the bits of bfloat16 numbers, not the numbers."""
    stock = InterpreterBuilder.create_dot

    def create_dot(self: Any, one: Any, other: Any, *rest: Any) -> Any:
        wide = (
            self.create_fp_ext(part, float32) if part.dtype == bfloat16 else part
            for part in (one, other)
        )
        return stock(self, *wide, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


LENGTHS = (70, 45, 9)
"""Keys of each request, so far."""
SCALE = 0.3
QUERIES = (70, 13, 1)
"""Of this step: a whole prompt, a chunk of one, and an answer's token."""


def plain(*parts: Tensor, scale: float, window: int = 0) -> Tensor:
    """Attention in float64 of `(Q, heads, D)`, the last of S tokens, to keys and values
    `(S, KV heads, D)`, with a bias `(heads, S)` and `(Q,)`, the last key of each query."""
    query, keys, values, bias, last = parts
    count, length = len(query), len(keys)
    position = torch.arange(length - count, length)[:, None]
    key = torch.arange(length)
    visible = key <= last[:, None]
    if window:
        visible &= position - key < window
    mask = bias.double()[:, None].masked_fill(~visible, -math.inf)
    wide = (part.double().transpose(0, 1)[None] for part in (query, keys, values))
    attended = nn.functional.scaled_dot_product_attention(
        *wide, attn_mask=mask[None], scale=scale, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "block", "window", "dtype", "bidirectional"),
    [
        (4, 2, 32, 16, 0, torch.float32, False),
        (4, 4, 64, 32, 0, torch.bfloat16, False),
        (7, 1, 40, 48, 20, torch.float32, False),
        (4, 1, 80, 16, 20, torch.float16, True),
        (2, 1, 256, 128, 0, torch.float32, True),
    ],
)
def test_it_is_attention_with_a_mask(
    heads: int, kv_heads: int, size: int, block: int, window: int, dtype: Any, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    count, layers, layer = sum(QUERIES), 3, 1
    query = torch.randn(count, 2 * heads, size, dtype=dtype)[:, ::2]  # as a slice of q, k and v
    wide = -(-max(LENGTHS) // block)
    order = torch.randperm(len(LENGTHS) * wide, dtype=torch.int32)
    blocks = order.view(len(LENGTHS), wide)
    # heads inside slots, as on GPUs, seen as heads outside them
    cache = torch.randn(len(order), block, kv_heads, 2 * size, dtype=dtype).transpose(1, 2)
    values = torch.zeros(len(LENGTHS), 40)
    for row, strength in enumerate((30.0, 0.01, 400.0)):
        values[row, 3 + row : 30 - 9 * row] = math.log(strength)
    gates = torch.ones(len(LENGTHS), layers, heads, dtype=torch.bool)
    gates[1, layer, 0] = gates[2, layer] = False
    gates[2, layer, 1] = True
    starts = (20, 0, 0)  # queries of each request's that are not biased

    biases = [
        torch.cat([gate.ravel(), of]).to(DEVICE) for gate, of in zip(gates, values, strict=True)
    ]

    tiles, last_keys, first = [], [], 0
    requests = list(enumerate(zip(LENGTHS, QUERIES, starts, strict=True)))
    for row, (length, queries, skip) in requests:
        bias = (biases[row].data_ptr(), values.shape[1])
        for at in range(skip, queries, TILE):
            tiles.append((row, first + at, length - queries + at, min(TILE, queries - at), *bias))
        position = torch.arange(length - queries, length)
        within = (position >= 25) & (position < 45) & bidirectional
        last_keys.append(torch.where(within, 44, position))
        first += queries
    last = torch.cat(last_keys).int()
    told = torch.tensor([*tiles, *[(0,) * 6] * 3], dtype=torch.int64, device=DEVICE)
    biased = BiasedTiles(told, len(told), layers, last.to(DEVICE) if bidirectional else None)
    output = torch.full((count, heads, size), 7.0, dtype=dtype, device=DEVICE)
    asked, cached, table = (part.to(DEVICE) for part in (query, cache, blocks))
    attend(asked, cached, table, output, biased, layer=layer, scale=SCALE, window=window)
    output = output.cpu()

    first = 0
    for row, (length, queries, skip) in requests:
        tokens = cache[blocks[row].long()].transpose(1, 2).reshape(-1, kv_heads, 2 * size)[:length]
        bias = torch.zeros(heads, length)
        known = min(length, values.shape[1])
        bias[:, :known] = values[row, :known]
        own = slice(first, first + queries)
        expected = plain(
            query[own], *tokens.split(size, -1), bias, last[own], scale=SCALE, window=window
        )
        got = output[own]
        chosen = gates[row, layer]
        # float32: 1.06e-5 was measured on an H200 (torch 2.11, Triton 3.6)
        close = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        assert (got[skip:, chosen] - expected[skip:, chosen]).abs().max() < close
        assert (got[:skip] == 7).all()  # left alone
        assert (got[:, ~chosen] == 7).all()
        first += queries
