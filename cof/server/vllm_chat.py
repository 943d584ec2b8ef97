"""A caller's own chat request on its way to vLLM: there looking closer, and back with `cof`."""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

from fastapi import Request
from PIL import Image
from starlette import types as asgi
from starlette.types import Receive, Send

from cof.engines.vllm.clients import ServedClient
from cof.engines.vllm.engine import VllmEngine, highlight_args
from cof.errors import CofError
from cof.families.chat import adds_special_tokens
from cof.focuses import Attention, Contrast
from cof.images import data_url
from cof.messages import ROLES
from cof.pipeline import CoF, answer_of
from cof.query import Query, Sample
from cof.server.logs import Metrics
from cof.server.protocol import query_of
from cof.server.service import Message, Result, Service, image_places, unless_gone
from cof.settings import Settings
from cof.stages import Look
from cof.types import EncodedImage, Timings, pil_image
from cof.types import Request as ChatRequest

_UNKNOWN = ("num_tokens", "answer_confidence")
"""What vLLM's own reply says of an answer."""

_PROCESSING = {"mm_processor_kwargs", "media_io_kwargs"}
"""Fields of vLLM's after which a region would lie elsewhere."""

_RANK = b"x-data-parallel-rank"


@dataclass(frozen=True, eq=False)
class Seen:
    """What stage 1 gives.

    Attributes:
        look: where to look.
        request: of stage 2.
        added: what that adds to attention, as `SamplingParams.extra_args`.
        time: when it was known, of `time.perf_counter`.
    """

    look: Look
    request: ChatRequest
    added: dict[str, str]
    time: float


looking: ContextVar[asyncio.Future[Seen] | None] = ContextVar("cof_looking", default=None)
"""Stage 1 of the request at hand, for which vLLM's answer waits."""


def after_looking(generate: Any) -> Callable[..., AsyncIterator[Any]]:
    """vLLM's `AsyncLLM.generate` for requests of which some wait for stage 1."""

    async def waiting(prompt: Any, params: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        if (stage_1 := looking.get()) is not None:
            params.extra_args = {**(params.extra_args or {}), **(await stage_1).added}
        async with aclosing(generate(prompt, params, *args, **kwargs)) as steps:
            async for step in steps:
                yield step

    return waiting


def check_single(settings: Settings) -> None:
    """
    Raises:
        CofError: stage 2 would be several requests, of which one would be the answer.
    """
    if (
        len(settings.grounders) > 1
        or settings.max_plain_confidence < 1
        or isinstance(settings.focus, Contrast)
    ):
        raise CofError(
            "Behind vLLM one request is one answer: name one grounder, and leave out "
            "max_plain_confidence and the focus contrast."
        )


class Looker:
    """Looks in a thread for each query; vLLM batches what they ask of it.

    Both stages of a query go to one data-parallel engine, so that the second finds the image's
    prefix in its cache; engines get their turns.
    """

    def __init__(self, service: Service, engine: VllmEngine, async_llm: Any) -> None:
        """`async_llm` is vLLM's own engine, in the loop that runs."""
        self.service, self.engine = service, engine
        self._async_llm, self._loop = async_llm, asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(service.limits.max_queue, "cof-look")
        ranks = async_llm.engine_core.engine_ranks_managed
        self._ranks: Sequence[int | None] = range(len(ranks)) if len(ranks) > 1 else [None]
        self._turns = cycle(self._ranks)

    async def warm_up(self) -> None:
        """Look once with each engine: what vLLM compiles at a first request with log probabilities
        takes it ten seconds."""
        black = Image.new("RGB", (64, 64))
        for rank in self._ranks:
            client = ServedClient(self._async_llm, self._loop, rank)
            cof = CoF(self.engine.with_client(client), self.service.settings)
            with suppress(CofError):  # a model that takes few tokens is good for requests of text
                await self._run(partial(cof.locate, black, "What is it?"))

    async def look_first(
        self, fields: dict[str, Any], until_answered: ExitStack, request: Request, send: Send
    ) -> tuple[bytes, asyncio.Future[Seen], Send]:
        """Begin stage 1: the body of stage 2 for vLLM, stage 1, and where vLLM's reply goes.

        vLLM gets the body as soon as its engine is busy with stage 1, so that it has read the chat
        and the image by the time that the region is known; where the images depend on the region,
        afterwards.

        Args:
            fields: the request's, with `cof`; they are changed.
            until_answered: is closed after vLLM's reply.
            request: the HTTP request, whose body has been read; its headers are changed.

        Raises:
            ApiError, CofError, TimeoutError: there is no answer.
        """
        service, start = self.service, time.perf_counter()
        query = query_in(fields, service)
        until_answered.enter_context(service.begun())
        client = ServedClient(self._async_llm, self._loop, next(self._turns))
        until_answered.callback(client.cancel)  # where nobody waits for it any more
        cof = CoF(self.engine.with_client(client), service.settings)
        seconds = service.limits.timeout_s
        sample = await unless_gone(request, asyncio.wait_for(self._sample(fields, query), seconds))

        def look() -> Seen:
            found, request = cof.look_for(sample), sample.request
            if found.region is not None:
                request = sample.settings.focus.apply(request, found.region)
            return Seen(found, request, self._added(request), time.perf_counter())

        seconds -= time.perf_counter() - start
        stage_1 = asyncio.ensure_future(asyncio.wait_for(self._run(look), seconds))
        asked = asyncio.ensure_future(client.asked.wait())
        until_answered.callback(stage_1.cancel)
        until_answered.callback(asked.cancel)
        same_images = type(sample.settings.focus).apply is Attention.apply
        first = {stage_1, asked} if same_images else {stage_1}
        await unless_gone(request, asyncio.wait(first, return_when=FIRST_COMPLETED))
        shown = stage_1.result().request if stage_1.done() else sample.request
        body = await self._run(partial(write_body, fields, sample.request, shown, self.engine))

        def answer() -> dict[str, Any]:
            seen = stage_1.result()
            timings = Timings(seen.time - start, time.perf_counter() - seen.time)
            service.metrics.batch(1, timings)
            service.metrics.prompt("ground", *client.prefix_tokens)
            told = answer_of(sample, seen.look, timings).as_dict()
            return {name: value for name, value in told.items() if name not in _UNKNOWN}

        sizes = [image.size for image in sample.request.images]
        request.state.about |= {"cof": True, "stream": bool(fields.get("stream")), "images": sizes}
        if client.rank is not None:
            headers = [pair for pair in request.scope["headers"] if pair[0] != _RANK]
            request.scope["headers"] = [*headers, (_RANK, str(client.rank).encode())]
        send = _WithCof(send, answer, fields.get("n") or 1, service.metrics, stage_1)
        return body, stage_1, send

    async def _sample(self, fields: dict[str, Any], query: Query) -> Sample:
        """The checked query; images at addresses are put into the request."""
        service, encode = self.service, self.engine.encode_file

        async def load(part: Message, address: str, data: bytes) -> EncodedImage:
            image = await self._run(lambda: encode(service.decode(data), data))
            if image.pixels.original_bytes is not data or address[:5].lower() != "data:":
                show_file(part, image.pixels.original_bytes)
            return image

        loaded = replace(query, messages=await service.with_images(query.messages, load))
        sample = Sample.from_query(loaded, service.settings, False, {})
        if len(sample.request.images) != len(list(image_places(fields["messages"]))):
            raise CofError("What tools return cannot hold images: send them in the user's turn.")
        return sample

    def _added(self, request: ChatRequest) -> dict[str, str]:
        """See `Seen.added`."""
        highlight = request.highlight
        if highlight is None or highlight.strength == 1:
            return {}
        size = request.pil_image.size
        return highlight_args(self.engine.tokens, size, highlight, request.number)

    def _run(self, work: Callable[[], Result]) -> Awaitable[Result]:
        return self._loop.run_in_executor(self._threads, work)


def query_in(fields: dict[str, Any], service: Service) -> Query:
    """What is looked for in a request, its images not loaded yet.

    Raises:
        CofError: it cannot be looked at.
    """
    cof = fields["cof"]
    if not isinstance(cof, dict):
        raise CofError("cof: it is an object of settings, and may be empty.")
    if not isinstance(fields.get("vllm_xargs"), dict | None):
        raise CofError("vllm_xargs: it is an object.")
    if given := _PROCESSING & fields.keys():
        raise CofError(f"{given.pop()} changes what the model sees: leave it out, or cof.")
    messages = _looked_at(fields.get("messages"))
    query = query_of(messages, cof, service.settings, service.limits)
    check_single(query.settings or service.settings)
    return query


def write_body(
    fields: dict[str, Any], plain: ChatRequest, request: ChatRequest, engine: VllmEngine
) -> bytes:
    """The HTTP request without `cof`, with the images of `request`, which the focus has made of
    the plain one."""
    messages = fields["messages"]
    del fields["cof"]
    if plain.images:
        show_images(messages, plain, request, engine)
    first = request.chat[0]
    given = any(ROLES.get(each.get("role")) == "system" for each in messages)
    if first.role == "system" and not given:  # the settings' own
        messages.insert(0, {"role": "system", "content": first.parts[0]})
    special = adds_special_tokens(engine.processor, engine.chat.text(request))
    fields.setdefault("add_special_tokens", special)
    return json.dumps(fields).encode()


def show_images(
    messages: list[Any], before: ChatRequest, after: ChatRequest, engine: VllmEngine
) -> None:
    """Put the images that a focus has made into messages: another one in the place of the one
    that is looked at, or one more right after it."""
    content, place = list(image_places(messages))[before.number]
    added = len(after.others) - len(before.others)
    for at, image in enumerate(after.images[before.number :][: 1 + added]):
        if image is not before.image:
            part = {"type": "image_url", "image_url": ""}
            show_file(part, engine.encode_file(pil_image(image)).pixels.original_bytes)
            content[place + at : place + 1] = [part]


class _WithCof:
    """ASGI `send` that puts `cof` into vLLM's reply: into its JSON, or beside the last choice of a
    stream that ends. Either is compact JSON, so that no event, nor the whole, holds an empty line.
    Nothing is sent before stage 1 has ended, nor where it has failed.
    """

    def __init__(
        self,
        send: Send,
        cof: Callable[[], dict[str, Any]],
        choices: int,
        metrics: Metrics,
        stage_1: asyncio.Future[Seen],
    ) -> None:
        self._send, self._cof, self._left, self._metrics = send, cof, choices, metrics
        self._stage_1 = stage_1
        self._answers = False
        self._held = b""

    async def __call__(self, message: asgi.Message) -> None:
        await asyncio.wait({self._stage_1})
        if self._stage_1.cancelled() or self._stage_1.exception() is not None:
            return
        if message["type"] == "http.response.start":
            self._answers = message["status"] == 200
            if self._answers:
                headers = [pair for pair in message["headers"] if pair[0] != b"content-length"]
                message = {**message, "headers": headers}
        elif self._answers and message["type"] == "http.response.body":
            *events, self._held = (self._held + message.get("body", b"")).split(b"\n\n")
            body = b"".join(self._with_cof(event) + b"\n\n" for event in events)
            if not message.get("more_body", False):
                body += self._with_cof(self._held)
            message = {**message, "body": body}
        await self._send(message)

    def _with_cof(self, event: bytes) -> bytes:
        head, begin, rest = event.partition(b"{")
        if not begin:
            return event
        reply = json.loads(begin + rest)
        whole, choices = reply.get("object") == "chat.completion", reply.get("choices", ())
        if (whole or not choices) and (usage := reply.get("usage")):
            found = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self._metrics.prompt("answer", usage["prompt_tokens"], found)
        if self._left <= 0:
            return event
        ended = sum(choice["finish_reason"] is not None for choice in choices)
        self._left = 0 if whole else self._left - ended
        return event if self._left else head + json.dumps(reply | {"cof": self._cof()}).encode()


def show_file(part: Message, file: bytes) -> None:
    """Put an image file into a part of a message, in the place of its address."""
    image = part["image_url"]
    part["image_url"] = {**(image if isinstance(image, dict) else {}), "url": data_url(file)}


def replay(body: bytes, receive: Receive, stage_1: asyncio.Future[Seen] | None = None) -> Receive:
    """A body that has been read, and then what else comes, after stage 1."""
    waiting: list[asgi.Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> asgi.Message:
        if waiting:
            return waiting.pop()
        if stage_1 is not None:
            await asyncio.wait({stage_1})
        return await receive()

    return replayed


def _looked_at(messages: object) -> list[dict[str, Any]]:
    """What stage 1 reads of a chat: up to the user's last turn, without calls of tools and what
    these returned."""
    known = [
        message
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict)
        and message.get("role") != "tool"
        and (message.get("content") or message.get("role") != "assistant")
    ]
    while known and known[-1].get("role") == "assistant":
        known.pop()
    return known
