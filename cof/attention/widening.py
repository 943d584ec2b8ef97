"""A bias on attention scores without a mask: dimensions of queries and keys that carry it.

The product of the added dimensions is the bias, so that the kernel may stay the causal one, which
skips what is hidden. A mask as large as the scores takes twice its time at 3,000 tokens on a CPU;
on a GPU (an H100, up to 3,000 tokens) making the dimensions took longer than the mask did.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

LONG = 1024
"""Queries from which on this is cheaper than a mask, on a CPU."""

WIDER = 8  # two would do, but kernels are at their best with heads in multiples of 8


def pays(queries: int, device: torch.device) -> bool:
    """Whether widening is cheaper than a mask."""
    return queries >= LONG and device.type == "cpu"


def widened(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, where: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(B, H, N, D)` with `WIDER` dimensions more.

    Attention over them is softmax(scaling * query key + added * where), and of its output the
    first D dimensions count.

    Args:
        added: `(B, K)` float32, what is added to the scores of a key.
        where: 0 or 1 for each query, `(B, H or 1, Q or 1)`.
        scaling: that the kernel is called with.
    """
    query, key, value = (pad(of, (0, WIDER)) for of in (query, key, value))
    # 16 is exact in every dtype, and two numbers carry the rest: half precision rounds the bias no
    # more than it rounds scores.
    carried = (added / scaling / 16)[:, None]
    whole = carried.to(key.dtype)
    key[..., -WIDER] = whole
    key[..., 1 - WIDER] = (carried - whole.float()).to(key.dtype)
    query[..., -WIDER : 2 - WIDER] = (16 * where).to(query.dtype)[..., None]
    return query, key, value
