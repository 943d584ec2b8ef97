"""Requests as prompts of a model: its chat, padded token ids, image features, and the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cof.attention.bias_mask import Bias, make_gates
from cof.engines.transformers.batching import map_in_threads
from cof.engines.transformers.prefix_cache import Prompts
from cof.families import Family
from cof.families.chat import Chat
from cof.families.image_tokens import ImageTokens
from cof.types import EncodedImage, Request


@dataclass(frozen=True, eq=False)
class TokenizedRequests:
    """B requests in token ids, before anything is biased or moved to a device.

    Attributes:
        requests: what is asked.
        images: what each row shows, the image that a highlight is about first; they need the
            processor's output here, and their features in `PromptBuilder.prompts`.
        inputs: padded token ids, `(B, L)`, and what else the model takes beside them.
    """

    requests: Sequence[Request]
    images: Sequence[Sequence[EncodedImage]]
    inputs: dict[str, Tensor]

    @property
    def first_images(self) -> list[EncodedImage]:
        """The image of each row that a highlight is about."""
        return [images[0] for images in self.images]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row without padding."""
        lengths: list[int] = self.inputs["attention_mask"].sum(1).tolist()
        return lengths


@dataclass(frozen=True, eq=False)
class PromptBuilder:
    """Builds a model's prompts.

    Attributes:
        family: what is known of its kind.
        model: transformers' own.
        adapter: where the bias goes (`decoder_adapter.Adapter`).
        tokens: the model's image tokens.
        chat: writes its chats.
    """

    family: Family
    model: Any
    adapter: Any
    tokens: ImageTokens
    chat: Chat

    def tokenize(
        self, requests: Sequence[Request], images: Sequence[Sequence[EncodedImage]]
    ) -> TokenizedRequests:
        """Requests in token ids, each about one image or more.

        Raises:
            CofError: a prompt cannot be encoded.
        """
        texts = [
            self.chat.text(request, len(shown))
            for request, shown in zip(requests, images, strict=True)
        ]
        pixels = [[image.pixels for image in shown] for shown in images]
        inputs = self.adapter.tokenize(texts, pixels)
        return TokenizedRequests(requests, images, inputs)

    def prompts(self, batch: TokenizedRequests) -> Prompts:
        """Tokenized requests where the model is, with the bias of their highlights.

        Raises:
            CofError: a layer or head the model does not have.
        """
        device = self.model.device
        features = [torch.cat([image.features for image in shown]) for shown in batch.images]
        return Prompts(
            {name: value.to(device) for name, value in batch.inputs.items()},
            features,
            self._bias(batch, list(map(len, features))),
            answer_type=self.family.answer_type,
        )

    def _bias(self, batch: TokenizedRequests, num_features: Sequence[int]) -> Bias | None:
        highlights = [
            request.highlight if request.highlight and request.highlight.strength != 1 else None
            for request in batch.requests
        ]
        if not any(highlights):
            return None

        def bias_row(row: int) -> Tensor:
            highlight, image = highlights[row], batch.images[row][0]
            added = torch.zeros(num_features[row])
            if highlight is not None:
                start, end = self.family.num_prefix_features(self.model.config), len(image.features)
                by_token = self.tokens.bias(image.size, highlight)
                added[start:end] = torch.from_numpy(by_token.ravel())
            return added

        added = map_in_threads(bias_row, range(len(highlights)))
        values, image_ends = self.adapter.place(added, batch.inputs)
        scopes = [highlight.scope if highlight else None for highlight in highlights]
        text_only = torch.tensor([scope == "text" for scope in scopes])
        device = self.model.device
        q_from = None
        if image_ends is not None and bool(text_only.any()):
            q_from = torch.where(text_only, image_ends, 0).to(device)
        gate = make_gates(
            [highlight.layers if highlight else None for highlight in highlights],
            [highlight.heads if highlight else None for highlight in highlights],
            self.adapter.shape,
        )
        return Bias(values.to(device), q_from, gate if gate is None else gate.to(device))
