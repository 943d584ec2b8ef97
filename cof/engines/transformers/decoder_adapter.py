"""Adapters: where the bias is attached in a model, and what differs for the engine.

`DecoderAdapter`: image tokens stand in the prompt, and the decoder's self-attention is reweighted.
The adapters of models that read the image through cross-attention are in `cross_attention_adapter`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cof.attention.bias_mask import Branches
from cof.attention.registry import attach_decoder, record_weights, reweight, use_branches
from cof.engines.transformers.cross_attention_adapter import (
    Kosmos2Adapter,
    MllamaAdapter,
    QFormerAdapter,
    move_to,
)
from cof.engines.transformers.prefix_cache import (
    Prefix,
    Prompts,
    append_branches,
    can_crop,
    count_reusable,
    full_length_cache,
    is_unbiased,
    level_reuse,
    resume_prompts,
    split_cache,
    start_cache,
)
from cof.families.chat import adds_special_tokens
from cof.families.special_tokens import tokenize

if TYPE_CHECKING:
    from cof.families.family import Family


class Adapter(Protocol):
    """Attaches the bias to one model; made by its `attach`.

    Attributes:
        shape: how many `(layers, heads)` can be chosen.
        attention_source: whose attention `weights` returns.
        takes_padding: whether rows of different lengths can run in one batch.
    """

    shape: tuple[int, int]
    attention_source: ClassVar[str]
    takes_padding: ClassVar[bool]

    def encode(self, pixels: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """The processor's output for each image -> its vision features, `(K, ...)`."""
        ...

    def tokenize(
        self, texts: list[str], pixels: Sequence[Sequence[Mapping[str, Any]]]
    ) -> dict[str, Tensor]:
        """Padded text inputs of B prompts, each about one processed image or more."""
        ...

    def place(
        self, added: Sequence[Tensor], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """B rows of `(K,)`, one value per image feature -> `Bias.values`, and the end of each row's
        image (None where every query comes after it)."""
        ...

    def resume(self, prompts: Prompts, prefixes: Sequence[Prefix | None], beams: int) -> Prompts:
        """The same prompts, with as much as possible taken from their images' prefixes."""
        ...

    def generate(self, prompts: Prompts, cache: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate` on these prompts, with their bias; tokens that `cache` holds are
        not computed again."""
        ...

    def weights(self, prompts: Prompts, **kwargs: Any) -> list[Tensor]:
        """Each row's attention to its image features, `(layers, heads, K)`, from one pass.

        `kwargs` are those of `generate` for a single token."""
        ...


@dataclass(frozen=True, eq=False)
class DecoderAdapter:
    """Image features are decoder tokens.

    Attributes:
        model: with `DECODER` attention switched on in its text decoder.
        processor: its processor.
        shape: how many `(layers, heads)` can be chosen.
        image_type: the value of image tokens in `token_type_ids`, where the model takes them.
        bidirectional: whether image tokens attend to later tokens of their image. The states of an
            image are then reused whole or not at all.
    """

    model: Any
    processor: Any
    shape: tuple[int, int]
    image_type: int
    bidirectional: bool = False
    attention_source: ClassVar[str] = "the answer's first token"
    takes_padding: ClassVar[bool] = True

    @classmethod
    def attach(cls, model: Any, processor: Any, family: Family) -> DecoderAdapter:
        attach_decoder(model)
        text = model.config.get_text_config()
        shape = (text.num_hidden_layers, text.num_attention_heads)
        bidirectional = family.bidirectional(model.config)
        return cls(model, processor, shape, family.image_type, bidirectional)

    @property
    def generator(self) -> Any:
        """The module whose `generate` runs."""
        return self.model

    def encode(self, pixels: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """`(K, levels * D)` for each image; Qwen3-VL has deeper levels beside the first.

        `(K, 1, D)` where the model takes the features of all images as one tensor.
        """
        features_of = self.model.base_model.get_image_features
        takes = inspect.signature(features_of).parameters
        images = [
            {name: torch.as_tensor(value) for name, value in output.items() if name in takes}
            for output in pixels
        ]
        alike: dict[object, list[int]] = {}
        for index, image in enumerate(images):
            alike.setdefault(tuple(value.shape for value in image.values()), []).append(index)
        features: dict[int, Tensor] = {}
        for rows in alike.values():
            stacked = {
                name: move_to(torch.cat([images[row][name] for row in rows]), self.model)
                for name in images[rows[0]]
            }
            output = features_of(**stacked, return_dict=True)
            features |= zip(rows, _per_image(output, len(rows)), strict=True)
        return [features[index] for index in range(len(images))]

    def tokenize(
        self, texts: list[str], pixels: Sequence[Sequence[Mapping[str, Any]]]
    ) -> dict[str, Tensor]:
        expanded = [self._expand(text, shown) for text, shown in zip(texts, pixels, strict=True)]
        tokenizer = self.processor.tokenizer
        inputs = tokenize(
            tokenizer,
            expanded,
            add_special_tokens=adds_special_tokens(self.processor, texts[0]),
        )
        takes = inspect.signature(self.model.forward).parameters
        types = {
            name: self._is_image(inputs["input_ids"]).long() * kind
            for name, kind in (("mm_token_type_ids", 1), ("token_type_ids", self.image_type))
            if name in takes
        }
        grids = {
            name: torch.cat([torch.as_tensor(image[name]) for row in pixels for image in row])
            for name in ("image_grid_thw",)
            if name in takes
        }
        return {**inputs, **types, **grids}

    def _expand(self, text: str, pixels: Sequence[Mapping[str, Any]]) -> str:
        """A text in which each image token is repeated for all tokens of its image."""
        first, *rest = text.split(str(self.processor.image_token), len(pixels))
        tokens = [self.processor.replace_image_token(dict(image), 0) for image in pixels]
        return first + "".join(map("".join, zip(tokens, rest, strict=True)))

    def place(
        self, added: Sequence[Tensor], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        is_image = inputs["input_ids"] == self.model.config.image_token_id  # (B, L)
        values = torch.zeros(is_image.shape)
        for row, by_feature in enumerate(added):
            values[row, is_image[row]] = by_feature
        length = is_image.shape[1]
        ends = length - is_image.flip(1).int().argmax(1)  # just after the last image token
        return values, ends

    @property
    def reuses_states(self) -> bool:
        """Whether the state after an image can be reused."""
        return can_crop(full_length_cache(self.model.config))

    def spans(self, prompts: Prompts) -> tuple[list[int], list[int]]:
        """Where each row's text begins, after its padding, and where its image ends."""
        ids = prompts.inputs["input_ids"]
        starts = prompts.inputs["attention_mask"].argmax(1)
        ends = ids.shape[1] - self._is_image(ids).flip(1).int().argmax(1)
        return starts.tolist(), ends.tolist()

    def prefixes(self, prompts: Prompts) -> list[Prefix]:
        """The prefix of each row's image, from a pass of its own."""
        starts, ends = self.spans(prompts)
        length = max(ends)  # nothing after the last image is computed
        shorter = {
            name: value[..., :length] if value.shape == prompts.inputs["input_ids"].shape else value
            for name, value in prompts.inputs.items()
        }
        inputs = shorter | self._positions(shorter)
        cache = full_length_cache(self.model.config)
        self.model(
            **self._inputs(inputs, prompts.features), past_key_values=cache, logits_to_keep=1
        )
        return split_cache(cache, inputs["input_ids"], starts, ends)

    def leaves_prefixes(self, prompts: Prompts) -> bool:
        """Whether the pass over these prompts computes their images' prefixes, nothing biased."""
        return is_unbiased(prompts, self.spans(prompts)[1])

    def split_prefixes(self, prompts: Prompts, cache: Any) -> list[Prefix]:
        """The prefix of each row's image, from the cache that a pass over these prompts left."""
        return split_cache(cache, prompts.inputs["input_ids"], *self.spans(prompts))

    def resume(self, prompts: Prompts, prefixes: Sequence[Prefix | None], beams: int) -> Prompts:
        reused = count_reusable(prompts, prefixes)
        # With beams `generate` compares the numbers of image tokens and features. And it passes
        # the types of new tokens only, which mark the image tokens that attend both ways.
        whole = beams > 1 or self.bidirectional
        if not whole:
            reused = level_reuse(prompts, reused)
        if not any(reused):
            return prompts
        shorter = resume_prompts(prompts, prefixes, reused)
        splits = self._is_image(shorter.inputs["input_ids"][:, shorter.cached :]).any()
        return prompts if whole and bool(splits) else shorter

    def generate(self, prompts: Prompts, cache: Any = None, **kwargs: Any) -> Any:
        if cache is None and (prompts.cached or prompts.keeps_states):
            beams = kwargs["generation_config"].num_beams
            cache = start_cache(prompts, self.model.config, beams)
        if cache is not None:
            kwargs["past_key_values"] = cache
        inputs = prompts.inputs | self._positions(prompts.inputs)
        with reweight(prompts.bias):
            return self.model.generate(
                **self._inputs(inputs, self._new_features(prompts, cache)), **kwargs
            )

    def read(self, prompts: Prompts, branches: Branches, cache: Any = None) -> tuple[Tensor, Any]:
        """See `box_decoding.Reader`."""
        if cache is None:
            cache = start_cache(prompts, self.model.config)
        inputs = prompts.inputs | self._positions(prompts.inputs)
        features = self._new_features(prompts, cache)
        more = branches.tokens.shape[1]
        inputs = append_branches(inputs, branches, prompts.answer_type)
        new = inputs["input_ids"].shape[1] - cache.get_seq_length()
        ready = self.model.prepare_inputs_for_generation(
            **self._inputs(inputs, features),
            next_sequence_length=new,
            past_key_values=cache,
            is_first_iteration=cache.get_seq_length() == prompts.cached,
            use_cache=True,
            logits_to_keep=1 + more,
        )
        # EXAONE 4.5 leaves them out, and would count positions in the cache
        ready["position_ids"] = inputs["position_ids"][..., -new:]
        with reweight(prompts.bias), use_branches(branches):
            logits = self.model(**ready).logits
        if more:
            cache.crop(-more)
        return logits, cache

    def _new_features(self, prompts: Prompts, cache: Any) -> list[Tensor]:
        """The features of the image tokens that are not in the cache."""
        if cache is None:
            return prompts.features
        cached_ids = prompts.inputs["input_ids"][:, : cache.get_seq_length()]
        counts = self._is_image(cached_ids).sum(1).tolist()
        return [features[n:] for features, n in zip(prompts.features, counts, strict=True)]

    def _positions(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The position of every token, those in a cache included: `(..., B, L)`.

        Given a cache, transformers' models with positions in a grid (Qwen) would continue from the
        prompts that they saw last, whichever those were.
        """
        ids = inputs["input_ids"]
        return {"position_ids": self.model._prepare_position_ids_for_generation(ids, dict(inputs))}

    def weights(self, prompts: Prompts, **kwargs: Any) -> list[Tensor]:
        # `generate` handles caches, padding and positions; one token is one pass.
        with record_weights() as recorded:
            self.generate(prompts, **kwargs)
        weights = torch.stack(recorded, dim=1).cpu()  # (B, layers, heads, L)
        is_image = self._is_image(prompts.inputs["input_ids"]).cpu()
        return [row[..., mask] for row, mask in zip(weights, is_image, strict=True)]

    def _is_image(self, ids: Tensor) -> Tensor:
        return torch.eq(ids, self.model.config.image_token_id)

    def _inputs(self, inputs: Mapping[str, Tensor], features: Sequence[Tensor]) -> dict[str, Any]:
        if not any(map(len, features)):  # all of them are in the cache
            return dict(inputs)
        # A fresh value each time: `generate` expands it in place for beams.
        images: Any = BaseModelOutputWithPooling()
        if features[0].ndim == 3:
            images.pooler_output = torch.cat(list(features))
        else:
            width = self.model.config.get_text_config().hidden_size
            levels = [torch.split(image, width, dim=-1) for image in features]
            images.pooler_output, *deeper = map(list, zip(*levels, strict=True))
            if deeper:
                images.deepstack_features = deeper
        return {**inputs, "mm_encoder_outputs": {"image": images}}


def _per_image(output: Any, count: int) -> list[Tensor]:
    """The features of `count` images whose inputs have the same shapes -> `(K, ...)` of each."""
    pooled = output.pooler_output
    if isinstance(pooled, Tensor):  # (count * tiles, tokens, D)
        return [image.reshape(-1, 1, image.shape[-1]) for image in pooled.chunk(count)]
    deeper = getattr(output, "deepstack_features", None) or []
    return [torch.cat(levels, dim=-1) for levels in zip(pooled, *deeper, strict=True)]


ADAPTERS: dict[
    str, type[DecoderAdapter] | type[QFormerAdapter] | type[MllamaAdapter] | type[Kosmos2Adapter]
] = {
    "decoder": DecoderAdapter,
    "qformer": QFormerAdapter,
    "mllama": MllamaAdapter,
    "kosmos2": Kosmos2Adapter,
}
