"""From an HTTP request to a query, and back to the pieces of its answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from fastapi import Request
from PIL.Image import Image

from cof.answer import Answer
from cof.errors import CofError, TooLarge
from cof.images import load_image
from cof.limits import UPLOAD_FORMATS
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.images import Fetcher, from_data
from cof.server.limits import Limits
from cof.server.metrics import Metrics
from cof.server.protocol import Ask, parse
from cof.settings import Settings
from cof.types import Decoding

Result = TypeVar("Result")


class Answerer(Protocol):
    """What answers queries, in threads of its own."""

    @property
    def alive(self) -> bool:
        """Whether it takes queries."""

    def answer(
        self, query: Query, decoding: Decoding, on_text: Callable[[str], object] | None = None
    ) -> Coroutine[Any, Any, Answer]:
        """The answer; it is worked on until it is there or this is cancelled.

        Args:
            on_text: gets the answer's text piece by piece, in another thread; what the model thinks
                before comes as `Thought`s.
        """

    def token_text(self, token_id: int) -> str:
        """A token as text."""

    def close(self, timeout_s: float) -> None:
        """Answer what was asked, and take no more."""


class Service:
    """What the routes share.

    Args:
        worker: answers queries.
        settings: those that requests change.
        model: the name that requests give.
        metrics: the counters.
        limits: beyond them a request is refused.
        fetcher: fetches images from addresses; None: they are refused.
        most: how many requests may be under way.
    """

    def __init__(
        self,
        worker: Answerer,
        settings: Settings,
        model: str,
        metrics: Metrics,
        limits: Limits,
        fetcher: Fetcher | None,
        most: int,
    ) -> None:
        self.worker, self.model, self.metrics, self.limits = worker, model, metrics, limits
        self.started = int(time.time())
        self.settings = settings
        self._fetcher, self._most, self._under_way = fetcher, most, 0
        self._decoded: WeakValueDictionary[bytes, Image] = WeakValueDictionary()

    async def answer(
        self, request: Request
    ) -> tuple[Ask, str | Answer, AsyncGenerator[str | Answer, None]]:
        """The request of an HTTP request, what comes of it first, and what comes later: the pieces
        of the text as they are decoded, if it is to be streamed, and then the answer.

        Raises:
            ApiError, CofError: there is no answer.
        """
        ends = asyncio.get_running_loop().time() + self.limits.timeout_s
        try:
            ask = await asyncio.wait_for(self._read(request), self.limits.timeout_s)
        except asyncio.TimeoutError:
            raise self._late from None
        updates = self._updates(ask, ends)
        return ask, await _unless_gone(request, anext(updates)), updates

    async def _read(self, request: Request) -> Ask:
        body = await read_body(request, self.limits)
        ask = await asyncio.to_thread(parse, body, self.model, self.settings, self.limits)
        del body
        images: list[Image] = []
        messages = [{**message} for message in ask.query.messages or ()]
        for message in messages:
            if isinstance(message.get("content"), list):
                message["content"] = [await self._with_image(p, images) for p in message["content"]]
        request.state.about.update(
            cof=ask.with_cof, stream=ask.stream, images=[image.size for image in images]
        )
        return replace(ask, query=replace(ask.query, messages=messages))

    async def _with_image(self, part: Any, images: list[Image]) -> Any:
        """A part of a message with the image of its address, which is added to `images`.

        Raises:
            CofError: it is neither text nor such an image; what `cof.messages` reads besides may
                name a file.
        """
        if not isinstance(part, dict) or part.get("type") == "text":
            return part
        address = address_in(part)
        if address is None:
            raise CofError("A message holds parts of the type text, or image_url with the image.")
        data = await self.image_data(address)
        images.append(await asyncio.to_thread(self.decode, data))
        return {"type": "image", "image": images[-1]}

    def tokens(self, answer: Answer) -> list[dict[str, Any]]:
        """The tokens of an answer with their log-probabilities, in OpenAI's format."""
        texts = [self.worker.token_text(token) for token in answer.token_ids]
        return [
            {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, logprob in zip(texts, answer.logprobs, strict=True)
        ]

    def decode(self, data: bytes) -> Image:
        """The image in these bytes; equal data that are still in use give the same one, so that it
        is encoded once in a batch."""
        key = hashlib.sha256(data).digest()
        image = self._decoded.get(key)
        if image is None:
            image = load_image(data, max_pixels=self.limits.max_pixels, formats=UPLOAD_FORMATS)
            self._decoded[key] = image
        return image

    async def _updates(self, ask: Ask, ends: float) -> AsyncGenerator[str | Answer, None]:
        """What comes from the worker's thread until the loop's time `ends`. Closed before the
        answer, it takes the query out of the queue."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()

        def tell(piece: str) -> None:
            with suppress(RuntimeError):  # the loop has ended, and its clients with it
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        def end(answer: asyncio.Task[Answer]) -> None:
            if not answer.cancelled():
                arrived.put_nowait(answer.exception() or answer.result())

        with self.begun():
            on_text = tell if ask.stream else None
            answer = asyncio.create_task(self.worker.answer(ask.query, ask.decoding, on_text))
            answer.add_done_callback(end)
            timer = loop.call_at(ends, arrived.put_nowait, self._late)
            try:
                while isinstance(update := await arrived.get(), str):
                    yield update
            finally:
                timer.cancel()
                answer.cancel()
        if isinstance(update, BaseException):
            raise update
        yield update

    @contextmanager
    def begun(self) -> Iterator[None]:
        """While a request is under way.

        Raises:
            ApiError: it is one too many.
        """
        if not self.worker.alive:
            raise ApiError(503, "The server is being stopped: ask again in a moment.", "stopping")
        if self._under_way >= self._most:
            raise ApiError(
                429, "Too many requests are waiting: ask again in a moment.", "queue_full"
            )
        self._under_way += 1
        try:
            with self.metrics.under_way.track_inprogress():
                yield
        finally:
            self._under_way -= 1

    async def in_time(self, request: Request, work: Coroutine[Any, Any, Result]) -> Result:
        """What this work gives, while the client waits for it.

        Raises:
            ApiError: the client has gone, or it takes too long.
        """
        try:
            return await _unless_gone(request, asyncio.wait_for(work, self.limits.timeout_s))
        except asyncio.TimeoutError:
            raise self._late from None

    @property
    def _late(self) -> ApiError:
        return ApiError(
            504, f"There was no answer in {self.limits.timeout_s:g} s: ask for less.", "timeout"
        )

    async def image_data(self, address: str) -> bytes:
        """The bytes of an image; no path is ever opened."""
        if address[:5].lower() == "data:":
            return from_data(address, self.limits.max_image_bytes)
        if not address.lower().startswith(("http://", "https://")):
            raise CofError("image_url takes a data: URL with the image in base64.")
        if self._fetcher is None:
            raise CofError(
                "This server fetches no addresses: send the image as a data: URL, or start it with "
                "--allow-url."
            )
        return await self._fetcher.fetch(address)


def address_in(part: object) -> str | None:
    """The address of an image in a part of a message."""
    given = part.get("image_url") if isinstance(part, dict) else None
    if given is None:
        return None
    return str(given.get("url") if isinstance(given, dict) else given)


async def read_body(request: Request, limits: Limits) -> bytes:
    """
    Raises:
        TooLarge: it is too long.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.max_body_bytes:
            raise TooLarge(
                f"The request has more than {limits.max_body_bytes:,} bytes: send smaller images."
            )
    return bytes(body)


async def _unless_gone(request: Request, result: Awaitable[Result]) -> Result:
    """A result, which is waited for while the client does so too.

    Raises:
        ApiError: the client has gone.
    """
    gone, waiting = asyncio.ensure_future(request.receive()), asyncio.ensure_future(result)
    try:
        await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError(499, "The client has gone.", "client_gone")
        return waiting.result()
    finally:
        gone.cancel()
        waiting.cancel()
