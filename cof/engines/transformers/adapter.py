"""What an adapter is: where the bias is attached in a model, and what differs for the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from cof.attention.registry import CROSS_ATTENTION, DECODER, attach, record_weights, reweight
from cof.engines.base import FIRST_TOKEN
from cof.engines.transformers.graphs import Graphs
from cof.engines.transformers.prefix_cache import Prefix, Prompts
from cof.families.table import Family

Pixels = Mapping[str, Any]
"""A processor's output for one image."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Attaches the bias to one model.

    Attributes:
        model, processor: transformers' own.
        family: what is known of its kind.
        graphs: what replays the model's short passes; None: they run as ever.
        attention_source: whose attention `weights` returns.
        part: the config of the part of the model that looks at the image.
        last_query: whether only the last query of `looking` is of interest in `weights`.
        takes_padding: whether rows of different lengths can run in one batch.
        reuses_states: whether the decoder's state after an image can be reused.
    """

    model: Any
    processor: Any
    family: Family
    graphs: Graphs | None = None
    attention_source: ClassVar[str] = FIRST_TOKEN
    part: ClassVar[str] = "text_config"
    last_query: ClassVar[bool] = False
    takes_padding: ClassVar[bool] = True
    reuses_states = False

    @property
    def looking(self) -> list[nn.Module]:
        """The cross-attention modules whose keys are the image's, by layer; empty: the decoder's
        self-attention sees the image."""
        return []

    def attach(self) -> None:
        """Switch the model's attention to ours, where it looks at the image and is not ours yet."""
        part = getattr(self.model.config, self.part, None)
        if getattr(part, "_attn_implementation", None) not in (DECODER, CROSS_ATTENTION):
            attach(self.model, self.part, self.looking, last_query=self.last_query)

    def reweighted(self, prompts: Prompts) -> AbstractContextManager[None]:
        """With the bias of some prompts inside, also after a caller's `set_attn_implementation`;
        prompts that need nothing of ours run with that."""
        if prompts.bias is not None or prompts.cache is not None:
            self.attach()
        return reweight(prompts.bias)

    @property
    def shape(self) -> tuple[int, int]:
        """How many `(layers, heads)` can be chosen."""
        config = getattr(self.model.config, self.part)
        return len(self.looking) or config.num_hidden_layers, config.num_attention_heads

    @property
    def first_feature(self) -> int:
        """How many image features stand before the first that has pixels of its own (CLS)."""
        return self.family.num_prefix_features(self.model.config)

    @property
    def generator(self) -> Any:
        """The module whose `generate` runs."""
        return self.model

    def encode(self, pixels: Sequence[Pixels]) -> list[Tensor]:
        """The vision features of each image, `(K, ...)`."""
        raise NotImplementedError

    def tokenize(self, texts: list[str], pixels: Sequence[Sequence[Pixels]]) -> dict[str, Tensor]:
        """Padded text inputs of B prompts, each about one image or more."""
        raise NotImplementedError

    def place(
        self, added: Sequence[Tensor], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """B rows of `(K,)`, one value per image feature -> `Bias.values`, and the end of each row's
        image (None where every query comes after it, as in cross-attention)."""
        return torch.stack(list(added)), None

    def resume(self, prompts: Prompts, prefixes: Sequence[Prefix], beams: int) -> Prompts:
        """The same prompts, with as much as possible taken from their images' prefixes."""
        return prompts

    def generate(self, prompts: Prompts, **kwargs: Any) -> Any:
        """transformers' `generate` on these prompts, with their bias."""
        raise NotImplementedError

    def look(self, prompts: Prompts, **kwargs: Any) -> Any:
        """As much of `generate` as reads the image."""
        return self.generate(prompts, **kwargs)  # it handles caches, padding and positions

    def weights(self, prompts: Prompts, config: GenerationConfig) -> list[Tensor]:
        """Each row's attention to its image features, `(layers, heads, K)`, from one pass.

        `config` is for a single token."""
        self.attach()
        with record_weights() as recorded:
            self.look(prompts, generation_config=config)
        return self.of_image(torch.stack(recorded, dim=1).cpu(), prompts)

    def of_image(self, weights: Tensor, prompts: Prompts) -> list[Tensor]:
        """`(B, layers, heads, keys)` -> the weights of each row's image features."""
        return [row[..., : len(prompts.features[0])] for row in weights]

    def move(self, value: Any) -> Tensor:
        """An array on the model's device, and in its dtype if it is floating-point."""
        tensor = torch.as_tensor(value)
        dtype = self.model.dtype if tensor.is_floating_point() else None
        return tensor.to(self.model.device, dtype)

    def stack(self, name: str, pixels: Sequence[Pixels]) -> Tensor:
        """One array of the processor's output for all images, on the model's device."""
        return self.move(torch.cat([torch.as_tensor(image[name]) for image in pixels]))
