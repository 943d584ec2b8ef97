"""From an HTTP request to a query, and back to the pieces of its answer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi import Request

from cof.answer import Answer
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.images import Decoder, Fetcher, from_data
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
        ...

    def submit(
        self,
        query: Query,
        decoding: Decoding,
        on_text: Callable[[str], object] | None = None,
    ) -> Future[Answer]:
        """Ask; cancel the future where nobody waits for the answer any more.

        Args:
            on_text: gets the answer's text piece by piece, in another thread.

        Raises:
            ApiError: it takes no more.
        """
        ...

    def close(self, timeout_s: float) -> None:
        """Answer what was asked, and take no more."""
        ...


class Service:
    """What the routes share.

    Args:
        worker: answers queries.
        settings: those that requests change.
        model: the name that requests give.
        metrics: the counters.
        limits: beyond them a request is refused.
        fetcher: fetches images from addresses; None: they are refused.
    """

    def __init__(
        self,
        worker: Answerer,
        settings: Settings,
        model: str,
        metrics: Metrics,
        limits: Limits,
        fetcher: Fetcher | None,
    ) -> None:
        self.worker, self.model, self.metrics, self.limits = worker, model, metrics, limits
        self.started = int(time.time())
        self._settings = settings
        self._fetcher = fetcher
        self._decode = Decoder(limits.max_pixels)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "cof-decode")

    async def answer(self, request: Request) -> tuple[Ask, AsyncGenerator[str | Answer, None]]:
        """The request of an HTTP request, and what comes of it: the pieces of the text as they are
        decoded, if it is to be streamed, and the answer. The first of them is there.

        Raises:
            ApiError, CofError: there is no answer.
        """
        ends = asyncio.get_running_loop().time() + self.limits.timeout_s
        try:
            ask, query = await asyncio.wait_for(self._read(request), self.limits.timeout_s)
        except asyncio.TimeoutError:
            raise self._late from None
        updates = self._updates(query, ask, ends)
        first = await _unless_gone(request, anext(updates))
        return ask, _chain(first, updates)

    async def _read(self, request: Request) -> tuple[Ask, Query]:
        body = await read_body(request, self.limits)
        ask = await self.in_thread(parse, body, self.model, self._settings, self.limits)
        del body
        images = []
        for address in ask.addresses:
            data = await self.image_data(address)
            images.append(await self.in_thread(self._decode, data))
        request.state.about.update(
            cof=ask.with_cof, stream=ask.stream, images=[image.size for image in images]
        )
        query = Query(
            images[0],
            ask.question,
            settings=ask.settings,
            beside=images[1] if len(images) > 1 else None,
            **ask.region,
        )
        return ask, query

    async def _updates(
        self, query: Query, ask: Ask, ends: float
    ) -> AsyncGenerator[str | Answer, None]:
        """What comes from the worker's thread until the loop's time `ends`. Closed before the
        answer, it takes the query out of the queue."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()

        def tell(piece: str) -> None:
            with suppress(RuntimeError):  # the loop has ended, and its clients with it
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        def end(answer: asyncio.Future[Answer]) -> None:
            if not answer.cancelled():
                arrived.put_nowait(answer.exception() or answer.result())

        with self.metrics.under_way.track_inprogress():
            on_text = tell if ask.stream else None
            answer = asyncio.wrap_future(self.worker.submit(query, ask.decoding, on_text))
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

    @property
    def _late(self) -> ApiError:
        return ApiError(
            504, f"There was no answer in {self.limits.timeout_s:g} s: ask for less.", "timeout"
        )

    async def in_thread(self, work: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """The result of work that would hold up the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args, **options))

    async def image_data(self, address: str) -> bytes:
        """The bytes of an image; no path is ever opened."""
        if address[:5].lower() == "data:":
            return from_data(address, self.limits.max_image_bytes)
        if not address.lower().startswith(("http://", "https://")):
            raise ApiError(400, "image_url takes a data: URL with the image in base64.")
        if self._fetcher is None:
            raise ApiError(
                400,
                "This server fetches no addresses: send the image as a data: URL, or start it with "
                "--allow-url.",
            )
        return await self._fetcher.fetch(address)


async def read_body(request: Request, limits: Limits) -> bytes:
    """
    Raises:
        ApiError: it is too long.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.max_body_bytes:
            raise ApiError(
                413,
                f"The request has more than {limits.max_body_bytes:,} bytes: send smaller images.",
                "too_large",
            )
    return bytes(body)


async def _chain(
    first: Result, others: AsyncGenerator[Result, None]
) -> AsyncGenerator[Result, None]:
    """What has come already, and what comes after it."""
    async with aclosing(others):
        yield first
        async for other in others:
            yield other


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
