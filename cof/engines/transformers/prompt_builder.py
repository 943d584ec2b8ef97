"""Requests as prompts of a model: its chat, padded token ids, image features, and the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cof.attention.bias_mask import Bias, make_gates
from cof.engines.transformers.adapter import Adapter
from cof.engines.transformers.batching import map_in_threads
from cof.engines.transformers.prefix_cache import Prompts
from cof.families.chat import Chat
from cof.families.image_tokens import ImageTokens
from cof.types import EncodedImage, Request


@dataclass(frozen=True, eq=False)
class TokenizedRequests:
    """B requests in token ids, before anything is biased or moved to a device.

    Attributes:
        requests: what is asked, about images with the processor's output, and in
            `PromptBuilder.prompts` with their features.
        inputs: padded token ids, `(B, L)`, and what else the model takes beside them.
    """

    requests: Sequence[Request]
    inputs: dict[str, Tensor]

    @property
    def images(self) -> list[EncodedImage]:
        """The image of each row that a highlight is about."""
        return [request.image for request in self.requests]  # type: ignore[misc]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row without padding."""
        lengths: list[int] = self.inputs["attention_mask"].sum(1).tolist()
        return lengths


def shown(request: Request) -> list[Any]:
    """The images of a request, the one that a highlight is about first."""
    return [request.image, request.beside] if request.beside else [request.image]


@dataclass(frozen=True, eq=False)
class PromptBuilder:
    """Builds a model's prompts.

    Attributes:
        adapter: of the model.
        tokens: its image tokens.
        chat: writes its chats.
    """

    adapter: Adapter
    tokens: ImageTokens
    chat: Chat

    def tokenize(self, requests: Sequence[Request]) -> TokenizedRequests:
        """Requests in token ids.

        Raises:
            CofError: a prompt cannot be encoded.
        """
        texts = [self.chat.text(request, len(shown(request))) for request in requests]
        pixels = [[image.pixels for image in shown(request)] for request in requests]
        return TokenizedRequests(requests, self.adapter.tokenize(texts, pixels))

    def prompts(self, batch: TokenizedRequests) -> Prompts:
        """Tokenized requests where the model is, with the bias of their highlights.

        Raises:
            CofError: a layer or head the model does not have.
        """
        features = [torch.cat([i.features for i in shown(request)]) for request in batch.requests]
        return Prompts(
            {name: self.adapter.move(value) for name, value in batch.inputs.items()},
            features,
            self._bias(batch, list(map(len, features))),
            answer_type=self.adapter.family.answer_type,
        )

    def _bias(self, batch: TokenizedRequests, num_features: Sequence[int]) -> Bias | None:
        highlights = [
            request.highlight if request.highlight and request.highlight.strength != 1 else None
            for request in batch.requests
        ]
        if not any(highlights):
            return None

        def bias_row(row: int) -> Tensor:
            highlight, image = highlights[row], batch.images[row]
            added = torch.zeros(num_features[row])
            if highlight is not None:
                start = self.adapter.first_feature
                by_token = torch.from_numpy(self.tokens.bias(image.size, highlight).ravel())
                added[start : len(image.features)] = by_token
            return added

        added = map_in_threads(bias_row, range(len(highlights)))
        values, image_ends = self.adapter.place(added, batch.inputs)
        text_only = torch.tensor([bool(of and of.scope == "text") for of in highlights])
        q_from, device = None, self.adapter.model.device
        if image_ends is not None and bool(text_only.any()):
            q_from = torch.where(text_only, image_ends, 0).to(device)
        gate = make_gates(
            [of.layers if of else None for of in highlights],
            [of.heads if of else None for of in highlights],
            self.adapter.shape,
        )
        return Bias(values.to(device), q_from, gate if gate is None else gate.to(device))
