"""Adapters of models in which image features are keys of cross-attention.

`QFormerAdapter`: a Q-Former attends to the image, once for each question. `MllamaAdapter`: some
layers of the decoder do. `Kosmos2Adapter`: latent queries do, and their outputs stand in the
prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from cof.engines.transformers.adapter import Adapter, Pixels
from cof.engines.transformers.prefix_cache import CACHE, Prompts
from cof.families.special_tokens import SpecialTokens, tokenize, unescape


class QFormerAdapter(Adapter):
    """Image features are keys of the Q-Former's cross-attention (InstructBLIP, BLIP-2)."""

    attention_source: ClassVar[str] = "the Q-Former"
    part: ClassVar[str] = "qformer_config"

    @property
    def looking(self) -> list[nn.Module]:
        layers = self.model.qformer.encoder.layer
        return [layer.crossattention.attention for layer in layers if layer.has_cross_attention]

    @property
    def generator(self) -> Any:
        return self.model.language_model

    def encode(self, pixels: Sequence[Pixels]) -> list[Tensor]:
        vision = self.model.vision_model(pixel_values=self.stack("pixel_values", pixels))
        return list(vision.last_hidden_state)

    def tokenize(self, texts: list[str], pixels: Sequence[Sequence[Pixels]]) -> dict[str, Tensor]:
        # Left padding would stand between the queries and the text and change T5's positions, which
        # are distances.
        side = "right" if self.generator.config.is_encoder_decoder else "left"
        inputs = tokenize(self.processor.tokenizer, texts, padding_side=side)
        reader = getattr(self.processor, "qformer_tokenizer", None)
        if reader is not None:
            special = SpecialTokens.of_tokenizer(reader)
            # The processor would pad this text on the left too, which shifts its absolute
            # positions. There are only 512 (InstructBLIP's authors truncate the text as well).
            read = tokenize(
                reader,
                [special.escape(unescape(text)) for text in texts],
                padding_side="right",
                max_length=self.model.config.qformer_config.max_position_embeddings,
            )
            inputs["qformer_input_ids"] = read["input_ids"]
            inputs["qformer_attention_mask"] = read["attention_mask"]
        # As in the processor, the queries' positions come before the start token and its padding.
        config = self.model.config
        queries = torch.full((len(texts), config.num_query_tokens), config.image_token_id)
        ids, seen = inputs["input_ids"], inputs["attention_mask"]
        inputs["input_ids"] = torch.cat([queries, ids], dim=1)
        inputs["attention_mask"] = torch.cat([torch.ones_like(queries), seen], dim=1)
        return inputs

    def generate(self, prompts: Prompts, **kwargs: Any) -> Any:
        inputs = prompts.inputs
        embeddings = self.model.get_input_embeddings()(inputs["input_ids"])
        is_query = (inputs["input_ids"] == self.model.config.image_token_id)[..., None]
        return self.generator.generate(
            inputs_embeds=embeddings.masked_scatter(is_query, self.look(prompts).to(embeddings)),
            attention_mask=inputs["attention_mask"],
            **kwargs,
        )

    def look(self, prompts: Prompts, **kwargs: Any) -> Tensor:
        """The image tokens, `(B, queries, decoder width)`: `get_image_features` from the vision
        features on."""
        model, inputs, keys = self.model, prompts.inputs, torch.stack(prompts.features)
        queries = model.query_tokens.expand(len(keys), -1, -1)
        text: dict[str, Tensor] = {}
        if "qformer_input_ids" in inputs:  # InstructBLIP's Q-Former reads the question as well
            seen = inputs["qformer_attention_mask"]
            text["input_ids"] = inputs["qformer_input_ids"]
            text["attention_mask"] = nn.functional.pad(seen, (queries.shape[1], 0), value=1)
        with self.reweighted(prompts):
            output = model.qformer(
                query_embeds=queries, encoder_hidden_states=keys, return_dict=True, **text
            ).last_hidden_state[:, : queries.shape[1]]
        # BLIP-2 keeps its Q-Former in float32.
        projected: Tensor = model.language_projection(output.to(keys.dtype))
        return projected


class MllamaAdapter(Adapter):
    """Image features are keys of the decoder's cross-attention layers (Llama 3.2 Vision)."""

    last_query: ClassVar[bool] = True

    @property
    def looking(self) -> list[nn.Module]:
        layers = self.model.model.language_model.layers
        crossing = self.model.config.text_config.cross_attention_layers
        return [layers[number].cross_attn for number in crossing]

    def encode(self, pixels: Sequence[Pixels]) -> list[Tensor]:
        """`(tiles * (1 + patches), D)` for each image, the CLS token of each tile first."""
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        inner = self.model.model
        with warnings.catch_warnings():  # of a name that transformers itself uses, up to 5.19
            warnings.filterwarnings("ignore", "`hidden_state` is deprecated", FutureWarning)
            vision = inner.vision_model(**{name: self.stack(name, pixels) for name in names})
        features = inner.multi_modal_projector(vision.last_hidden_state)
        return list(features.reshape(len(pixels), -1, features.shape[-1]))

    def tokenize(self, texts: list[str], pixels: Sequence[Sequence[Pixels]]) -> dict[str, Tensor]:
        tokenizer = self.processor.tokenizer
        # Its chat template writes the start token itself, and it must not come twice.
        bos = tokenizer.bos_token
        inputs = tokenize(tokenizer, texts, add_special_tokens=not (bos and bos in texts[0]))
        is_image = inputs["input_ids"] == self.model.config.image_token_index
        after = is_image.cumsum(1) > 0  # (B, L): the text that attends to the image
        tiles = torch.cat([torch.as_tensor(image["aspect_ratio_mask"]) for (image,) in pixels])
        inputs["cross_attention_mask"] = after[:, :, None, None] * tiles[:, None]
        return inputs

    def generate(self, prompts: Prompts, **kwargs: Any) -> Any:
        states = torch.stack(prompts.features)
        states = states.repeat_interleave(kwargs["generation_config"].num_beams, dim=0)
        with self.reweighted(prompts):
            return self.model.generate(
                **prompts.inputs, **{CACHE: self._image_cache(states)}, **kwargs
            )

    def _image_cache(self, states: Tensor) -> DynamicCache:
        """A KV cache of the image alone, from its features `(B, K, D)`.

        Given the features instead, `generate` would add them to the cache at every step.
        """
        cache = DynamicCache()
        attention: Any
        for attention in self.looking:
            shape = (*states.shape[:2], attention.num_key_value_heads, attention.head_dim)
            keys = attention.k_proj(states).view(shape).transpose(1, 2)
            values = attention.v_proj(states).view(shape).transpose(1, 2)
            cache.update(attention.k_norm(keys), values, attention.layer_idx)
        return cache


class Kosmos2Adapter(Adapter):
    """Image features are keys of the latent queries that make Kosmos-2's image tokens."""

    attention_source: ClassVar[str] = "the latent queries"
    # transformers counts padding as text in the positions of new tokens.
    takes_padding: ClassVar[bool] = False

    @property
    def looking(self) -> list[nn.Module]:
        return [self.model.image_to_text_projection.x_attn]

    def attach(self) -> None:
        super().attach()
        # With SDPA transformers lets query i attend to the first i + 1 keys only; in its eager
        # attention, and in the model as it was trained, every query attends to every patch.
        self.model.image_to_text_projection.x_attn.is_causal = False

    @property
    def generator(self) -> Any:
        return self.model.text_model

    def encode(self, pixels: Sequence[Pixels]) -> list[Tensor]:
        """`(1 + patches, D)` for each image, the CLS token first."""
        vision = self.model.vision_model(self.stack("pixel_values", pixels))
        features = self.model.vision_model.model.post_layernorm(vision.last_hidden_state)
        return list(nn.functional.normalize(features, dim=-1))

    def tokenize(self, texts: list[str], pixels: Sequence[Sequence[Pixels]]) -> dict[str, Tensor]:
        processor, count = self.processor, self.model.config.latent_query_num
        tokenizer = processor.tokenizer
        # A completion model: a prompt in its own notation stays as it is, others become questions.
        prompts = [
            text if text.startswith("<grounding>") else f"Question: {text} Answer:"
            for text in texts
        ]
        filled = processor.preprocess_examples(prompts, [True] * len(texts), num_image_tokens=count)
        texts = [f"{tokenizer.bos_token}{text}" for text in filled]
        inputs = tokenize(tokenizer, texts, add_special_tokens=False)
        ids = inputs["input_ids"]
        begins = (ids == tokenizer.convert_tokens_to_ids(processor.boi_token)).int().argmax(1) + 1
        at = torch.arange(ids.shape[1]) - begins[:, None]  # (B, L)
        is_image = (at >= 0) & (at < count)
        inputs["input_ids"] = torch.where(is_image, tokenizer.unk_token_id + 1 + at, ids)
        inputs["image_embeds_position_mask"] = is_image
        return inputs

    def generate(self, prompts: Prompts, **kwargs: Any) -> Any:
        return self.generator.generate(**prompts.inputs, image_embeds=self.look(prompts), **kwargs)

    def look(self, prompts: Prompts, **kwargs: Any) -> Tensor:
        """The image tokens, `(B, latent queries, decoder width)`, from the vision features on."""
        with self.reweighted(prompts):
            tokens: Tensor = self.model.image_to_text_projection(torch.stack(prompts.features))[0]
        return tokens
