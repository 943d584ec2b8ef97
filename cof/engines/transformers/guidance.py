"""Contrastive guidance: an answer led away from what the model says without looking there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor

from cof.errors import CofError
from cof.types import Decoding, Request


def guidance(request: Request) -> float:
    """How far a request's answer is led; 1: not at all."""
    return 1.0 if request.highlight is None else request.highlight.guidance


def contrast(request: Request) -> Request:
    """The other branch: the same request, with the region's tokens attended to as much less as
    they are attended to more in the first."""
    light = request.highlight
    if light is None:
        return request
    return replace(request, highlight=replace(light, strength=1 / light.strength, guidance=1.0))


def check_decoding(decoding: Decoding) -> None:
    """Both branches must be given the same token, and sampling and beams choose for each row.

    Raises:
        CofError: not greedy.
    """
    if decoding.temperature > 0 or decoding.num_beams > 1:
        raise CofError(
            "focus 'contrast' answers greedily: leave out temperature and num_beams, or use "
            "focus 'attention'."
        )


class Guided(LogitsProcessor):
    """Classifier-free guidance in a batch whose second half are the other branches of the first.

    log p = log p2 + g (log p1 - log p2), with g of each row (Prompt Highlighter, arXiv 2312.04302,
    equation 3). Both halves get it, and so go on with the same token.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = scales

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(2 B, V)` -> `(2 B, V)`."""
        looking, other = scores.float().log_softmax(-1).chunk(2)
        scale = torch.tensor(self.scales, device=scores.device)[:, None]
        led = other + scale * (looking - other)
        # what other processors have forbidden in both would be infinity minus infinity here
        led = led.masked_fill(looking.isneginf(), -torch.inf)
        return led.repeat(2, 1).to(scores.dtype)
