"""Requests as prompts of a model: its chat, padded token ids, image features, and the bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cof.attention.bias_mask import Bias, make_gates
from cof.engines.transformers.adapter import Adapter
from cof.engines.transformers.batching import map_in_threads
from cof.engines.transformers.prefix_cache import Prompts
from cof.families.chat import Chat
from cof.families.image_tokens import ImageTokens
from cof.types import EncodedImage, Highlight, Request


@dataclass(frozen=True, eq=False)
class TokenizedRequests:
    """B requests in token ids, before anything is biased or moved to a device.

    Attributes:
        requests: what is asked, about images with the processor's output, and in `make_prompts`
            with their features.
        inputs: padded token ids, `(B, L)`, and what else the model takes beside them.
        image_first: whether the prompt of each comes after its image.
    """

    requests: Sequence[Request]
    inputs: dict[str, Tensor]
    image_first: Sequence[bool]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row without padding."""
        lengths: list[int] = self.inputs["attention_mask"].sum(1).tolist()
        return lengths


def tokenize_requests(
    adapter: Adapter, chat: Chat, requests: Sequence[Request]
) -> TokenizedRequests:
    """Requests in token ids.

    Raises:
        CofError: a prompt cannot be encoded.
    """
    texts = list(map(chat.text, requests))
    pixels = [[image.pixels for image in _encoded(request)] for request in requests]
    first = list(map(chat.image_first, texts, requests))
    return TokenizedRequests(requests, adapter.tokenize(texts, pixels), first)


def make_prompts(adapter: Adapter, tokens: ImageTokens, batch: TokenizedRequests) -> Prompts:
    """Tokenized requests where the model is, with the bias of their highlights.

    Raises:
        CofError: a layer or head the model does not have.
    """
    features = [
        torch.cat([image.features for image in _encoded(request)] or [torch.empty(0)])
        for request in batch.requests
    ]
    rows = [
        Row(request.highlight, request.pil_image.size, *own_features(request))
        for request in batch.requests
    ]
    return Prompts(
        {name: adapter.move(value) for name, value in batch.inputs.items()},
        features,
        make_bias(adapter, tokens, rows, batch.inputs),
        answer_type=1 - adapter.family.image_type,
    )


def own_features(request: Request) -> tuple[slice, int]:
    """Where the features of the image that is looked at stand among those of all images, which are
    encoded, and how many these are."""
    counts = [len(image.features) for image in _encoded(request)] or [0]
    start = sum(counts[: request.number])
    return slice(start, start + counts[request.number]), sum(counts)


def _encoded(request: Request) -> list[EncodedImage]:
    return request.images  # type: ignore[return-value]


@dataclass(frozen=True)
class Row:
    """What the bias of one sequence depends on: what is highlighted in an image of which size, and
    where the image's features stand among so many."""

    highlight: Highlight | None
    image_wh: tuple[int, int]
    own: slice
    total: int


def make_bias(
    adapter: Adapter, tokens: ImageTokens, rows: Sequence[Row], inputs: Mapping[str, Tensor]
) -> Bias | None:
    """The bias of B sequences; None if nothing is highlighted.

    Args:
        inputs: the model's text inputs, of which `input_ids` `(B, L)` are read.

    Raises:
        CofError: a layer or head the model does not have.
    """
    rows = [
        row if row.highlight and row.highlight.strength != 1 else replace(row, highlight=None)
        for row in rows
    ]
    highlights = [row.highlight for row in rows]
    if not any(highlights):
        return None

    def bias_row(row: Row) -> Tensor:
        added = torch.zeros(row.total)
        if row.highlight is not None:
            by_token = torch.from_numpy(tokens.bias(row.image_wh, row.highlight).ravel())
            added[row.own][adapter.first_feature :] = by_token
        return added

    values, image_ends = adapter.place(map_in_threads(bias_row, rows), inputs)
    text_only = torch.tensor([bool(of and of.scope == "text") for of in highlights])
    q_from, device = None, adapter.model.device
    if image_ends is not None and bool(text_only.any()):
        q_from = torch.where(text_only, image_ends, 0).to(device)
    gate = make_gates(
        [of.layers if of else None for of in highlights],
        [of.heads if of else None for of in highlights],
        adapter.shape,
    )
    return Bias(values.to(device), q_from, gate if gate is None else gate.to(device))
