"""The bias mask: built once per forward pass, shared by all layers (paper, section II-C).

On CPUs long sequences do without: dimensions of queries and keys carry the bias (`widened`). Their
product is the bias, so that the kernel may stay the causal one, which skips what is hidden. A mask
as large as the scores takes twice its time at 3,000 tokens on a CPU; on a GPU (an H100, up to 3,000
tokens) making the dimensions took longer than the mask did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import causal_mask_function, sdpa_mask

from cof.errors import CofError

LONG = 1024
"""Queries from which on this is cheaper than a mask, on a CPU."""

WIDER = 8  # two would do, but kernels are at their best with heads in multiples of 8


@dataclass(frozen=True, eq=False)
class Bias:
    """What is added to the pre-softmax attention scores; one row for each sequence of the batch.

    Attributes:
        values: `(B, L)` float, log(lambda) at highlighted keys and 0 elsewhere, by absolute key
            position (padding counts). Keys from L on, the generated tokens, get 0.
        q_from: `(B,)` int, the first absolute query position that is biased; None: every query.
        gate: `(B, layers, heads)` bool, where the bias applies; None: everywhere.

    Beams multiply the batch: row b of `values` is for the rows `b * n ... b * n + n - 1` of a batch
    of B * n.
    """

    values: Tensor
    q_from: Tensor | None = None
    gate: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether it changes nothing (lambda = 1 or an empty region in every row)."""
        return not bool(self.values.any()) or (self.gate is not None and not bool(self.gate.any()))


@dataclass(frozen=True, eq=False)
class Branches:
    """N tokens after each of B prompts, as branches of a tree that do not attend to one another."""

    tokens: Tensor  # `(B, N)` ids
    seen: Tensor  # `(B, N)`, 0 for padding
    visible: Tensor  # `(B, N, N)` bool: which of the N tokens each attends to, itself included


def make_gates(
    layers: Sequence[Sequence[int] | None],
    heads: Sequence[Sequence[int] | None],
    shape: tuple[int, int],
) -> Tensor | None:
    """Which layers and heads carry the bias, for `Bias.gate`.

    Args:
        layers, heads: the numbers chosen for each of B rows, from 0; None: all.
        shape: how many `(layers, heads)` the model has.

    Returns:
        `(B, layers, heads)` bool, or None when every row chooses everything.

    Raises:
        CofError: the model has no layer or head of that number.

    >>> make_gates([(1,)], [None], (2, 3)).int().tolist()
    [[[0, 0, 0], [1, 1, 1]]]
    """
    if all(row is None for row in (*layers, *heads)):
        return None
    gate = torch.ones(len(layers), *shape, dtype=torch.bool)
    for axis, (what, rows) in enumerate((("layers", layers), ("heads", heads))):
        for row, numbers in enumerate(rows):
            if numbers is None:
                continue
            if outside := [number for number in numbers if not 0 <= number < shape[axis]]:
                raise CofError(
                    f"{what} must be numbers from 0 to {shape[axis] - 1}, not {outside[0]}."
                )
            chosen = torch.isin(torch.arange(shape[axis]), torch.tensor(numbers, dtype=torch.long))
            gate[row] &= chosen.unsqueeze(1 - axis)
    return gate


def repeat_rows(rows: Tensor, batch_size: int) -> Tensor:
    """Repeat each of B rows for its beams: `(B, ...)` -> `(batch_size, ...)`."""
    if rows.shape[0] == batch_size:
        return rows
    if batch_size % rows.shape[0]:
        raise RuntimeError(f"a bias of {rows.shape[0]} rows does not fit a batch of {batch_size}")
    return rows.repeat_interleave(batch_size // rows.shape[0], dim=0)


def make_mask(
    bias: Bias | None,
    branches: Tensor | None,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    **kwargs: Any,
) -> Tensor | None:
    """The attention mask of one pass; other arguments are those of transformers' mask functions.

    Args:
        bias: what is added to scores; None: nothing.
        branches: `Branches.visible` of the last queries, which are also the last keys but for free
            positions of a fixed cache.

    Returns:
        Without both the stock mask, else `(B, 1, Q, K)`: boolean for branches alone; with a bias
        float, the bias where a query may attend to a key and the dtype's lowest number elsewhere;
        None where the layers' queries and keys carry the bias (`widened`).
    """
    if getattr(kwargs.get("config"), "sliding_window", None):
        kwargs = _count_tokens(branches, kv_offset + kv_length, **kwargs)
    if bias is None and branches is None:
        return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **kwargs)
    long = q_length >= LONG and kwargs["device"].type == "cpu"
    if bias is None or branches is not None or not long:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    visible = sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **kwargs)
    if visible is None:
        return None
    if branches is not None:
        count, end = branches.shape[-1], q_offset + q_length - kv_offset
        visible = visible.clone()  # it may be a view of one row for all
        visible[..., -count:, end - count : end] = branches[:, None]
    if bias is None:
        return visible
    queries, keys = range(q_offset, q_offset + q_length), range(kv_offset, kv_offset + kv_length)
    added, late = spread(bias, batch_size, queries, keys)
    dtype = kwargs.get("dtype", torch.float32)
    added = added.to(visible.device, dtype)[:, None, None]  # (B, 1, 1, K)
    if late is not None:
        added = added * late.to(visible.device)[:, None, :, None]
    return torch.where(visible, added, torch.finfo(dtype).min)


def spread(bias: Bias, rows: int, queries: range, keys: range) -> tuple[Tensor, Tensor | None]:
    """What is added to the scores of each of the keys, `(B, K)`, and for which of the queries,
    `(B, Q)`; None: for all of them."""
    device = bias.values.device
    # An additional column of zeros stands for every key after the prompt.
    values = nn.functional.pad(repeat_rows(bias.values, rows), (0, 1))
    at = torch.arange(keys.start, keys.stop, device=device).clamp(max=bias.values.shape[1])
    if bias.q_from is None:
        return values[:, at], None
    numbers = torch.arange(queries.start, queries.stop, device=device)
    return values[:, at], numbers >= repeat_rows(bias.q_from, rows)[:, None]


def _count_tokens(
    branches: Tensor | None,
    length: int,
    *,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """The arguments of a mask function for which sliding windows count tokens, not cache positions.

    The two differ where padding stands between a reused prefix and the rest, and for branches,
    which follow one another in the cache but their parents in the text. A prompt that is padded on
    the left only is unchanged.
    """
    kwargs |= {"mask_function": mask_function, "attention_mask": attention_mask}
    if attention_mask is None:
        return kwargs
    seen = attention_mask.bool()
    if branches is None and not bool((seen[:, :-1] & ~seen[:, 1:]).any()):
        return kwargs
    padding = seen.int().argmax(1, keepdim=True)  # (B, 1)
    at = padding + seen.cumsum(1) - 1
    if branches is not None:
        count = branches.shape[-1]
        at[:, -count:] = at[:, -count - 1 : -count] + branches.sum(2)
    at = nn.functional.pad(at, (0, max(length - at.shape[1], 0)))  # free positions of a fixed cache
    kwargs["mask_function"] = lambda row, head, query, key: mask_function(
        row, head, at[row, query], at[row, key]
    )
    return kwargs


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
    query, key, value = (nn.functional.pad(of, (0, WIDER)) for of in (query, key, value))
    # 16 is exact in every dtype, and two numbers carry the rest: half precision rounds the bias no
    # more than it rounds scores.
    carried = (added / scaling / 16)[:, None]
    whole = carried.to(key.dtype)
    key[..., -WIDER] = whole
    key[..., 1 - WIDER] = (carried - whole.float()).to(key.dtype)
    query[..., -WIDER : 2 - WIDER] = (16 * where).to(query.dtype)[..., None]
    return query, key, value
