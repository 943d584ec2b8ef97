"""The two stages: locate, post-process, answer while looking there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from statistics import fmean
from typing import Any, Literal

from PIL.Image import Image

from cof.ahead import process_images, work_ahead
from cof.answer import Answer, Asking, SentText, refused_answer
from cof.client import RemoteCoF
from cof.engines.base import Engine, LengthChecker, ReplyScorer
from cof.errors import CofError
from cof.images import ImageSource, load_image
from cof.presets import default_settings
from cof.presets import preset as named_preset
from cof.query import NO_IMAGE, Query, QueryLike, Sample, as_query
from cof.settings import Settings
from cof.stages import Look, answer, isolate, locate
from cof.types import (
    Decoding,
    EncodedImage,
    Generation,
    Grounding,
    OnText,
    Request,
    Timings,
    confidence,
)

__all__ = ["Answer", "CoF", "Query", "QueryLike"]

_NO_REPLY = Generation("")


class CoF(Asking):
    """Coarse-to-fine answering by an engine or a loaded model: `CoF(model, processor, expand=1.0)`.

    Example:
        >>> cof = CoF.from_pretrained("tiny-early")
        >>> answer = cof("cof/demo/scene-4.png", "What letter is on the green square?")
        >>> answer.text, answer.plain(), [round(side, 2) for side in answer.boxes[0]]
        ('C', 'X', [0.18, 0.11, 0.4, 0.37])
    """

    def __init__(
        self,
        engine: Engine | Any,
        settings: Settings | Any = None,
        *,
        allow_url: bool = False,
        **options: Any,
    ) -> None:
        """
        Args:
            engine: answers requests; or a loaded model, whose attention is ours from then on.
            settings: None: `cof.presets.default_settings` of it. After a model, its processor.
            allow_url: whether images may be given as http(s) addresses.
            options: what `cof.settings.Settings` takes, over the settings.

        Raises:
            CofError: a model that is not supported, or an unknown option.
        """
        if not hasattr(engine, "dialect"):  # no engine
            if not hasattr(engine, "config") or isinstance(settings, Settings | None):
                raise CofError(
                    "CoF takes an engine, or a loaded model of transformers and its processor: "
                    "CoF(model, processor)."
                )
            engine, settings = _engine_class("transformers")(engine, settings), None
        self.engine: Engine = engine
        chosen = settings or default_settings(self.engine.name, self.engine.dialect.name)
        self.settings: Settings = chosen.changed(**options)
        self.allow_url = allow_url

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        engine: str = "transformers",
        preset: str | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        pad_to_square: bool | None = None,
        max_batch_tokens: int | None = None,
        quantization: Any = None,
        cuda_graphs: bool | None = None,
        engine_options: Mapping[str, Any] | None = None,
        allow_url: bool = False,
        **settings: Any,
    ) -> CoF:
        """Load a model.

        Args:
            model: hub id, local path, `tiny` or `tiny-early`; None: `tiny`, which is embedded.
            engine: `transformers`, or `vllm` for many requests at once (`pip install 'cof[vllm]'`).
            preset: a preset's name, `paper`, `paper-parity` or `tiny` (`cof.presets.preset`).
            dtype: `float32`, `bfloat16`, ...; None: the engine's choice for the device.
            device_map: as in transformers; None: the engine's choice.
            pad_to_square: LLaVA-1.5: pad images to a square, as its evaluations do (None, True),
                or crop their centre, as the hub's processor does (False).
            max_batch_tokens: the most tokens, padding and answers included, that are run at a
                time; larger batches are run in parts. None: the engine's choice, 16384.
            quantization: `4bit`, `8bit`, or a quantisation config of transformers.
            cuda_graphs: True: a GPU gets the kernels of a short pass at once (`docs/speed.md`).
            engine_options: what else the engine's own `from_pretrained` takes; for `vllm` that is
                all that `vllm.LLM` takes, such as `tensor_parallel_size`.
            allow_url: whether images may be given as http(s) addresses.
            settings: what `cof.settings.Settings` takes, over the preset's: a `grounder`, a
                `focus`, and options by name.

        Raises:
            CofError: unknown model, engine, preset or option.
        """
        from cof.tiny import resolve_model

        model = resolve_model(model)
        named = named_preset(preset, str(model)) if preset else None
        # checked before minutes are spent on loading a model
        (named or Settings()).changed(**settings)

        options = {
            "dtype": dtype,
            "device_map": device_map,
            "pad_to_square": pad_to_square,
            "max_batch_tokens": max_batch_tokens,
            "quantization": quantization,
            "cuda_graphs": cuda_graphs,
            **(engine_options or {}),
        }
        given = {name: value for name, value in options.items() if value is not None}
        load = _engine_class(engine).from_pretrained
        try:
            signature(load).bind(model, **given)
        except TypeError as error:
            raise CofError(f"The engine {engine} has no such option: {error}.") from None
        return cls(load(model, **given), named, allow_url=allow_url, **settings)

    @staticmethod
    def connect(url: str | Sequence[str], **options: Any) -> RemoteCoF:
        """Ask a pipeline that `cof serve` runs elsewhere, or several.

        Args:
            url: such as `http://127.0.0.1:8000`; several as a sequence, or with commas between.
            options: what `cof.client.RemoteCoF` takes: `api_key`, `allow_url`, settings, ...

        Raises:
            CofError: an unknown setting, or no such server.
        """
        return RemoteCoF(url, **options)

    def encode(self, image: ImageSource) -> EncodedImage:
        """What the engine computes of an image, to be passed in its place.

        Worth it for several calls about one image (`batch` does so by itself for its own); the
        answers are the same. It holds on to the memory that the decoder needs for the image.
        """
        loaded = load_image(image, allow_url=self.allow_url)
        return self.engine.encode([loaded], prefill=True)[0]

    def batch(
        self,
        queries: Iterable[QueryLike],
        *,
        decoding: Decoding | None = None,
        batch_size: int = 16,
        on_error: Literal["raise", "return"] = "raise",
        on_text: OnText | None = None,
        on_thought: OnText | None = None,
    ) -> list[Answer]:
        """Answer many questions, `batch_size` at a time, each with its own region and lambda.

        Args:
            queries: `Query`s, dicts with its fields, or `(image, question)` pairs.
            decoding: how answers are decoded (stage 1 is always greedy).
            batch_size: questions in one forward pass.
            on_error: `raise`: the first refused query ends the call; `return`: a refused query
                gets an answer with its `error`, and all others are answered.
            on_text: gets a query's place and the next piece of its answer while it is decoded; the
                pieces joined are the answer's `text`. Where several answers are compared, and with
                beams, the text is one piece. What it raises ends the call.
            on_thought: beside `on_text`, the same for what a reasoning model thinks before.

        Returns:
            The answers, in the order of the queries; each is what its query gets alone.

        Raises:
            CofError: a query is refused, and errors are not returned.
        """
        if on_error not in ("raise", "return"):
            raise CofError(f"on_error must be raise or return, not {on_error!r}.")
        if batch_size < 1:
            raise CofError(f"batch_size must be at least 1, not {batch_size}.")
        items, decoding = list(enumerate(queries)), decoding or Decoding()
        batches = [items[at : at + batch_size] for at in range(0, len(items), batch_size)]
        answers: list[Answer] = []
        for read in work_ahead(partial(self._read_batch, on_error=on_error), batches):
            answers += self._answer_batch(*read, decoding, on_error, on_text, on_thought)
        return answers

    def locate(self, image: ImageSource | EncodedImage, question: str) -> Grounding:
        """Stage 1 alone, before post-processing; of several grounders the first with a region."""
        looking = self.settings.changed(focus="crop")  # one that is never idle
        query = Query(image, question, settings=looking)
        sample = Sample.from_query(query, self.settings, self.allow_url, {})
        return self.look_for(sample).grounding

    def look_for(self, sample: Sample) -> Look:
        """Stage 1 for one query: the first of its looks that found a region."""
        (looks,) = locate(self.engine, [sample], self._encoded([sample]), [None])
        return next((look for look in looks if look.grounding.region), looks[0])

    def _read_batch(
        self, items: Sequence[tuple[int, QueryLike]], on_error: str
    ) -> tuple[dict[int, Sample | Answer], dict[int, Any]]:
        """The queries of a batch by place, checked or refused; and what `process_images` gives."""
        images: dict[object, Image] = {}
        read: dict[int, Sample | Answer] = {}
        for place, item in items:
            question = ""
            try:
                query = as_query(item)
                question = query.question
                read[place] = Sample.from_query(query, self.settings, self.allow_url, images)
            except CofError as error:
                if on_error == "raise":
                    raise
                read[place] = refused_answer(NO_IMAGE, question, self.settings, error)
        return read, process_images(self.engine, images.values())

    def _answer_batch(
        self,
        read: Mapping[int, Sample | Answer],
        processed: Mapping[int, Any],
        decoding: Decoding,
        on_error: str,
        on_text: OnText | None,
        on_thought: OnText | None,
    ) -> list[Answer]:
        samples = {place: each for place, each in read.items() if isinstance(each, Sample)}
        answers = {place: each for place, each in read.items() if isinstance(each, Answer)}
        texts: dict[Sample, SentText] = {}
        if on_text is not None:
            for place, sample in samples.items():
                thought = None if on_thought is None else partial(on_thought, place)
                texts[sample] = SentText(partial(on_text, place), thought)
        run = partial(self._run, decoding=decoding, texts=texts, processed=processed)
        checked = list(samples.values())
        raising = on_error == "raise"
        replies = (
            dict(zip(checked, run(checked), strict=True)) if raising else isolate(checked, run)
        )
        for place, sample in samples.items():
            reply, request = replies[sample], sample.request
            if isinstance(reply, CofError):
                reply = refused_answer(request.pil_image, request.prompt, sample.settings, reply)
            answers[place] = reply
        return [answers[place] for place in read]

    def _run(
        self,
        samples: Sequence[Sample],
        decoding: Decoding,
        texts: Mapping[Sample, SentText],
        processed: Mapping[int, Any],
    ) -> list[Answer]:
        """Both stages."""
        start = time.perf_counter()
        requests = self._encoded(samples, processed)
        if isinstance(self.engine, LengthChecker):
            self.engine.check_lengths(requests, decoding)
        before = time.perf_counter()
        unsure = [number for number, sample in enumerate(samples) if sample.drafts]
        asked = [samples[number] for number in unsure]
        drawn = self._generate([requests[n] for n in unsure], asked, decoding, {}) if unsure else []
        drafts = list(map(dict(zip(unsure, drawn, strict=True)).get, range(len(samples))))
        drafted = time.perf_counter()
        looks = locate(self.engine, samples, requests, drafts)
        grounded = time.perf_counter()
        outcomes = answer(
            lambda requests, numbers: self._generate(
                requests, [samples[number] for number in numbers], decoding, texts
            ),
            samples,
            requests,
            looks,
            drafts,
        )
        answering = time.perf_counter() - grounded + drafted - before
        timings = Timings(ground=grounded - drafted + before - start, answer=answering)
        answers = []
        for sample, draft, (reply, look) in zip(samples, drafts, outcomes, strict=True):
            if sample in texts:
                texts[sample].finish(reply.text)
            known = draft or (reply if look.region is None else None)
            plain = known.text if known else partial(self._plain_text, sample, decoding)
            answers.append(answer_of(sample, look, timings, reply, plain))
        return answers

    def _generate(
        self,
        requests: Sequence[Request],
        samples: Sequence[Sample],
        decoding: Decoding,
        texts: Mapping[Sample, SentText],
    ) -> list[Generation]:
        """A reply to each sample: the most probable of its options, or what the model writes."""
        scored = [(n, option) for n, sample in enumerate(samples) for option in sample.options]
        if not scored:
            return self._write(requests, decoding, [texts.get(sample) for sample in samples])
        if not isinstance(self.engine, ReplyScorer):
            raise CofError(
                f"{self.engine.name} cannot say how likely a reply is: use a transformers model."
            )
        free = [n for n, sample in enumerate(samples) if not sample.options]
        written = [texts.get(samples[n]) for n in free]
        replies = dict(
            zip(free, self._write([requests[n] for n in free], decoding, written), strict=True)
        )
        asked, options = [requests[n] for n, _ in scored], [option for _, option in scored]
        for (n, _), reply in zip(scored, self.engine.score_replies(asked, options), strict=True):
            best = replies.setdefault(n, reply)
            if fmean(reply.logprobs) > fmean(best.logprobs):  # of equals the first
                replies[n] = reply
        return [replies[n] for n in range(len(samples))]

    def _write(
        self, requests: Sequence[Request], decoding: Decoding, texts: Sequence[SentText | None]
    ) -> list[Generation]:
        """Replies, and the text of each as it grows, unless several are for one sample."""
        if not requests:
            return []
        alone = [text if texts.count(text) == 1 else None for text in texts]
        if not any(alone):
            return self.engine.generate(requests, decoding)

        def tell(place: int, piece: str) -> None:
            if (text := alone[place]) is not None:
                text.grow(piece)

        for text in filter(None, alone):
            text.begin()
        return self.engine.generate(requests, decoding, tell)

    def _encoded(
        self, samples: Sequence[Sample], processed: Mapping[int, Any] | None = None
    ) -> list[Request]:
        """The plain requests, each distinct image encoded once.

        Prefill all images or none, because the prefixes of a batch have one length.
        """
        if not self.engine.takes_two and any(sample.request.others for sample in samples):
            raise CofError(f"{self.engine.name} takes one image at a time: leave the others out.")
        images = [image for sample in samples for image in sample.request.images]
        fresh = {id(image): image for image in images if not isinstance(image, EncodedImage)}
        calls = sum(s.engine_calls for s in samples if id(s.request.image) in fresh)
        prefilled = any(isinstance(of, EncodedImage) and of.prefix is not None for of in images)
        prefill = prefilled or calls > len({id(s.request.image) for s in samples} & fresh.keys())
        given = [(processed or {}).get(id(image), image) for image in fresh.values()]
        encoded = self.engine.encode(given, prefill=prefill) if given else []
        known = dict(zip(fresh, encoded, strict=True))
        return [sample.request.with_images(known) for sample in samples]

    def _plain_text(self, sample: Sample, decoding: Decoding) -> str:
        return self._generate([sample.request], [sample], decoding, {})[0].text


def answer_of(
    sample: Sample,
    look: Look,
    timings: Timings,
    reply: Generation = _NO_REPLY,
    plain: str | Callable[[], str] = "",
) -> Answer:
    """The answer that came of a look; without a reply, what is known before there is one."""
    found = look.grounding.region
    return Answer(
        text=reply.text,
        reasoning=reply.reasoning,
        boxes=look.region.boxes if look.region else (),
        raw_boxes=found.boxes if found else (),
        found=found is not None,
        grounder=look.grounder,
        grounding_text=look.grounding.text,
        confidence=look.grounding.confidence,
        reason=look.grounding.reason,
        region=look.region,
        settings=sample.settings,
        timings=timings,
        image=sample.request.pil_image,
        question=sample.request.prompt,
        request=sample.request,
        num_tokens=len(reply.token_ids),
        token_ids=reply.token_ids,
        logprobs=reply.logprobs,
        num_prompt_tokens=reply.num_prompt_tokens,
        answer_confidence=confidence(reply),
        _plain=plain,
    )


def _engine_class(name: str) -> Any:
    """An engine's class; importing it is what takes time."""
    if name == "transformers":
        from cof.engines.transformers.engine import TransformersEngine

        return TransformersEngine
    if name == "vllm":
        from cof.engines.vllm.engine import VllmEngine

        return VllmEngine
    raise CofError(f"engine must be transformers or vllm, not {name!r}.")
