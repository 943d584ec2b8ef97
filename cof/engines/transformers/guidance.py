"""Contrastive guidance: an answer moved away from the one without attention to the region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor

from cof.types import Request


def guidance(request: Request) -> float:
    """The guidance scale of a request; 1: no guidance."""
    return 1.0 if request.highlight is None else request.highlight.guidance


def make_contrast(request: Request) -> Request:
    """The other branch: the same request with 1 / strength, which lowers the attention to the
    region."""
    highlight = request.highlight
    if highlight is None:
        return request
    lowered = replace(highlight, strength=1 / highlight.strength, guidance=1.0)
    return replace(request, highlight=lowered)


class Guided(LogitsProcessor):
    """Classifier-free guidance in a batch whose second half holds the other branches of the first.

    log p = log p2 + g (log p1 - log p2), with one g for each row (Prompt Highlighter,
    arXiv 2312.04302, equation 3). Both halves get the same scores, so that they continue with the
    same token.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = scales

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(2 B, V)` -> `(2 B, V)`."""
        looking, other = scores.float().log_softmax(-1).chunk(2)
        scale = torch.tensor(self.scales, device=scores.device)[:, None]
        guided = other + scale * (looking - other)
        # a token that other processors forbid would be infinity minus infinity here
        guided = guided.masked_fill(looking.isneginf(), -torch.inf)
        return guided.repeat(2, 1).to(scores.dtype)
