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
class Draft:
    """B requests in token ids, before anything is biased or moved to a device.

    Attributes:
        requests: what is asked; second images are encoded.
        encoded: their first images.
        inputs: padded token ids, `(B, L)`, and what else the model takes beside them.
        features: the vision features of each row's images.
    """

    requests: Sequence[Request]
    encoded: Sequence[EncodedImage]
    inputs: dict[str, Tensor]
    features: list[Tensor]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding left out."""
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

    def draft(self, requests: Sequence[Request], encoded: Sequence[EncodedImage]) -> Draft:
        """Token ids of requests about images that are encoded."""
        shown: list[list[Any]] = [
            [of] if request.beside is None else [of, request.beside]
            for request, of in zip(requests, encoded, strict=True)
        ]
        texts = [
            self.text(request, len(images)) for request, images in zip(requests, shown, strict=True)
        ]
        inputs = self.adapter.tokenize(texts, [[of.pixels for of in images] for images in shown])
        features = [torch.cat([of.features for of in images]) for images in shown]
        return Draft(requests, encoded, inputs, features)

    def prompts(self, draft: Draft) -> Prompts:
        """A draft where the model is, with the bias of its highlights.

        Raises:
            CofError: a layer or head the model does not have.
        """
        device = self.model.device
        return Prompts(
            {name: value.to(device) for name, value in draft.inputs.items()},
            draft.features,
            self._bias(draft),
            answer_type=self.family.answer_type,
        )

    def _bias(self, draft: Draft) -> Bias | None:
        lights = [
            request.highlight if request.highlight and request.highlight.strength != 1 else None
            for request in draft.requests
        ]
        if not any(lights):
            return None

        def row(index: int) -> Tensor:
            light, image = lights[index], draft.encoded[index]
            added = torch.zeros(len(draft.features[index]))
            if light is not None:
                first, last = self.family.lead(self.model.config), len(image.features)
                added[first:last] = torch.from_numpy(self.tokens.added(image.size, light).ravel())
            return added

        added = threaded(row, range(len(lights)))
        values, image_ends = self.adapter.place(added, draft.inputs)
        text_only = torch.tensor([light is not None and light.scope == "text" for light in lights])
        device = self.model.device
        q_from = None
        if image_ends is not None and bool(text_only.any()):
            q_from = torch.where(text_only, image_ends, 0).to(device)
        gate = gates(
            [light.layers if light else None for light in lights],
            [light.heads if light else None for light in lights],
            self.adapter.shape,
        )
        return Bias(values.to(device), q_from, gate if gate is None else gate.to(device))
