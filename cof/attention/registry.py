"""Fine attention reweighting: log(lambda) on the attention scores of chosen keys (section II-C).

Two attention implementations are registered with transformers under our own names. Models are
switched to them with `set_attn_implementation`; no class is patched.

* `DECODER`: the stock SDPA function, with a mask function that writes the bias into the mask. The
  mask is built once per forward pass and shared by all layers. Only highlights on a subset of
  layers or heads change it in each layer. Where the stock function needs no mask and the sequence
  is long, queries and keys may carry the bias in dimensions of their own. Where an indexer chooses
  each query's keys by the mask (Hy4-VL), it gets one without the bias.
* `CROSS_ATTENTION`: the stock mask function, with an attention function that adds the bias in the
  modules that `attach` has numbered. (Self- and cross-attention share one mask
  function there, so the bias cannot be in the mask.)

The bias travels in a `ContextVar` that `reweight` sets. While it is unset, both are the stock
implementation bit for bit, so they can stay switched on. Each thread has its own value.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cof.attention.bias_mask import Bias, Branches, make_mask, repeat_rows, spread, widened
from cof.errors import CofError

DECODER = "cof_decoder"
CROSS_ATTENTION = "cof_cross_attention"
_TAG = "cof_cross_attention_tag"
"""The attribute of a cross-attention module with its number, from 0, and the queries to record."""

EAGER = ("hy_v4_vl_text",)
"""Decoders whose attention has sinks, which SDPA lacks: their own eager function runs."""


@dataclass
class _Reweighting:
    """A bias in use, whether a pass has read it, and that pass's mask if an indexer must not."""

    bias: Bias
    read: bool = False
    mask: Tensor | None = None


_BRANCHES: ContextVar[Tensor | None] = ContextVar("cof_branches", default=None)
_REWEIGHTING: ContextVar[_Reweighting | None] = ContextVar("cof_reweighting", default=None)
_WEIGHTS: ContextVar[list[Tensor] | None] = ContextVar("cof_weights", default=None)
Value = TypeVar("Value")


@contextmanager
def _use(variable: ContextVar[Value | None], value: Value | None) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class NeverRead(CofError):
    """No attention of an attached model ran where a bias was set."""


@contextmanager
def reweight(bias: Bias | None) -> Iterator[None]:
    """Add `bias` to the attention of the models attached, in this thread, inside the `with`.

    None or an idle bias leaves the stock path untouched.

    Raises:
        NeverRead: at the end, if no attention of an attached model ran inside.
    """
    if bias is None or bias.idle:
        yield
        return
    current = _Reweighting(bias)
    with _use(_REWEIGHTING, current):
        yield
    if not current.read:
        raise NeverRead(
            "The bias was never read: this model's attention does not go through transformers' "
            "attention functions and masks, so it cannot be made to look."
        )


def use_branches(branches: Branches) -> AbstractContextManager[None]:
    """Treat the last tokens that a model reads as branches, inside the `with`."""
    return _use(_BRANCHES, branches.visible if branches.visible.numel() else None)


def is_in_mask() -> bool:
    """Whether masks alone change attention, in this thread: no layers or heads are chosen, and no
    weights recorded."""
    current = _REWEIGHTING.get()
    return _WEIGHTS.get() is None and (current is None or current.bias.gate is None)


@contextmanager
def record_weights() -> Iterator[list[Tensor]]:
    """Collect attention weights, in this thread, inside the `with`: one `(B, H, K)` per layer.

    In a decoder these are the weights of the last query (the position that predicts the answer's
    first token), in a Q-Former's cross-attention the mean over the queries. They are those of
    `softmax(A + mask)`, with the bias if one is set, in float32.
    """
    weights: list[Tensor] = []
    with _use(_WEIGHTS, weights):
        yield weights


def attach(
    model: Any, subconfig: str, modules: Sequence[nn.Module] = (), *, last_query: bool = False
) -> None:
    """Let the attention of the part of `model` with this config be reweighted.

    Args:
        modules: the cross-attention modules whose keys are the image's, in the order of the layers;
            empty: the part is a decoder, whose self-attention is meant.
        last_query: whether `record_weights` gets the weights of the last query, not the mean.

    Raises:
        CofError: its attention cannot be reweighted (it is not compatible with SDPA).
    """
    name = CROSS_ATTENTION if modules else DECODER
    config: Any = getattr(model.config, subconfig, None)
    owners = [m for m in model.modules() if getattr(m, "config", None) is config]
    # transformers checks this for the name "sdpa" only; and SDPA ignores softcaps.
    takes_sdpa = any(getattr(m, "_supports_sdpa", False) for m in owners)
    takes_ours = takes_sdpa or getattr(config, "model_type", None) in EAGER
    if takes_ours and not getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation({subconfig: name})
    if getattr(config, "_attn_implementation", None) != name:
        raise CofError(
            f"{type(model).__name__} does not let its attention be reweighted (its {subconfig} "
            "does not run on PyTorch's scaled-dot-product attention); choose another model."
        )
    recorded = slice(-1, None) if last_query else slice(None)
    for number, module in enumerate(modules):
        setattr(module, _TAG, (number, recorded))


def _decoder_mask(*shape: int, **kwargs: Any) -> Tensor | None:
    """transformers' mask function for `DECODER`."""
    current = _REWEIGHTING.get()
    if current is None:
        return make_mask(None, _BRANCHES.get(), *shape, **kwargs)
    options = getattr(kwargs.get("config"), "__dict__", ())
    current.read = not any(name.startswith("index") for name in options)
    mask = make_mask(current.bias, _BRANCHES.get(), *shape, **kwargs)
    if current.read or mask is None:
        return mask
    current.mask = mask  # read by `_attention`; the layers' indexers choose keys without the bias
    return mask > torch.finfo(mask.dtype).min


def _attention(
    decoder: bool,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stock SDPA. A decoder's mask carries the bias, and here loses it in layers and heads that are
    not chosen; without a mask queries and keys carry it. In tagged modules it is added to the mask,
    `(B, H or 1, Q or 1, K)`."""
    # what is compiled has its bias in the mask (`is_in_mask`)
    traced, tag = torch.compiler.is_compiling(), getattr(module, _TAG, None)
    current = None if traced else _REWEIGHTING.get()
    gate, size = None if current is None else current.bias.gate, value.shape[-1]
    if gate is not None and (decoder or tag is not None):
        chosen = gate[:, module.layer_idx if tag is None else tag[0]]
        gate = repeat_rows(chosen, query.shape[0]).to(query)[:, :, None, None]  # (B, H, 1, 1)
    lowest, indices = torch.finfo(query.dtype).min, kwargs.get("indices")
    if indices is not None and attention_mask is not None:  # (B, Q, N): the keys chosen, by number
        keys = torch.zeros_like(attention_mask).scatter(3, indices[:, None].long(), value=True)
        attention_mask = torch.where(keys & attention_mask, query.new_zeros(1), lowest)
    if current is not None and current.mask is not None and attention_mask is not None and decoder:
        visible = attention_mask if attention_mask.dtype == torch.bool else attention_mask > lowest
        attention_mask, current.read = torch.where(visible, current.mask.to(query), lowest), True
    if decoder and current is not None and attention_mask is None:
        kwargs["scaling"] = kwargs.get("scaling") or 1 / math.sqrt(query.shape[-1])
        added, late = spread(current.bias, len(query), range(query.shape[2]), range(key.shape[2]))
        where = torch.ones(1, 1, 1) if late is None else late[:, None]  # (B, H or 1, Q or 1)
        where = where if gate is None else where * gate[..., 0]
        query, key, value = widened(query, key, value, added.float(), where, kwargs["scaling"])
    elif decoder and gate is not None and attention_mask is not None:
        gated = attention_mask * gate
        attention_mask = torch.where(attention_mask > lowest, gated, lowest)  # (B, H, Q, K)
    if current is not None and tag is not None:
        current.read = True
        # zeros for the keys after the image's, a resampler's own latents
        added, _ = spread(current.bias, len(query), range(query.shape[2]), range(key.shape[2]))
        added = added.to(query)[:, None, None] * (1 if gate is None else gate)
        if attention_mask is None:
            attention_mask = added
        elif attention_mask.dtype == torch.bool:
            attention_mask = torch.where(attention_mask, added, lowest)
        else:
            attention_mask = attention_mask + added
    if indices is not None:  # `EAGER`
        own = sys.modules[type(module).__module__].eager_attention_forward
        out, weights = own(module, query, key, value, attention_mask, **kwargs)
        if not traced and (recorded := _WEIGHTS.get()) is not None:
            recorded.append(weights[:, :, -1].float())
        return out, None
    if (decoder or tag is not None) and not traced:
        queries = tag[1] if tag else slice(-1, None)
        _record(query[:, :, queries], key, attention_mask, kwargs.get("scaling"))
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out[..., :size], None


def _record(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
    weights = _WEIGHTS.get()
    if weights is None:
        return
    key = repeat_kv(key, query.shape[1] // key.shape[1])
    scaling = scaling or 1 / math.sqrt(query.shape[-1])
    scores = query.float() @ key.float().transpose(-1, -2) * scaling
    if mask is not None:  # without a mask the last query sees every key
        mask = mask[:, :, -scores.shape[2] :]
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights.append(scores.softmax(-1).mean(2))


for _name, _mask in ((DECODER, _decoder_mask), (CROSS_ATTENTION, sdpa_mask)):
    AttentionInterface.register(_name, partial(_attention, _name == DECODER))
    # Without a mask function of the same name padding and causality would be dropped silently.
    AttentionMaskInterface.register(_name, _mask)
