"""The adapter of models whose image tokens stand in the prompt, and all adapters by name.

The decoder's self-attention is reweighted. The adapters of models that read the image through
cross-attention are in `cross_attention_adapter`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cof.attention.bias_mask import Branches
from cof.attention.registry import DECODER, use_branches
from cof.engines.transformers import prefix_cache
from cof.engines.transformers.adapter import Adapter, Pixels
from cof.engines.transformers.cross_attention_adapter import (
    Kosmos2Adapter,
    MllamaAdapter,
    QFormerAdapter,
)
from cof.engines.transformers.graphs import FixedCache, pad_pass
from cof.engines.transformers.prefix_cache import CACHE, Prefix, Prompts
from cof.errors import CofError
from cof.families.chat import adds_special_tokens
from cof.families.processors import image_text
from cof.families.special_tokens import tokenize


class DecoderAdapter(Adapter):
    """Image features are decoder tokens."""

    @property
    def reuses_states(self) -> bool:  # type: ignore[override]
        """Whether every layer has a KV cache to crop; linear-attention layers have none."""
        layers = prefix_cache.full_length_cache(self.model.config).layers
        return all(type(layer) is DynamicLayer for layer in layers)

    def encode(self, pixels: Sequence[Pixels]) -> list[Tensor]:
        """`(K, levels * D)` for each image; Qwen3-VL has deeper levels beside the first.

        `(K, 1, D)` where the model takes the features of all images as one tensor.
        """
        features_of = self.model.base_model.get_image_features
        takes = inspect.signature(features_of).parameters
        images = [
            {name: torch.as_tensor(value) for name, value in output.items() if name in takes}
            for output in pixels
        ]
        shapes: list[Any] = [tuple(value.shape for value in image.values()) for image in images]
        if not self.family.stacks:
            shapes = list(range(len(images)))
        features: dict[int, Tensor] = {}
        for shape in dict.fromkeys(shapes):
            rows = [row for row, other in enumerate(shapes) if other == shape]
            alike = [images[row] for row in rows]
            stacked = {name: self.stack(name, alike) for name in alike[0]}
            output = features_of(**stacked, return_dict=True)
            features |= zip(rows, _per_image(output, len(rows)), strict=True)
        return [features[index] for index in range(len(images))]

    def tokenize(self, texts: list[str], pixels: Sequence[Sequence[Pixels]]) -> dict[str, Tensor]:
        expanded = [self._expand(text, shown) for text, shown in zip(texts, pixels, strict=True)]
        tokenizer = self.processor.tokenizer
        special = adds_special_tokens(self.processor, texts[0])
        inputs = tokenize(tokenizer, expanded, add_special_tokens=special)
        takes = inspect.signature(self.model.forward).parameters
        ids, types = inputs["input_ids"], dict[str, Tensor]()
        if "mm_token_type_ids" in takes:  # Molmo 2 counts the tokens around an image's as well
            marked = self.processor.create_mm_token_type_ids(ids.tolist())
            types["mm_token_type_ids"] = torch.tensor(marked)
        if "token_type_ids" in takes:
            types["token_type_ids"] = self.is_image(ids).long() * self.family.image_type
        if "image_grid_thw" in takes:
            grids = [torch.as_tensor(image["image_grid_thw"]) for row in pixels for image in row]
            if grids:
                inputs["image_grid_thw"] = torch.cat(grids)
        return {**inputs, **types}

    def _expand(self, text: str, pixels: Sequence[Pixels]) -> str:
        """A text in which each image token is repeated for all tokens of its image."""
        first, *rest = text.split(str(self.processor.image_token), len(pixels))
        if len(rest) < len(pixels):
            raise CofError(
                f"The chat template of {self.family.name} shows {len(rest)} of the chat's "
                f"{len(pixels)} images: leave the others out, or put them into the last message."
            )
        tokens = [image_text(self.processor, image, n) for n, image in enumerate(pixels)]
        return first + "".join(map("".join, zip(tokens, rest, strict=True)))

    def place(
        self, added: Sequence[Tensor], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        is_image = self.is_image(inputs["input_ids"])
        values = torch.zeros(is_image.shape)
        for row, by_feature in enumerate(added):
            values[row, is_image[row]] = by_feature
        return values, self._image_ends(inputs["input_ids"])

    def spans(self, ids: Tensor, seen: Tensor, counts: Sequence[int]) -> list[tuple[int, int]]:
        """Where each row begins, after its padding, and where as many image tokens have come."""
        passed = self.is_image(ids).cumsum(1) >= torch.tensor(counts, device=ids.device)[:, None]
        ends = passed.int().argmax(1) + 1
        return list(zip(seen.argmax(1).tolist(), ends.tolist(), strict=True))

    def prefixes(self, prompts: Prompts, spans: Sequence[tuple[int, int]]) -> list[Prefix]:
        """The states of each row from a start to an end, from a pass of its own."""
        ids = prompts.inputs["input_ids"]
        length = int(self._image_ends(ids).max())  # nothing after the last image is computed
        inputs = {
            name: value[..., :length] if value.shape == ids.shape else value
            for name, value in prompts.inputs.items()
        }
        prompts = self.with_cache(replace(prompts, inputs=inputs))
        self.model(**self._new_inputs(prompts), **{CACHE: prompts.cache}, logits_to_keep=1)
        return prefix_cache.split_cache(prompts.cache, ids, spans)

    def resume(self, prompts: Prompts, prefixes: Sequence[Prefix], beams: int) -> Prompts:
        reused = prefix_cache.count_reusable(prompts, prefixes)
        # With beams `generate` compares the numbers of image tokens and features. And it passes
        # the types of new tokens only, which mark the image tokens that attend both ways.
        whole = beams > 1 or self.family.bidirectional(self.model.config)
        if not whole:
            # The longest rest has to be computed anyway, and the others would be padded to it.
            lengths = prompts.inputs["attention_mask"].sum(1).tolist()
            left = max(length - count for length, count in zip(lengths, reused, strict=True))
            reused = [max(length - left, 0) for length in lengths]
        if not any(reused):
            return prompts
        cache = self._new_cache(beams)
        fixed = isinstance(cache, FixedCache)
        shorter = prefix_cache.resume_prompts(prompts, reused, fixed=fixed)
        if whole and bool(self.is_image(shorter.inputs["input_ids"][:, shorter.cached :]).any()):
            return prompts
        prefix_cache.join_prefixes(prefixes, reused, cache, beams)
        return replace(shorter, cache=cache)

    def with_cache(self, prompts: Prompts) -> Prompts:
        """The prompts with a KV cache that every layer keeps whole, so that it can be read."""
        return replace(prompts, cache=self._new_cache()) if prompts.cache is None else prompts

    def _new_cache(self, beams: int = 1) -> Cache:
        cache = prefix_cache.full_length_cache(self.model.config)
        if self.graphs is None or not self.graphs.leased or beams > 1:
            return cache
        return FixedCache(self.graphs, len(cache))

    def generate(self, prompts: Prompts, **kwargs: Any) -> Any:
        ours = self.model.config.text_config._attn_implementation == DECODER
        if self.graphs is not None and ours and kwargs["generation_config"].num_beams == 1:
            prompts = self.with_cache(prompts)
        if prompts.cache is not None:
            kwargs[CACHE] = prompts.cache
        with self.reweighted(prompts):
            # Janus's own `generate` drops logits processors
            return GenerationMixin.generate(self.model, **self._new_inputs(prompts), **kwargs)

    def read(self, prompts: Prompts, branches: Branches) -> Tensor:
        """One pass over the tokens that the prompts' cache lacks, which it keeps, and over
        branches, which it does not keep.

        Returns:
            Logits `(B, 1 + N, V)` after the prompts' last token and after each of the N tokens of
            the branches.
        """
        cache: Any = prompts.cache
        more = branches.tokens.shape[1]
        inputs = self._new_inputs(prompts)
        inputs = prefix_cache.append_branches(inputs, branches, prompts.answer_type)
        new = inputs["input_ids"].shape[1] - cache.get_seq_length()
        ready = self.model.prepare_inputs_for_generation(
            **inputs,
            next_sequence_length=new,
            **{CACHE: cache},
            is_first_iteration=cache.get_seq_length() == prompts.cached,
            use_cache=True,
            logits_to_keep=1 + more,
        )
        # EXAONE 4.5 leaves them out, and would count positions in the cache
        ready["position_ids"] = inputs["position_ids"][..., -new:]
        with self.reweighted(prompts), use_branches(branches):
            logits: Tensor = self.model(**ready).logits
        if more:
            cache.crop(-more)
        return logits[:, -1 - more :]  # short passes and VideoLLaMA 3 give those of all tokens

    def spare(self, prompts: Prompts, more: int) -> int:
        """By how many nodes branches of so many are to be padded for `read`."""
        if not isinstance(prompts.cache, FixedCache):
            return 0
        rows, length = prompts.inputs["input_ids"].shape
        new = length - prompts.cache.get_seq_length() + more
        return pad_pass(rows, new) - new

    def _new_inputs(self, prompts: Prompts) -> dict[str, Any]:
        """The inputs, and the features of the image tokens that are not in the cache."""
        ids = prompts.inputs["input_ids"]
        known = 0 if prompts.cache is None else prompts.cache.get_seq_length()
        counts = self.is_image(ids[:, :known]).sum(1).tolist()
        features = [of[count:] for of, count in zip(prompts.features, counts, strict=True)]
        features = [each for each in features if len(each)]
        # The position of every token, those in a cache included: `(..., B, L)`. Given a cache,
        # transformers' models with positions in a grid (Qwen) would continue from the prompts that
        # they saw last, whichever those were.
        positions = self.model._prepare_position_ids_for_generation(ids, dict(prompts.inputs))
        inputs: dict[str, Any] = {**prompts.inputs, "position_ids": positions}
        if not features:  # all of them are in the cache
            return inputs
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

    def of_image(self, weights: Tensor, prompts: Prompts) -> list[Tensor]:
        is_image = self.is_image(prompts.inputs["input_ids"]).cpu()
        length = is_image.shape[1]  # buffers may have more keys
        return [row[..., :length][..., mask] for row, mask in zip(weights, is_image, strict=True)]

    def _image_ends(self, ids: Tensor) -> Tensor:
        """`(B, L)` token ids -> the place just after each row's last image token."""
        return ids.shape[1] - self.is_image(ids).flip(1).int().argmax(1)

    def is_image(self, ids: Tensor) -> Tensor:
        """`(B, L)` token ids -> which are image tokens."""
        return torch.eq(ids, self.model.config.image_token_id)


def _per_image(output: Any, count: int) -> list[Tensor]:
    """The features of `count` images whose inputs have the same shapes -> `(K, ...)` of each."""
    pooled = output.pooler_output
    if isinstance(pooled, Tensor):  # (count * tiles, tokens, D)
        return [image.reshape(-1, 1, image.shape[-1]) for image in pooled.chunk(count)]
    if len(pooled) > count:  # MiniCPM-OCR has one for each slice of its one image
        pooled = [torch.cat(list(pooled))]
    deeper = getattr(output, "deepstack_features", None) or []
    return [torch.cat(levels, dim=-1) for levels in zip(pooled, *deeper, strict=True)]


ADAPTERS: dict[str, type[Adapter]] = {
    "decoder": DecoderAdapter,
    "qformer": QFormerAdapter,
    "mllama": MllamaAdapter,
    "kosmos2": Kosmos2Adapter,
}
