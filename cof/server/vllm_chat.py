"""A caller's own chat request on its way to vLLM: there with a highlight, and back with `cof`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from PIL.Image import Image
from starlette.types import Message, Receive, Scope, Send

from cof.engines.vllm.engine import highlight_args
from cof.errors import CofError
from cof.families.chat import adds_special_tokens
from cof.focuses import Attention, Contrast, Unchanged
from cof.images import data_url
from cof.messages import ROLES
from cof.pipeline import CoF, answer_of
from cof.query import Query, Sample
from cof.server.protocol import query_of
from cof.server.service import Service, address_in
from cof.server.vllm_worker import ServedWorker
from cof.settings import Settings
from cof.stages import Look
from cof.types import EncodedImage, Timings

_UNKNOWN = ("num_tokens", "answer_confidence")
"""What vLLM's own reply says of an answer."""

_PROCESSING = {"mm_processor_kwargs", "media_io_kwargs"}
"""Fields of vLLM's after which a region would lie elsewhere."""

_RANK = b"x-data-parallel-rank"


@dataclass(frozen=True)
class HighlightedChat:
    """A request that vLLM answers, once its image has been looked at.

    Attributes:
        fields: the request's, with `cof`; they are changed.
        query: what is looked for, its images not loaded yet.
        service: the server's.
    """

    fields: dict[str, Any]
    query: Query
    service: Service

    @classmethod
    def of(cls, fields: dict[str, Any], service: Service) -> HighlightedChat | None:
        """The chat; None if a highlight cannot say what its settings do.

        Raises:
            CofError: it cannot be looked at.
        """
        messages, cof = fields.get("messages"), fields["cof"]
        if not isinstance(cof, dict):
            raise CofError("cof: it is an object of settings, and may be empty.")
        if not isinstance(fields.get("vllm_xargs"), dict | None):
            raise CofError("vllm_xargs: it is an object.")
        if given := _PROCESSING & fields.keys():
            raise CofError(f"{given.pop()} changes what the model sees: leave it out, or cof.")
        query = query_of(_looked_at(messages), cof, service.settings, service.limits)
        settings = query.settings or service.settings
        return cls(fields, query, service) if _is_highlight(settings) else None

    async def look_first(
        self, until_answered: AsyncExitStack, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Scope, Receive, Send]:
        """Stage 1: how vLLM is to be called for stage 2.

        Args:
            until_answered: is closed after that call.
            scope, receive, send: how we were called; the body has been read.

        Raises:
            ApiError, CofError: there is no answer.
        """
        worker = self.service.worker
        assert isinstance(worker, ServedWorker)
        until_answered.enter_context(self.service.begun())
        cof, rank = until_answered.enter_context(worker.pipeline())
        start = time.perf_counter()
        work = self._look(worker, cof)
        sample, look, body = await self.service.in_time(Request(scope, receive), work)
        looked = time.perf_counter()

        def answer() -> dict[str, Any]:
            timings = Timings(looked - start, time.perf_counter() - looked)
            self.service.metrics.batch(1, timings)
            told = answer_of(sample, look, timings).as_dict()
            return {name: value for name, value in told.items() if name not in _UNKNOWN}

        sizes = [image.size for image in sample.request.images]
        about = {"cof": True, "stream": bool(self.fields.get("stream")), "images": sizes}
        headers = [pair for pair in scope["headers"] if pair[0] != _RANK or rank is None]
        headers += [] if rank is None else [(_RANK, str(rank).encode())]
        scope = {**scope, "headers": headers, "state": {**scope.get("state", {}), "about": about}}
        return scope, replay(body, receive), _WithCof(send, answer, self.fields.get("n") or 1)

    async def _look(self, worker: ServedWorker, cof: CoF) -> tuple[Sample, Look, bytes]:
        """The checked query, where to look, and the body for vLLM."""
        fields, service = self.fields, self.service
        seen: dict[int, dict[str, Any]] = {}  # by the part's id: with the image itself
        for part in parts_of(fields["messages"]):
            address = address_in(part)
            if address is None:
                continue
            data = await service.image_data(address)
            image = await worker.run(lambda data=data: _encode(worker, service, data))  # type: ignore[misc]
            if image.pixels.original_bytes is not data or address[:5].lower() != "data:":
                show_file(part, image.pixels.original_bytes)
            seen[id(part)] = {"type": "image", "image": image}
        messages = [
            {**message, "content": [seen.get(id(part), part) for part in message["content"]]}
            if isinstance(message.get("content"), list)
            else message
            for message in self.query.messages or ()
        ]
        query = replace(self.query, messages=messages)
        sample, look = await worker.run(lambda: cof.look_for(query))
        if len(sample.request.images) != len(seen):
            raise CofError("What tools return cannot hold images: send them in the user's turn.")
        return sample, look, await worker.run(lambda: self._body(worker, sample, look))

    def _body(self, worker: ServedWorker, sample: Sample, look: Look) -> bytes:
        """The request without `cof`, and with the highlight."""
        fields, engine, request = self.fields, worker.engine, sample.request
        del fields["cof"]
        first = request.chat[0]
        given = any(ROLES.get(each.get("role")) == "system" for each in fields["messages"])
        if first.role == "system" and not given:  # the settings' own
            fields["messages"].insert(0, {"role": "system", "content": first.parts[0]})
        special = adds_special_tokens(engine.processor, engine.chat.text(request))
        fields.setdefault("add_special_tokens", special)
        if look.region is not None:
            highlight = sample.settings.focus.apply(request, look.region).highlight
            if highlight is not None and highlight.strength != 1:
                size, number = request.pil_image.size, request.number
                args = highlight_args(engine.tokens, size, highlight, number)
                fields["vllm_xargs"] = {**(fields.get("vllm_xargs") or {}), **args}
        return json.dumps(fields).encode()


class _WithCof:
    """ASGI `send` that puts `cof` into vLLM's reply: into its JSON, or beside the last choice of a
    stream that ends."""

    def __init__(self, send: Send, cof: Callable[[], dict[str, Any]], choices: int) -> None:
        self._send, self._cof, self._left = send, cof, choices
        self._start: Message | None = None  # not sent yet
        self._stream = False
        self._held = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self._start = message
            self._stream = (b"content-type", b"text/event-stream") in [
                (name.lower(), value.split(b";")[0]) for name, value in message["headers"]
            ]
            if self._stream:
                await self._send(message)
        elif message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
        else:
            self._held += message.get("body", b"")
            more = message.get("more_body", False)
            if self._stream:
                events, end, self._held = self._held.rpartition(b"\n\n")
                body = b"\n\n".join(map(self._event, events.split(b"\n\n"))) + end
                await self._send({**message, "body": body if more else body + self._held})
            elif not more:
                body = json.dumps(json.loads(self._held) | {"cof": self._cof()}).encode()
                headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
                headers.append((b"content-length", str(len(body)).encode()))
                await self._send({**self._start, "headers": headers})
                await self._send({"type": "http.response.body", "body": body})

    def _event(self, event: bytes) -> bytes:
        if b'"finish_reason":"' not in event:  # quotes inside a text are escaped
            return event
        chunk = json.loads(event.removeprefix(b"data: "))
        self._left -= sum(choice["finish_reason"] is not None for choice in chunk["choices"])
        return (
            event if self._left else b"data: " + json.dumps(chunk | {"cof": self._cof()}).encode()
        )


def parts_of(messages: object) -> Iterator[Any]:
    """The parts of all messages, of whatever kind."""
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        yield from content if isinstance(content, list) else []


def show_file(part: dict[str, Any], file: bytes) -> None:
    """Put an image file into a part of a message, in the place of its address."""
    image = part["image_url"]
    part["image_url"] = {**(image if isinstance(image, dict) else {}), "url": data_url(file)}


def replay(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

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


def _is_highlight(settings: Settings) -> bool:
    """Whether stage 2 is one request for which a highlight is all that differs."""
    focus = settings.focus
    alone = len(settings.grounders) == 1 and settings.max_plain_confidence >= 1
    return alone and isinstance(focus, Attention | Unchanged) and not isinstance(focus, Contrast)


def _encode(worker: ServedWorker, service: Service, data: bytes) -> EncodedImage:
    image: Image = service.decode(data)
    return worker.engine.encode_file(image, data)
