"""The transformers engine: any supported checkpoint, with reweighted attention."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from cof.engines.base import Layers
from cof.engines.text_stream import BatchStreamer, apart_from_thoughts
from cof.engines.transformers import generation, introspection, prefix_cache, prompt_builder
from cof.engines.transformers.batching import group_by_size, map_in_threads
from cof.engines.transformers.box_decoding import decode_boxes
from cof.engines.transformers.decoder_adapter import ADAPTERS, DecoderAdapter
from cof.engines.transformers.graphs import Graphs, runs_graphs
from cof.engines.transformers.introspection import States
from cof.engines.transformers.loading import load, out_of_memory
from cof.engines.transformers.prefix_cache import CACHE, Head, Prefix, Prompts
from cof.engines.transformers.probing import probe
from cof.engines.transformers.prompt_builder import TokenizedRequests, own_features
from cof.errors import CofError, CofWarning
from cof.families import Family, dialect_of, family_of
from cof.families.chat import Chat
from cof.families.image_tokens import ImageTokens, TokenReader
from cof.options import count
from cof.prompting.box_template import CompiledBoxTemplate, PartialBox
from cof.types import Decoding, EncodedImage, Generation, OnText, Request, pil_image

Result = TypeVar("Result")
Work = Callable[[list[Any]], list[EncodedImage]]
MAX_BATCH_TOKENS = 16384
"""Sixteen questions about LLaVA-1.5's 576 image tokens; some 3 GB of a 7B model's KV cache."""

VALUES_PER_TOKEN = 3 * 14 * 14  # pixel values of a vision encoder's token, roughly


class TransformersEngine(TokenReader):
    """Answers requests with a Hugging Face model; implements all protocols of `cof.engines.base`.

    Requests in one call may differ in image, prompt, region, strength, scope, layers and heads. A
    call without any highlight runs the stock model, bit for bit.

    Attributes:
        name: the folder or hub id it was loaded from.
        dialect: how it is asked for a box.
        family: what is known of its kind of model.
        model, processor: transformers' own.
        adapter: where the bias is attached in the model.
        tokens: its image tokens.
        chat: writes its chats.

    Threads may share an engine. Sampling with a seed holds a lock, so that such threads wait for
    one another.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        max_batch_tokens: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """Wrap a loaded model and its processor (with a PIL image processor).

        Args:
            model: also one that PEFT has wrapped, with the adapter that is active.
            processor: stays as it is; LLaVA-1.5's own crops the centre of images.
            name: of the model, for messages; empty: the one in its config.
            max_batch_tokens, cuda_graphs: see `from_pretrained`.

        Raises:
            CofError: an unsupported family, or attention that cannot be reweighted.
        """
        most = MAX_BATCH_TOKENS if max_batch_tokens is None else max_batch_tokens
        self.max_batch_tokens = count("max_batch_tokens", most)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.family: Family = family_of(model.config)
        self.name = name or str(model.config.name_or_path)
        self.dialect = dialect_of(model.config, self.family)
        self.model = model.eval()
        self.processor = processor
        processor.tokenizer.padding_side = "left"
        self.family = probe(self.family, self.model, processor)
        self.adapter = ADAPTERS[self.family.adapter](model, processor, self.family)
        self.adapter.attach()
        if cuda_graphs and runs_graphs(self.adapter):
            self.adapter = replace(self.adapter, graphs=Graphs(self.model))
        self.takes_two = self.family.takes_two
        self.attention_source = self.adapter.attention_source
        self.tokens = ImageTokens(self.family, self.dialect, model.config, processor)
        self.chat = Chat(self.family, self.dialect, processor)
        resumes = self.adapter.reuses_states
        self._compile = cache(partial(self.chat.compile, name=self.name, resumes=resumes))
        self._process_id = os.getpid()

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, Any] | None = None,
        pad_to_square: bool | None = None,
        max_pixels: int | None = None,
        max_batch_tokens: int | None = None,
        quantization: Any = None,
        allow_pickle: bool = False,
        cuda_graphs: bool = False,
    ) -> TransformersEngine:
        """Load a checkpoint from a folder or the hub.

        Args:
            model: a path or a hub id such as `llava-hf/llava-1.5-7b-hf`.
            dtype: such as `bfloat16`; None: the checkpoint's own on a GPU, float32 on a CPU.
            device_map: a device, or a map for `accelerate` (`auto`); None: the GPU if any.
            pad_to_square: LLaVA only; True: pad images to a square with the mean colour, as the
                paper's evaluation does; False: crop their centre, as the processor on the hub
                does, so that the model never sees the ends of long images; None: True.
            max_pixels: the most pixels of an image as the model sees it, larger ones being shrunk,
                for families whose processors have such a limit (Qwen-VL); None: the checkpoint's.
            max_batch_tokens: the most tokens of one batch, padding and answers included; larger
                batches are run in several parts. Memory grows with it. None: 16384.
            quantization: `4bit` (NF4, in bfloat16 without a dtype) or `8bit` (LLM.int8(), in
                float16), with the packages bitsandbytes and accelerate; or any quantisation config
                of transformers; None: the checkpoint's own.
            allow_pickle: whether weights that are no safetensors may be loaded: pickled ones can
                run any code.
            cuda_graphs: whether passes over few tokens are replayed in one launch each, without any
                hooks, if the model is on one GPU and not quantised.

        Raises:
            CofError: the model does not exist, cannot be reached, is not supported or has no
                processor; memory is too small; or an option does not apply.
        """
        loaded, processor = load(
            str(model),
            dtype=dtype,
            device_map=device_map,
            pad_to_square=pad_to_square,
            max_pixels=max_pixels,
            quantization=quantization,
            allow_pickle=allow_pickle,
        )
        return cls(
            loaded,
            processor,
            name=str(model),
            max_batch_tokens=max_batch_tokens,
            cuda_graphs=cuda_graphs,
        )

    @property
    def context_length(self) -> int | None:
        """The most tokens that the decoder takes, image, prompt and answer together; None: there
        is no such limit (the positions of T5 are distances)."""
        config = self.adapter.generator.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    def encode(
        self, images: Sequence[Image.Image | EncodedImage], *, prefill: bool = False
    ) -> list[EncodedImage]:
        """Run the image processor and the vision encoder, once for each distinct image object.

        With `prefill` each image also gets a prefix, where the family allows it
        (`Family.prefill`): the decoder's state after the text before the image and the image,
        behind which answers begin. The first question about the image computes it.
        """
        lazy = prefill and self.family.prefill and self.adapter.reuses_states
        made = _once(lambda images: self._see(self._process(images), lazy=lazy), images)
        return [made[id(image)] for image in images]

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
        on_text: OnText | None = None,
    ) -> list[Generation]:
        """Answer every request, in one batch if `max_batch_tokens` allows it.

        A row with no highlight, or of strength 1, is answered by the plain model. A region that
        the model does not see (outside a centre crop) is answered plainly with a `CofWarning`.

        `Generation.logprobs` are those of the model itself, before temperature and top-p.

        `on_text` gets each reply token by token (`Engine.generate`), but those with beams or a box
        template as one piece.

        Raises:
            CofError: a layer or head the model does not have, or out of memory.
        """
        return apart_from_thoughts(
            self.chat, requests, on_text, lambda tell: self._generate(requests, decoding, tell)
        )

    def _generate(
        self, requests: Sequence[Request], decoding: Decoding, on_text: OnText | None
    ) -> list[Generation]:
        """`generate`, thoughts and answers together."""
        guided = any(generation.guidance(request) != 1 for request in requests)
        if guided and (decoding.temperature > 0 or decoding.num_beams > 1):
            # Both branches continue with the same token, but these choose for each row.
            raise CofError(
                "focus 'contrast' answers greedily: leave out temperature and num_beams, or use "
                "focus 'attention'."
            )
        template = None
        if decoding.box_template is not None and not guided:
            template = self._compile(decoding.box_template)
        longest = decoding.max_new_tokens if template is None else Decoding().max_new_tokens

        def answer(batch: TokenizedRequests, rows: list[int]) -> list[Generation]:
            settings, more = self._generation_config(decoding), dict[str, Any]()
            ends, pad = settings.eos_token_id, settings.pad_token_id
            if on_text is not None and template is None and decoding.num_beams == 1:
                more["streamer"] = BatchStreamer(self.processor.tokenizer, ends, rows, on_text)
            if guided:  # each row with its other branch beside it, in one batch
                scales = [generation.guidance(request) for request in batch.requests]
                more["logits_processor"] = LogitsProcessorList([generation.Guided(scales)])
                batch = self._tokens(
                    [*batch.requests, *map(generation.make_contrast, batch.requests)]
                )
            prompts = self._prompts(batch, decoding.num_beams, first=not guided)
            if template is not None:
                boxes = [self._start(template, each) for each in batch.requests]
                replies, states = decode_boxes(self._decoder(), prompts, boxes, pad)
            else:
                with generation.use_seed(decoding, self.model.device):
                    output = self.adapter.generate(prompts, generation_config=settings, **more)
                replies = generation.collect_generations(output, self.adapter, ends)
                states = getattr(output, CACHE)
            self._fill(batch, partial(prefix_cache.split_cache, states, batch.inputs["input_ids"]))
            if on_text is not None and "streamer" not in more:
                for row, reply in zip(rows, replies, strict=True):
                    if reply.text:
                        on_text(row, reply.text)
            lengths = zip(replies, batch.lengths[: len(rows)], strict=False)
            return [replace(reply, num_prompt_tokens=length) for reply, length in lengths]

        copies = 2 if guided else decoding.num_beams
        return self._run(requests, [longest] * len(requests), answer, copies)

    def check_lengths(self, requests: Sequence[Request], decoding: Decoding) -> None:
        """Refuse prompts that are too long, before the model runs.

        Raises:
            CofError: image, prompt and answer of a request do not fit into `context_length`.
        """
        if requests:
            self._fit(requests, [decoding.max_new_tokens] * len(requests))

    def score_replies(
        self, requests: Sequence[Request], replies: Sequence[str]
    ) -> list[Generation]:
        """See `ReplyScorer`; a reply may end with any of the model's end tokens.

        Raises:
            CofError: a reply cannot be encoded, or out of memory.
        """
        ends = self._generation_config(Decoding()).eos_token_id
        tokens = generation.tokenize_replies(
            self.chat, replies, ends[0], alone=self.adapter.generator.config.is_encoder_decoder
        )

        def score(batch: TokenizedRequests, rows: list[int]) -> list[Generation]:
            texts, ids = [replies[row] for row in rows], [tokens[row] for row in rows]
            settings = self._generation_config(Decoding(max_new_tokens=max(map(len, ids))))
            forced = LogitsProcessorList([generation.Forced(ids, settings.pad_token_id)])
            output = self.adapter.generate(
                self._prompts(batch), generation_config=settings, logits_processor=forced
            )
            return generation.collect_scores(texts, ids, output.logits, ends)

        return self._run(requests, list(map(len, tokens)), score)

    def plan(
        self, requests: Sequence[Request], new_tokens: Sequence[int], copies: int = 1
    ) -> list[tuple[list[int], TokenizedRequests]]:
        """Requests in batches of `max_batch_tokens` at most, their images encoded.

        Args:
            new_tokens: the most tokens of each answer.
            copies: how many sequences run for each request: beams, or branches of guidance.

        Returns:
            Each batch, with the numbers of its requests.

        Raises:
            CofError: image, prompt and answer of a request do not fit into `context_length`; the
                model has not run then.
        """
        if not requests:
            return []
        whole = self._fit(requests, new_tokens)
        whole = replace(whole, requests=_with_images(whole.requests, self._see))
        sizes = [(n + new) * copies for n, new in zip(whole.lengths, new_tokens, strict=True)]
        groups = group_by_size(sizes, self.max_batch_tokens)
        if not self.adapter.takes_padding:
            groups = [
                [row for row in rows if whole.lengths[row] == length]
                for rows in groups
                for length in sorted({whole.lengths[row] for row in rows})
            ]
        if len(groups) == 1:
            return [(groups[0], whole)]
        return [(rows, self._tokens([whole.requests[row] for row in rows])) for rows in groups]

    def prompts(self, batch: TokenizedRequests) -> Prompts:
        """The prompts of a batch of `plan`, from their beginnings."""
        return prompt_builder.make_prompts(self.adapter, self.tokens, batch)

    def image_attentions(
        self, requests: Sequence[Request], layers: Layers | None = None
    ) -> list[NDArray[np.float32]]:
        """See `AttentionReader`; prefixes are reused. Of a Q-Former it is its queries' mean."""
        maps = self._read(requests, lambda prompts, _, one: self.adapter.weights(prompts, one))
        return [of[list((layers or range)(len(of)))] for of in maps]

    def phrase_similarities(
        self, requests: Sequence[Request], phrases: Sequence[str], states: States = "values"
    ) -> list[NDArray[np.float32]]:
        """See `StateReader`.

        Raises:
            CofError: the image is not among the decoder's tokens.
        """
        adapter = self._decoder()
        texts = [(self.chat.text(asked), asked.prompt.strip()) for asked in requests]  # as chats do
        places = [
            introspection.find_phrase(self.processor.tokenizer, text, phrase, within=prompt)
            for (text, prompt), phrase in zip(texts, phrases, strict=True)
        ]
        return self._read(requests, partial(introspection.compare_states, adapter, states), places)

    def word_probabilities(
        self, images: Sequence[Image.Image | EncodedImage], words: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float32]]:
        """See `StateReader`: of each word its first token.

        Raises:
            CofError: the image is not among the decoder's tokens.
        """
        adapter = self._decoder()
        first = partial(introspection.find_first_token, self.processor.tokenizer, self.chat.special)
        ids = [list(map(first, each)) for each in words]
        asked = [Request(image, "") for image in images]
        return self._read(asked, partial(introspection.predict_words, adapter), ids, reuse=False)

    def _run(
        self,
        requests: Sequence[Request],
        new_tokens: Sequence[int],
        work: Callable[[TokenizedRequests, list[int]], Sequence[Result]],
        copies: int = 1,
    ) -> list[Result]:
        """What a function makes of each request; it gets the batches of `plan`."""
        results: dict[int, Result] = {}
        for rows, batch in self.plan(requests, new_tokens, copies):
            with self._running():
                results |= zip(rows, work(batch, rows), strict=True)
        return [results[row] for row in range(len(requests))]

    @contextmanager
    def _running(self) -> Iterator[None]:
        """What every pass runs in."""
        graphs = self.adapter.graphs
        with torch.inference_mode(), graphs.lease() if graphs else nullcontext(), out_of_memory():
            yield

    def _prompts(self, batch: TokenizedRequests, beams: int = 1, *, first: bool = False) -> Prompts:
        """Prompts that begin behind the prefixes of their images, computed now where needed.

        Args:
            first: whether prefixes that are not known yet may be left to the prompts' own pass,
                where it computes them: the prompts are run whole then, and their states are kept.
        """
        prompts, heads = self.prompts(batch), self._heads(batch)
        new = {
            head.key: replace(request, prompt="", notation=(), highlight=None)
            for head, request in zip(heads, batch.requests, strict=True)
            if head and not head.prefix
        }
        # With several questions about one image its prefix is better computed once, beforehand.
        if first and beams == 1 and len(new) == len(heads):
            spans = [head.span for head in heads if head]
            unbiased = partial(prefix_cache.first_biased, prompts.bias)
            if all(unbiased(row, a) >= b - a for row, (a, b) in enumerate(spans)):
                return self._decoder().with_cache(prompts)
        if new:
            alone = self._tokens(list(new.values()))
            at_start = self.prompts(alone)
            self._fill(alone, lambda spans: self._decoder().prefixes(at_start, spans))
        known = [(head and head.prefix) or Prefix() for head in heads]
        return self.adapter.resume(prompts, known, beams)

    def _heads(self, batch: TokenizedRequests) -> list[Head | None]:
        """Each row up to the end of its image; None where its states are not reused."""
        if not isinstance(self.adapter, DecoderAdapter):
            return [None] * len(batch.requests)
        ids = batch.inputs["input_ids"]
        counts = [own_features(request)[0].stop for request in batch.requests]
        spans = self.adapter.spans(ids, batch.inputs["attention_mask"], counts)
        heads: list[Head | None] = []
        for row, (request, (start, end)) in enumerate(zip(batch.requests, spans, strict=True)):
            store = getattr(request.image, "prefix", None)  # a chat may have no image
            if store is None or not batch.image_first[row]:
                heads.append(None)
                continue
            shown = tuple(request.images[: request.number + 1])
            heads.append(Head((start, end), (tuple(ids[row, start:end].tolist()), shown), store))
        return heads

    def _fill(self, batch: TokenizedRequests, states: Callable[[Any], list[Prefix]]) -> None:
        """Keep the prefixes that are not known yet; `states` gives them for spans of all rows."""
        heads = [head for head in self._heads(batch) if head and not head.prefix]
        if len(heads) == len(batch.requests):
            for head, prefix in zip(heads, states([head.span for head in heads]), strict=True):
                head.fill(prefix)

    def _read(
        self,
        requests: Sequence[Request],
        read: Callable[[Prompts, list[Any], GenerationConfig], list[Tensor]],
        asked: Sequence[Any] = (),
        *,
        reuse: bool = True,
    ) -> list[NDArray[np.float32]]:
        """What a function reads about each row's image features, `(..., K)`, laid out as tokens:
        `(..., *tokens)` in the layout of `token_mask`.

        It gets the prompts of a batch, what is `asked` about each, and how to run a single pass.
        """

        def laid_out(batch: TokenizedRequests, rows: list[int]) -> list[NDArray[np.float32]]:
            prompts = self._prompts(batch) if reuse else self.prompts(batch)
            one = self._generation_config(Decoding(max_new_tokens=1))
            found = []
            values = read(prompts, [asked[row] for row in rows if asked], one)
            for of_row, request in zip(values, batch.requests, strict=True):
                own, _ = own_features(request)
                spatial = of_row[..., own][..., self.adapter.first_feature :].float()
                shape = (*spatial.shape[:-1], *self.tokens.layout(request.pil_image.size))
                found.append(spatial.reshape(shape).numpy())
            return found

        return self._run(requests, [1] * len(requests), laid_out)

    def _decoder(self) -> DecoderAdapter:
        if not isinstance(self.adapter, DecoderAdapter):
            raise CofError(
                f"The image is not among the decoder's tokens in {self.family.name}, so words "
                "cannot be compared with it there: use grounder 'prompt' or 'attention'."
            )
        return self.adapter

    def _tokens(self, requests: Sequence[Request]) -> TokenizedRequests:
        return prompt_builder.tokenize_requests(self.adapter, self.chat, requests)

    def _fit(self, requests: Sequence[Request], new_tokens: Sequence[int]) -> TokenizedRequests:
        """Requests in token ids, their images processed; the model has not run."""
        if not self.takes_two and not all(request.images for request in requests):
            raise CofError(f"{self.family.name} answers about images alone: add one.")
        requests = _with_images(self._shown(requests), self._process)
        batch = self._tokens(requests)
        limit = self.context_length
        sizes = zip(requests, batch.lengths, new_tokens, strict=True)
        for number, (request, length, new) in enumerate(sizes, 1):
            if limit is not None and length + new > limit:
                count = len(requests)
                which = "The question" if count == 1 else f"Question {number} of {count}"
                raise CofError(
                    f"{which} ({request.prompt[:40]!r}...) is too long: {length:,} tokens with its "
                    f"image and {new:,} for the answer, where the model takes {limit:,} in all. "
                    "Shorten it, or allow a shorter answer."
                )
        return batch

    def _shown(self, requests: Sequence[Request]) -> Sequence[Request]:
        """The requests, with the last image alone if the model takes only one."""
        if self.takes_two or not any(request.others for request in requests):
            return requests
        warnings.warn(
            f"{self.family.name} takes one image at a time, so the last one is shown alone.",
            CofWarning,
            stacklevel=5,
        )
        return [
            Request(asked.images[-1], asked.prompt, notation=asked.notation)
            if asked.others
            else asked
            for asked in requests
        ]

    def _process(self, images: Sequence[Image.Image | EncodedImage]) -> list[EncodedImage]:
        """Images with the image processor's output, as it is set now."""
        if os.getpid() != self._process_id:
            if self.model.device.type != "cpu":
                raise CofError(
                    "This process was forked after the model had been loaded, and cannot use the "
                    "GPU: load the model after the fork, or start processes by 'spawn'."
                )
            torch.set_num_threads(1)  # its threads are not here, and it would wait for them
            self._process_id = os.getpid()
        return self.process(images)

    def process(self, images: Sequence[Image.Image | EncodedImage]) -> list[EncodedImage]:
        """See `ImageProcessor`; images that were processed with other settings are so anew."""
        setting = self.tokens.setting

        def process(image: Image.Image | EncodedImage) -> EncodedImage:
            if isinstance(image, EncodedImage) and image.setting == setting:
                return image
            given = pil_image(image)
            return EncodedImage(given, self.tokens.pixels(given), setting=setting)

        return map_in_threads(process, images)

    def _see(self, images: Sequence[EncodedImage], *, lazy: bool = False) -> list[EncodedImage]:
        """Processed images with their features.

        With `lazy` those that are new also get a prefix, to be filled in.
        """
        seen = list(images)
        new = [number for number, image in enumerate(images) if image.features is None]
        sizes = [np.asarray(seen[n].pixels["pixel_values"]).size // VALUES_PER_TOKEN for n in new]
        with self._running():
            for group in group_by_size(sizes, self.max_batch_tokens):
                numbers = [new[place] for place in group]
                encoded = self.adapter.encode([seen[number].pixels for number in numbers])
                for number, features in zip(numbers, encoded, strict=True):
                    prefix: Any = {} if lazy else None
                    seen[number] = replace(seen[number], features=features, prefix=prefix)
        return seen

    def _start(self, template: CompiledBoxTemplate, request: Request) -> PartialBox:
        """A box of a request's image, before its first number."""
        frame = self.frame(request.pil_image.size)
        return template.start(self.dialect.limits(template.template, frame))

    def _generation_config(self, decoding: Decoding) -> GenerationConfig:
        return generation.make_generation_config(decoding, self.adapter)


def _once(work: Work, images: Sequence[Any]) -> dict[int, EncodedImage]:
    """What a function makes of images, by their `id`; it gets each distinct object once."""
    distinct = {id(image): image for image in images}
    return dict(zip(distinct, work(list(distinct.values())), strict=True))


def _with_images(requests: Sequence[Request], work: Work) -> list[Request]:
    """Requests about what a function makes of their images; it gets each distinct one once."""
    made = _once(work, [image for request in requests for image in request.images])
    return [request.with_images(made) for request in requests]
