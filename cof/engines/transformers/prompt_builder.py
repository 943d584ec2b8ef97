"""Requests as prompts of a model: its chat, padded token ids, image features, and the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cof.attention.bias_mask import Bias, gates
from cof.engines.transformers.batching import threaded
from cof.engines.transformers.prefix_cache import Prompts
from cof.engines.transformers.special_tokens import SpecialTokens
from cof.families import Family
from cof.families.chat import chat
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
    """Writes a model's prompts.

    Attributes:
        family: what is known of its kind.
        model, processor: transformers' own.
        adapter: where it is made to look (`decoder_adapter.Adapter`).
        tokens: which of its tokens show what of an image.
    """

    family: Family
    model: Any
    processor: Any
    adapter: Any
    tokens: ImageTokens

    @cached_property
    def special(self) -> SpecialTokens:
        """The model's special tokens."""
        return SpecialTokens.of_tokenizer(self.processor.tokenizer, self.processor, self.chat(""))

    @cached_property
    def _notation(self) -> frozenset[str]:
        """Those in which its own grounding prompt is written."""
        template = self.tokens.dialect.template
        return frozenset(text for text in self.special.texts if text in template)

    def text(self, request: Request, images: int = 1) -> str:
        """A request as `chat`, the special tokens in what the user typed escaped.

        Raises:
            CofError: the prompt cannot be encoded.
        """
        escaped = self.special.escape(request.prompt, request.notation, self._notation)
        return self.chat(escaped, images)

    def chat(self, prompt: str, images: int = 1) -> str:
        """A user's turn as the model was trained to read it, up to where the answer begins."""
        return chat(self.family, self.processor, prompt, images)

    def tokenize(
        self, requests: Sequence[Request], images: Sequence[Sequence[EncodedImage]]
    ) -> TokenizedRequests:
        """Requests in token ids, each about one image or more.

        Raises:
            CofError: a prompt cannot be encoded.
        """
        texts = [
            self.text(request, len(shown)) for request, shown in zip(requests, images, strict=True)
        ]
        inputs = self.adapter.tokenize(texts, [[of.pixels for of in shown] for shown in images])
        return TokenizedRequests(requests, images, inputs)

    def prompts(self, batch: TokenizedRequests) -> Prompts:
        """Tokenized requests where the model is, with the bias of their highlights.

        Raises:
            CofError: a layer or head the model does not have.
        """
        device = self.model.device
        features = [torch.cat([of.features for of in shown]) for shown in batch.images]
        return Prompts(
            {name: value.to(device) for name, value in batch.inputs.items()},
            features,
            self._bias(batch, [len(of) for of in features]),
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
                start, end = self.family.lead(self.model.config), len(image.features)
                by_token = self.tokens.added(image.size, highlight)
                added[start:end] = torch.from_numpy(by_token.ravel())
            return added

        added = threaded(bias_row, range(len(highlights)))
        values, image_ends = self.adapter.place(added, batch.inputs)
        text_only = torch.tensor([of is not None and of.scope == "text" for of in highlights])
        device = self.model.device
        q_from = None
        if image_ends is not None and bool(text_only.any()):
            q_from = torch.where(text_only, image_ends, 0).to(device)
        gate = gates(
            [of.layers if of else None for of in highlights],
            [of.heads if of else None for of in highlights],
            self.adapter.shape,
        )
        return Bias(values.to(device), q_from, gate if gate is None else gate.to(device))
