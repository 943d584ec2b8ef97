"""The transformers engine: any supported checkpoint, with reweighted attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from cof.engines.transformers.batching import grouped, threaded, unpadded
from cof.engines.transformers.box_decoding import decode_boxes
from cof.engines.transformers.decoder_adapter import ADAPTERS, DecoderAdapter
from cof.engines.transformers.generation import generation_config, generations, seeded
from cof.engines.transformers.guidance import Guided, check_decoding, contrast, guidance
from cof.engines.transformers.introspection import (
    States,
    first_token,
    phrase_tokens,
    probabilities,
    similarities,
)
from cof.engines.transformers.loading import load, out_of_memory
from cof.engines.transformers.prefix_cache import Deferred, Prefix, Prompts
from cof.engines.transformers.probing import probed
from cof.engines.transformers.prompt_builder import PromptBuilder
from cof.errors import CofError, CofWarning
from cof.families import Family, dialect_of, family_of
from cof.families.image_tokens import ImageTokens
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region
from cof.prompting.box_template import BoxTemplate, CompiledBoxTemplate, compile_box_template
from cof.types import Decoding, EncodedImage, Generation, Highlight, Request

MAX_BATCH_TOKENS = 16384
"""Sixteen questions about LLaVA-1.5's 576 image tokens, and some 3 GB of a 7B model's cache."""

VALUES_PER_TOKEN = 3 * 14 * 14  # what a vision encoder makes a token of, roughly


class TransformersEngine:
    """Answers requests with a Hugging Face model; implements `cof.engines.base.Engine`.

    Requests in one call may differ in image, prompt, region, strength, scope, layers and heads. A
    call without any highlight runs the stock model, bit for bit.

    Attributes:
        name: the folder or hub id it was loaded from.
        dialect: how it is asked for a box.
        family: what is known of its kind of model.
        model, processor: transformers' own.
        tokens: which of its tokens show what of an image.
        prompt_builder: writes its prompts.

    Threads may share an engine. Sampling with a seed holds a lock, so that threads that sample
    with seeds wait for one another.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        """Wrap a loaded model and its processor (with a PIL image processor).

        Args:
            name: what it is called in messages; empty: what its config says.
            max_batch_tokens: see `from_pretrained`.

        Raises:
            CofError: an unsupported family, or attention that cannot be reweighted.
        """
        if max_batch_tokens < 1:
            raise CofError(f"max_batch_tokens must be at least 1, not {max_batch_tokens}.")
        self.max_batch_tokens = max_batch_tokens
        self.family: Family = family_of(model.config)
        self.name = name or str(model.config.name_or_path)
        self.dialect = dialect_of(model.config, self.family)
        self.model = model.eval()
        self.processor = processor
        processor.tokenizer.padding_side = "left"
        self.family = probed(self.family, self.model, processor)
        self.adapter = ADAPTERS[self.family.adapter].attach(model, processor, self.family)
        self.tokens = ImageTokens(self.family, self.dialect, model.config, processor)
        self.prompt_builder = PromptBuilder(
            self.family, self.model, processor, self.adapter, self.tokens
        )
        self._written = cache(self._compile_form)

    @property
    def takes_two(self) -> bool:
        """Whether it can be shown two images at once."""
        return self.family.takes_two

    @property
    def looks(self) -> str:
        """Whose attention `image_attention` is."""
        return self.adapter.looks

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, Any] | None = None,
        pad_to_square: bool | None = None,
        max_batch_tokens: int | None = None,
        quantization: Any = None,
    ) -> TransformersEngine:
        """Load a checkpoint from a folder or the hub.

        Args:
            model: a path or a hub id such as `llava-hf/llava-1.5-7b-hf`.
            dtype: such as `bfloat16`; None: the checkpoint's own on a GPU, float32 on a CPU.
            device_map: a device, or what `accelerate` takes (`auto`); None: the GPU if any.
            pad_to_square: LLaVA only; True: pad images to a square with the mean colour, as the
                paper's evaluation does; False: crop their centre, as the processor on the hub
                does, so that the ends of long images are never seen; None: True.
            max_batch_tokens: the most tokens, padding and answers included, that are run at a
                time; larger batches are run in several parts. Memory grows with it. None: 16384.
            quantization: `4bit` (NF4, in bfloat16 without a dtype) or `8bit` (LLM.int8(), in
                float16), with the packages bitsandbytes and accelerate; or any quantisation config
                of transformers; None: as the checkpoint is.

        Raises:
            CofError: no such model, not reachable, not supported, no processor, out of memory, or
                an option that does not apply.
        """
        name = str(model)
        loaded, processor = load(
            name,
            dtype=dtype,
            device_map=device_map,
            pad_to_square=pad_to_square,
            quantization=quantization,
        )
        budget = MAX_BATCH_TOKENS if max_batch_tokens is None else max_batch_tokens
        return cls(loaded, processor, name=name, max_batch_tokens=budget)

    def frame(self, image_wh: tuple[int, int]) -> Frame:
        """Where an original of this size lies in the native coordinates of the model's boxes.

        Where those are fractions (LLaVA-1.5), it is also what the token grid shows."""
        return self.tokens.frame(image_wh)

    def encode(self, images: Sequence[Image.Image], *, prefill: bool = False) -> list[EncodedImage]:
        """Run the image processor and the vision encoder, once for each distinct image object.

        With `prefill` also the decoder, over the text before the image and the image, where the
        family allows it (`Family.prefill`): answers begin behind the image then. That is done by
        the pass that reads the first question about the image.
        """
        keep = prefill and self.family.prefill and self._keeps()
        distinct = {id(image): image for image in images}
        processed = threaded(self.tokens.pixels, distinct.values())
        pixels = dict(zip(distinct, processed, strict=True))
        with torch.inference_mode(), out_of_memory():
            encoded: dict[int, EncodedImage] = {}
            sizes = [_values(of) // VALUES_PER_TOKEN for of in pixels.values()]
            for rows in grouped(sizes, self.max_batch_tokens):
                keys = [list(pixels)[row] for row in rows]
                features = self.adapter.encode([pixels[key] for key in keys])
                for key, of in zip(keys, features, strict=True):
                    prefix = Deferred() if keep else None
                    encoded[key] = EncodedImage(distinct[key], pixels[key], of, prefix)
        return [encoded[id(image)] for image in images]

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
    ) -> list[Generation]:
        """Answer every request, in one batch if `max_batch_tokens` allows it.

        A row with no highlight, or of strength 1, is answered by the plain model. A region that
        the model does not see (outside a centre crop) is answered plainly with a `CofWarning`.

        `Generation.logprobs` are those of the model itself, before temperature and top-p.

        Raises:
            CofError: a layer or head the model does not have, or out of memory.
        """
        if not requests:
            return []
        requests = self.showing(requests)
        if any(guidance(request) != 1 for request in requests):
            return self._guided(requests, decoding)
        form = self._written(decoding.form) if decoding.form else None
        encoded = self._encoded(requests)
        draft = self.prompt_builder.draft(requests, encoded)
        seen = draft.lengths
        new = Decoding().max_new_tokens if form else decoding.max_new_tokens
        groups = grouped([(n + new) * decoding.num_beams for n in seen], self.max_batch_tokens)
        if not self.adapter.pads:
            groups = unpadded(groups, seen)
        if len(groups) > 1:
            found: dict[int, Generation] = {}
            for rows in groups:
                part = [replace(requests[row], image=encoded[row]) for row in rows]
                found |= zip(rows, self.generate(part, decoding), strict=True)
            return [found[row] for row in range(len(requests))]
        prompts = self.prompt_builder.prompts(draft)
        with torch.inference_mode(), out_of_memory():
            alone = not any(request.beside for request in requests)
            first = alone and decoding.num_beams == 1 and self._yields(prompts, encoded)
            if first:
                prompts = replace(prompts, kept=True)
            else:
                prompts = self.adapter.resume(prompts, self._prefixes(encoded), decoding.num_beams)
            if form is not None and isinstance(self.adapter, DecoderAdapter):
                pad = self._generation_config(decoding).pad_token_id
                replies, cache = decode_boxes(self.adapter, prompts, form, pad)
            else:
                replies, cache = self._replies(prompts, decoding)
            if first:
                for of, prefix in zip(encoded, self._decoder().kept(prompts, cache), strict=True):
                    of.prefix.prefix = prefix
            return replies

    def _guided(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        """Each row with its other branch beside it, in one batch."""
        check_decoding(decoding)
        encoded = self._encoded(requests)
        seen = self.prompt_builder.draft(requests, encoded).lengths
        groups = grouped([2 * (n + decoding.max_new_tokens) for n in seen], self.max_batch_tokens)
        found: dict[int, Generation] = {}
        for rows in groups if self.adapter.pads else unpadded(groups, seen):
            part = [requests[row] for row in rows]
            images = [encoded[row] for row in rows] * 2
            with torch.inference_mode(), out_of_memory():
                prompts = self._prompts([*part, *map(contrast, part)], images)
                prompts = self.adapter.resume(prompts, self._prefixes(images), beams=1)
                leading = LogitsProcessorList([Guided([guidance(request) for request in part])])
                replies, _ = self._replies(prompts, decoding, logits_processor=leading)
            found |= zip(rows, replies, strict=False)  # the other branches come last
        return [found[row] for row in range(len(requests))]

    def token_mask(self, image_wh: tuple[int, int], highlight: Highlight) -> NDArray[np.bool_]:
        """The paper's M for an image of this size: which image tokens get the bias.

        Returns:
            `(grid_h, grid_w)`, or `(tokens,)` for families whose tokens are no single raster.
        """
        return self.tokens.mask(image_wh, highlight)

    def token_weights(self, image_wh: tuple[int, int], region: Region) -> NDArray[np.float64]:
        """How much each image token is meant, 0..1: a region's heat where it has one, else the
        share of what the token shows that is inside. The layout is that of `token_mask`."""
        return self.tokens.weights(image_wh, region)

    def image_attention(self, request: Request) -> NDArray[np.float32]:
        """The attention the answer's first token pays to each image token, the highlight applied.

        Where a Q-Former is reweighted it is that of its queries on average, before the decoder.

        Returns:
            `(layers, heads, grid_h, grid_w)`, in 0..1: shares of all the attention, of which the
            rest goes to text (and CLS). `(layers, heads, tokens)` where the tokens are no single
            raster.
        """
        return self.image_attentions([request])[0]

    def image_attentions(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """`image_attention` of many requests at once, in one pass if `max_batch_tokens` allows
        it; what is encoded with its prefix is not computed again."""
        config = self._generation_config(Decoding(max_new_tokens=1))
        return self._read(
            requests, lambda prompts, rows: self.adapter.weights(prompts, generation_config=config)
        )

    def phrase_similarities(
        self, requests: Sequence[Request], phrases: Sequence[str], states: States = "values"
    ) -> list[NDArray[np.float32]]:
        """How alike the decoder's cached states of a phrase and of the image tokens are.

        Args:
            phrases: of each request one part of its prompt.
            states: `values` or `keys`.

        Returns:
            For each request the cosines with each of the phrase's T tokens, `(layers, T, *tokens)`;
            NaN for layers without keys and values (linear attention).

        Raises:
            CofError: the image is not among the decoder's tokens.
        """
        adapter = self._decoder()
        places = [
            phrase_tokens(
                self.processor.tokenizer,
                self.prompt_builder.text(request),
                phrase,
                within=request.prompt.strip(),  # some chats strip it
            )
            for request, phrase in zip(requests, phrases, strict=True)
        ]
        config = self._generation_config(Decoding(max_new_tokens=1))
        return self._read(
            requests,
            lambda prompts, rows: similarities(
                adapter, prompts, [places[row] for row in rows], states, generation_config=config
            ),
        )

    def word_probabilities(
        self, images: Sequence[Image.Image | EncodedImage], words: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float32]]:
        """How probable words are as what the decoder would say after each image token.

        Args:
            words: those asked about each image.

        Returns:
            For each image the probabilities of each word's first token, `(words, *tokens)`.

        Raises:
            CofError: the image is not among the decoder's tokens.
        """
        adapter = self._decoder()
        tokenizer, special = self.processor.tokenizer, self.prompt_builder.special
        ids = [[first_token(tokenizer, word, special) for word in of] for of in words]
        config = self._generation_config(Decoding(max_new_tokens=1))
        config.output_hidden_states = True
        return self._read(
            [Request(image, "") for image in images],
            lambda prompts, rows: probabilities(
                adapter, prompts, [ids[row] for row in rows], generation_config=config
            ),
            reuse=False,
        )

    def token_centres(self, image_wh: tuple[int, int]) -> NDArray[np.float64]:
        """Where each image token looks, 0..1 of an image of this size: the layout of `token_mask`
        and `(x, y)`; NaN for padding."""
        return self.tokens.centres(image_wh)

    def _keeps(self) -> bool:
        return isinstance(self.adapter, DecoderAdapter) and self.adapter.keeps

    def _yields(self, prompts: Prompts, encoded: Sequence[EncodedImage]) -> bool:
        """Whether what is left to compute of every image's prefix comes out of these prompts."""
        waiting = {id(of) for of in encoded if of.prefix is not None and of.prefix.prefix is None}
        # Several questions about one image had better begin behind it.
        return len(waiting) == len(encoded) and self._decoder().yields(prompts)

    def _prefixes(self, encoded: Sequence[EncodedImage]) -> list[Prefix | None]:
        """Of each row's image, computed now where none was yet."""
        waiting = {
            id(of): of for of in encoded if of.prefix is not None and of.prefix.prefix is None
        }
        if waiting:
            images = list(waiting.values())
            prompts = self._prompts([Request(image, "") for image in images], images)
            for of, prefix in zip(images, self._decoder().prefixes(prompts), strict=True):
                of.prefix.prefix = prefix
        return [of.prefix and of.prefix.prefix for of in encoded]

    def _read(
        self,
        requests: Sequence[Request],
        read: Callable[[Prompts, list[int]], list[Tensor]],
        *,
        reuse: bool = True,
    ) -> list[NDArray[np.float32]]:
        """What a function reads of each row's image features, `(..., K)`, laid out as tokens.

        It gets prompts that fit into `max_batch_tokens`, and which rows they are.
        """
        if not requests:
            return []
        requests = self.showing(requests)
        encoded = self._encoded(requests)
        draft = self.prompt_builder.draft(requests, encoded)
        found: dict[int, NDArray[np.float32]] = {}
        for rows in grouped([n + 1 for n in draft.lengths], self.max_batch_tokens):
            images = [encoded[row] for row in rows]
            if len(rows) < len(requests):
                prompts = self._prompts([requests[row] for row in rows], images)
            else:
                prompts = self.prompt_builder.prompts(draft)
            with torch.inference_mode(), out_of_memory():
                if reuse:
                    prompts = self.adapter.resume(prompts, self._prefixes(images), 1)
                maps = read(prompts, rows)
            for row, of, image in zip(rows, maps, images, strict=True):
                found[row] = self._laid_out(of.float().numpy(), image.size)
        return [found[row] for row in range(len(requests))]

    def _decoder(self) -> DecoderAdapter:
        if not isinstance(self.adapter, DecoderAdapter):
            raise CofError(
                f"The image is not among the decoder's tokens in {self.family.name}, so words "
                "cannot be compared with it there: use grounder 'prompt' or 'attention'."
            )
        return self.adapter

    def _laid_out(
        self, features: NDArray[np.float32], image_wh: tuple[int, int]
    ) -> NDArray[np.float32]:
        """`(..., K)` of the image features -> `(..., *tokens)` in the layout of `token_mask`."""
        layout = self.tokens.layout(image_wh)
        spatial = features[..., self.family.lead(self.model.config) :]
        return np.asarray(spatial.reshape(*spatial.shape[:-1], *layout), dtype=np.float32)

    def _prompts(self, requests: Sequence[Request], encoded: Sequence[EncodedImage]) -> Prompts:
        return self.prompt_builder.prompts(self.prompt_builder.draft(requests, encoded))

    def _encoded(self, requests: Sequence[Request]) -> list[EncodedImage]:
        images = [request.image for request in requests]
        plain = [
            image.image if isinstance(image, EncodedImage) else image
            for image in images
            if not isinstance(image, EncodedImage) or image.features is None
        ]
        fresh = iter(self.encode(plain) if plain else [])
        return [
            image if isinstance(image, EncodedImage) and image.features is not None else next(fresh)
            for image in images
        ]

    def showing(self, requests: Sequence[Request]) -> list[Request]:
        """The same requests with their second images encoded, or in place of the first if the
        model takes only one (with a `CofWarning`)."""
        beside = [request.beside for request in requests if request.beside is not None]
        if not beside:
            return list(requests)
        if not self.takes_two:
            warnings.warn(
                f"{self.family.name} takes one image at a time, so the second is shown alone.",
                CofWarning,
                stacklevel=3,
            )
            return [
                request
                if request.beside is None
                else Request(request.beside, request.prompt, notation=request.notation)
                for request in requests
            ]
        encoded = iter(self._encoded([Request(image, "") for image in beside]))
        return [
            request if request.beside is None else replace(request, beside=next(encoded))
            for request in requests
        ]

    def _compile_form(self, form: BoxTemplate) -> CompiledBoxTemplate | None:
        def encode(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = self.processor.tokenizer(texts, add_special_tokens=False)[
                "input_ids"
            ]
            return ids

        continues = self._keeps()
        compiled = (
            compile_box_template(form, encode, self.prompt_builder.chat("")) if continues else None
        )
        if compiled is None:
            warnings.warn(
                f"{self.name} cannot write boxes in a given form (its tokens do not follow the "
                "numbers, or it is no decoder that can be continued), so they are written freely.",
                CofWarning,
                stacklevel=4,
            )
        return compiled

    def _replies(
        self, prompts: Prompts, decoding: Decoding, **kwargs: Any
    ) -> tuple[list[Generation], Any]:
        """The replies, and the cache they leave."""
        settings = self._generation_config(decoding)
        with seeded(decoding, self.model.device):
            output = self.adapter.generate(prompts, generation_config=settings, **kwargs)
        words, ends = self.processor.tokenizer, settings.eos_token_id
        return generations(output, self.adapter.generator, words, ends), output.past_key_values

    def _generation_config(self, decoding: Decoding) -> GenerationConfig:
        words = self.processor.tokenizer
        return generation_config(decoding, self.model, self.adapter.generator, words)


def _values(pixels: Mapping[str, Any]) -> int:
    return int(np.asarray(pixels["pixel_values"]).size)
