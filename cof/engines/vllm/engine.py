"""The vLLM engine: many requests at once, with reweighted attention."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from functools import cache, partial
from os import PathLike
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig

from cof.attention.bias_mask import make_gates
from cof.engines.base import FIRST_TOKEN, Layers
from cof.engines.text_stream import TextStream, apart_from_thoughts
from cof.engines.transformers.generation import guidance
from cof.engines.transformers.loading import load_processor_for, loading_errors
from cof.engines.vllm.bias import KEY, RequestBias
from cof.engines.vllm.boxes import Part, decode_boxes
from cof.engines.vllm.clients import Client, OfflineClient, OnOutput
from cof.engines.vllm.maps import KEY as MAP
from cof.engines.vllm.maps import join_parts
from cof.engines.vllm.versions import check_version
from cof.errors import CofError
from cof.families import Family, dialect_of, family_of
from cof.families.chat import Chat, adds_special_tokens
from cof.families.image_tokens import ImageTokens, TokenReader, processed_wh
from cof.families.special_tokens import token_ids
from cof.images import image_file, is_plain
from cof.prompting.box_template import CompiledBoxTemplate
from cof.prompting.thoughts import decode
from cof.types import Decoding, EncodedImage, Generation, Highlight, OnText, Request, pil_image

MODEL_TYPES = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl",
    "smolvlm", "idefics3", "gemma3",
)  # fmt: skip
"""Those for which `tests/vllm` holds this engine against the transformers engine."""

WORKER = "cof.engines.vllm.worker.BiasedWorker"
"""vLLM's option `worker_cls`."""

MAX_IMAGES = 8
"""The most images of one chat."""


class VllmEngine(TokenReader):
    """Answers requests with vLLM; implements `Engine` and `AttentionReader` of `cof.engines.base`.

    Requests in one call may differ in image, prompt, region, strength, scope, layers and heads.
    vLLM batches them, and reuses what is the same of them: image features, and the decoder's state
    up to the first token that a bias changes.

    Attributes:
        name: the folder or hub id it was loaded from.
        dialect: how it is asked for a box.
        family: what is known of its kind of model.
        tokens: which of its tokens show what of an image.
        takes_two: whether it can be shown two images at once.
        attention_source: see `AttentionReader`.
        client: runs the requests.

    Threads may share an engine.
    """

    attention_source = FIRST_TOKEN

    def __init__(self, client: Client, config: Any, processor: Any, *, name: str) -> None:
        """Wrap an engine that has our worker; `processor` has a PIL image processor."""
        self.client = client
        self.name = name
        self.processor = processor
        self.family: Family = family_of(config)
        self.takes_two = self.family.takes_two
        self.dialect = dialect_of(config, self.family)
        self.tokens = ImageTokens(self.family, self.dialect, config, processor)
        self.chat = Chat(self.family, self.dialect, processor)
        self._compile = cache(partial(self.chat.compile, name=name))
        self._default_params = client.model_config.get_diff_sampling_param()  # reads a file
        self._processing = threading.Lock()  # tokenizers are not for several threads

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        dtype: str | None = None,
        pad_to_square: bool | None = None,
        max_batch_tokens: int | None = None,
        quantization: str | None = None,
        **options: Any,
    ) -> VllmEngine:
        """Load a checkpoint from a folder or the hub.

        Args:
            model: a path or a hub id.
            dtype: such as `bfloat16`; None: vLLM's choice.
            pad_to_square: see `TransformersEngine.from_pretrained`.
            max_batch_tokens: the most tokens in one forward pass; None: vLLM's choice.
            quantization: as vLLM names it; None: as the checkpoint is.
            options: what else `vllm.LLM` takes, such as `tensor_parallel_size`.

        Raises:
            CofError: vLLM is missing or of another version, the model is not supported, or vLLM
                cannot load it.
        """
        check_version()
        if "device_map" in options:
            raise CofError(
                "device_map is for engine='transformers'; vLLM takes tensor_parallel_size and "
                "pipeline_parallel_size as engine_options."
            )
        name = str(model)
        config, processor = load_processor(name, pad_to_square)
        given = {"quantization": quantization, "max_num_batched_tokens": max_batch_tokens}
        options = {**model_options(config, processor, options), **given, **options}
        options = {name: value for name, value in options.items() if value is not None}
        from vllm import LLM

        try:
            llm = LLM(model=name, dtype=dtype or "auto", **options)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise CofError(f"vLLM cannot load {name!r}: {error}") from error
        return cls(OfflineClient(llm), config, processor, name=name)

    def with_client(self, client: Client) -> VllmEngine:
        """The same model, asked through another client."""
        other = copy(self)
        other.client = client
        return other

    def encode(self, images: Sequence[Image.Image], *, prefill: bool = False) -> list[EncodedImage]:
        """The images as they are: vLLM caches its features and states by their contents."""
        return [EncodedImage(image) for image in images]

    def encode_file(self, image: Image.Image, data: bytes = b"") -> EncodedImage:
        """An image as `load_image` gives it. `pixels.original_bytes` is the file from which vLLM's
        own chat requests show the same, with the same caches: `data`, where the image's own file
        is one, and else a BMP.
        """
        from vllm.multimodal.media import MediaWithBytes

        shown = self._shown(image)
        file = data if data and shown is image and is_plain(data) else image_file(shown, "BMP")
        return EncodedImage(image, MediaWithBytes(shown, file))

    def image_attentions(
        self, requests: Sequence[Request], layers: Layers | None = None
    ) -> list[NDArray[np.float32]]:
        """See `AttentionReader`: vLLM's workers read it in each prompt's own pass."""
        first = self.family.num_prefix_features(self.tokens.config)
        text = self.tokens.config.get_text_config()
        wanted, heads = list((layers or range)(text.num_hidden_layers)), text.num_attention_heads
        one = Decoding(max_new_tokens=1)
        params = [self._sampling_params(request, one) for request in requests]
        for each, request in zip(params, requests, strict=True):
            asked = (uuid4().hex, request.number, wanted)
            each.extra_args = {**(each.extra_args or {}), MAP: asked}
        outputs = self._run(requests, params)
        layouts = [self.tokens.layout(request.pil_image.size) for request in requests]
        return [
            join_parts(output.map, wanted, heads)[..., first:].reshape(len(wanted), heads, *layout)
            for output, layout in zip(outputs, layouts, strict=True)
        ]

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
        on_text: OnText | None = None,
    ) -> list[Generation]:
        """Answer every request.

        `Generation.logprobs` are those of the model itself, before temperature and top-p.
        `on_text` gets each reply token by token (`Engine.generate`), in a thread of vLLM's.

        A box by a template is told when it is whole, and its `Generation.likely` is None.

        Raises:
            CofError: beams, contrast, a layer or head the model does not have, or a prompt that is
                too long.
        """
        return apart_from_thoughts(
            self.chat, requests, on_text, lambda tell: self._generate(requests, decoding, tell)
        )

    def _generate(
        self, requests: Sequence[Request], decoding: Decoding, on_text: OnText | None
    ) -> list[Generation]:
        """`generate`, thoughts and answers together."""
        if decoding.num_beams > 1:
            raise CofError("The vLLM engine does not search with beams: use num_beams=1.")
        if any(guidance(request) != 1 for request in requests):
            raise CofError(
                "The vLLM engine cannot contrast two answers: use focus='attention', or "
                "engine='transformers'."
            )
        if not requests:
            return []
        template = decoding.box_template
        if template is not None and (compiled := self._compile(template)):
            return self._decode_boxes(requests, compiled, on_text)
        tell = on_text and self._streamed(len(requests), on_text)
        params = [self._sampling_params(each, decoding, grows=bool(tell)) for each in requests]
        return [self._generation(output) for output in self._run(requests, params, tell)]

    def _run(
        self,
        requests: Sequence[Request],
        params: Sequence[Any],
        tell: OnOutput | None = None,
        begun: Sequence[Sequence[int]] = (),
    ) -> list[Any]:
        """vLLM's outputs; `begun`: the tokens with which each reply begins.

        Raises:
            CofError: vLLM refuses a request.
        """
        from vllm.exceptions import VLLMValidationError

        prompts = [self._prompt(request) for request in requests]
        for prompt, tokens in zip(prompts, begun, strict=False):
            prompt["prompt_token_ids"] += tokens
        try:
            return self.client.run(prompts, params, tell)
        except (ValueError, VLLMValidationError) as error:
            raise CofError(f"vLLM refuses a request: {error}") from error

    def _decode_boxes(
        self, requests: Sequence[Request], template: CompiledBoxTemplate, on_text: OnText | None
    ) -> list[Generation]:
        def ask(parts: Mapping[int, Part]) -> list[Any]:
            asked = [requests[row] for row in parts]
            begun, fields = zip(*parts.values(), strict=True)
            pairs = zip(asked, fields, strict=True)
            params = [self._sampling_params(one, Decoding(), **more) for one, more in pairs]
            return self._run(asked, params, begun=begun)

        frames = [self.frame(request.pil_image.size) for request in requests]
        limits = [self.dialect.limits(template.template, frame) for frame in frames]
        boxes = decode_boxes([template.start(each) for each in limits], ask)
        for place, box in enumerate(boxes):
            if on_text is not None:
                on_text(place, box.text)
        return boxes

    def _prompt(self, request: Request) -> dict[str, Any]:
        text = self.chat.text(request)
        special = adds_special_tokens(self.processor, text)
        with self._processing:
            ids = token_ids(self.processor.tokenizer, text, add_special_tokens=special)
        shown = [
            image.pixels
            if isinstance(image, EncodedImage) and image.pixels is not None
            else self._shown(pil_image(image))
            for image in request.images
        ]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": shown} if shown else {}}

    def _shown(self, image: Image.Image) -> Image.Image:
        """What vLLM's processor gets of an image, which is the checkpoint's own: as `ImageTokens`
        takes it, and padded where the reference evaluation pads."""
        wh = processed_wh(image.size)
        if image.size != wh:
            image = image.resize(wh, Image.Resampling.LANCZOS)
        images = self.processor.image_processor
        if self.family.pads_to_square is None or not images.do_pad or wh[0] == wh[1]:
            return image
        side = max(wh)
        square = Image.new(
            "RGB", (side, side), tuple(int(255 * mean) for mean in images.image_mean)
        )
        square.paste(image, ((side - wh[0]) // 2, (side - wh[1]) // 2))
        return square

    def _sampling_params(
        self, request: Request, decoding: Decoding, *, grows: bool = False, **fields: Any
    ) -> Any:
        """vLLM's; `grows`: whether a reply is told as it grows. `fields` go over the others."""
        from vllm.sampling_params import RequestOutputKind as Kind
        from vllm.sampling_params import SamplingParams

        params = SamplingParams.from_optional(**self._default_params)
        params.output_kind = Kind.CUMULATIVE if grows else Kind.FINAL_ONLY
        params.logprobs = 0  # of the tokens chosen
        params.max_tokens = decoding.max_new_tokens
        params.temperature, params.top_p = decoding.temperature, decoding.top_p
        params.seed = decoding.seed if decoding.temperature > 0 else None
        highlight = request.highlight
        if highlight is not None and highlight.strength != 1:
            params.extra_args = highlight_args(
                self.tokens, request.pil_image.size, highlight, request.number
            )
        for name, value in fields.items():
            setattr(params, name, value)
        return params.clone()  # checked anew

    def _streamed(self, count: int, on_text: OnText) -> OnOutput:
        """What tells `on_text` of the replies as they grow."""
        streams = [TextStream(self.processor.tokenizer) for _ in range(count)]

        def tell(place: int, output: Any) -> None:
            done = output.finish_reason is not None
            if piece := streams[place].feed(_chosen_ids(output), done=done):
                on_text(place, piece)

        return tell

    def _generation(self, output: Any) -> Generation:
        ids = _chosen_ids(output)
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=False)]
        text = decode(self.processor.tokenizer, ids).strip()
        return Generation(text, tuple(ids), tuple(logprobs))


def _chosen_ids(output: Any) -> list[int]:
    """The tokens of vLLM's `CompletionOutput`, without the end token."""
    ids = list(output.token_ids)
    return ids[:-1] if output.finish_reason == "stop" else ids


def highlight_args(
    tokens: ImageTokens, image_wh: tuple[int, int], highlight: Highlight, image: int
) -> dict[str, str]:
    """A highlight as `SamplingParams.extra_args`.

    Args:
        tokens: of the model.
        image_wh: the size of the image that is looked at.
        image: its number among the request's.

    Raises:
        CofError: a layer or head the model does not have.
    """
    family, config = tokens.family, tokens.config
    text = config.get_text_config()
    shape = (text.num_hidden_layers, text.num_attention_heads)
    make_gates([highlight.layers], [highlight.heads], shape)
    added = tokens.bias(image_wh, highlight).ravel()
    values = np.concatenate([np.zeros(family.num_prefix_features(config)), added])
    bidirectional = family.bidirectional(config)
    bias = RequestBias.from_values(values, highlight, bidirectional=bidirectional, image=image)
    return {KEY: bias.to_json()}


@cache
def image_tokens(name: str) -> ImageTokens:
    """Of a checkpoint with its own processor, which crops where the engine pads.

    Raises:
        CofError: see `load_processor`.
    """
    config, processor = load_processor(name)
    if family_of(config).pads_to_square is not None:
        processor = load_processor(name, False)[1]
    return ImageTokens(family_of(config), dialect_of(config, family_of(config)), config, processor)


def load_processor(name: str, pad_to_square: bool | None = None) -> tuple[Any, Any]:
    """A checkpoint's config, and its processor with a PIL image processor.

    Raises:
        CofError: it cannot be read, or is of a kind that the engine is not proven for.
    """
    with loading_errors(name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type not in MODEL_TYPES:
        raise CofError(
            f"The vLLM engine is not proven for models of type {config.model_type!r}, only for "
            f"{', '.join(MODEL_TYPES)}: use engine='transformers'."
        )
    return config, load_processor_for(name, config, pad_to_square)


def model_options(config: Any, processor: Any, given: Collection[str] = ()) -> dict[str, Any]:
    """What `vllm.LLM` and `vllm serve` need for a model beside its name.

    Args:
        given: the names of the user's own options.
    """
    import psutil
    from vllm.platforms import current_platform

    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": MAX_IMAGES}, "worker_cls": WORKER}
    if not hasattr(processor, "video_processor"):  # videos are processed by torchvision alone
        options["mm_processor_kwargs"] = {"backend": "pil"}
    if family_of(config).bidirectional(config):
        options["disable_chunked_mm_input"] = True
    said = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & set(given)
    if current_platform.is_cpu() and not said and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        # vLLM would take nearly all memory that the machine has, or not start
        free = psutil.virtual_memory().available
        options["kv_cache_memory_bytes"] = min(free // 4, 4 << 30)
    return options
