"""The server's routes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from cof.answer import Answer
from cof.errors import CofError, OutOfMemory
from cof.pipeline import CoF
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.images import Decoder, Fetcher, from_data
from cof.server.limits import Limits
from cof.server.logs import RequestLog
from cof.server.metrics import Metrics
from cof.server.protocol import Ask, completion, event, events, parse
from cof.server.worker import Worker

CLOSING_S = 30
"""How long the engine may go on with what waits when the server is stopped."""

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Service:
    """What the routes share: the pipeline's worker, limits and counters."""

    def __init__(self, cof: CoF, model: str, limits: Limits, fetcher: Fetcher | None) -> None:
        self.model, self.limits = model, limits
        self.started = int(time.time())
        self.metrics = Metrics()
        self._settings = cof.settings
        self._fetcher = fetcher
        self._decode = Decoder(limits.max_pixels)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "cof-decode")
        self.worker = Worker(cof, limits.max_batch, limits.max_queue, self.metrics)

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
        loop = asyncio.get_running_loop()
        body = await self._body(request)
        ask = await loop.run_in_executor(
            self._threads, parse, body, self.model, self._settings, self.limits
        )
        del body
        images = []
        for address in ask.addresses:
            data = await self._data(address)
            images.append(await loop.run_in_executor(self._threads, self._decode, data))
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

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.max_body_bytes:
                raise ApiError(
                    413,
                    f"The request has more than {self.limits.max_body_bytes:,} bytes: send smaller "
                    "images.",
                    "too_large",
                )
        return bytes(body)

    async def _data(self, address: str) -> bytes:
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


def create_app(
    cof: CoF,
    model: str,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        cof: the pipeline; its worker thread is the only one to call it.
        model: the name that requests give.
        limits: None: the defaults.
        api_key: what requests under /v1 must bring as a bearer token; None: nothing.
        fetcher: fetches images from addresses; None: they are refused.
    """
    limits = limits or Limits()
    service = Service(cof, model, limits, fetcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close, CLOSING_S)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLog, metrics=service.metrics)

    def count(request: Request, error: Exception) -> ApiError:
        failure = _as_api_error(error)
        request.state.about["error"] = failure.code
        service.metrics.errors.labels(failure.code).inc()
        return failure

    def refused(request: Request, error: Exception) -> JSONResponse:
        failure = count(request, error)
        return JSONResponse(failure.body, failure.status, failure.headers)

    for kind in (ApiError, CofError, HTTPException):
        app.add_exception_handler(kind, refused)

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(
                401, "The API key is missing or wrong: send it as a bearer token.", "unauthorized"
            )

    @app.post("/v1/chat/completions", dependencies=[Depends(check_key)])
    async def chat(request: Request) -> Response:
        try:
            ask, updates = await service.answer(request)
        except (ApiError, CofError):
            raise
        except Exception as error:
            raise _as_api_error(error) from error

        async def stream() -> AsyncGenerator[str, None]:
            async with aclosing(updates):
                try:
                    async for content in events(updates, ask, model):
                        yield content
                except Exception as error:  # too late for a status
                    yield event(count(request, error).body)

        if ask.stream:
            return EventStream(stream())
        async with aclosing(updates):
            answer = await anext(updates)
        assert isinstance(answer, Answer)
        return JSONResponse(completion(answer, ask, model))

    @app.get("/v1/models", dependencies=[Depends(check_key)])
    async def models() -> dict[str, Any]:
        own = {"id": model, "object": "model", "created": service.started, "owned_by": "cof"}
        return {"object": "list", "data": [own]}

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


class EventStream(StreamingResponse):
    """Server-sent events. Where the client goes, their generator ends at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfMemory):
        return ApiError(
            503, "The server is out of memory: ask again, or send a smaller image.", "out_of_memory"
        )
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}.", "no_such_route")
    if isinstance(error, CofError):
        return ApiError(400, str(error))
    _log.error("A request failed.", exc_info=error)
    return ApiError(500, "The server failed on this request.", "fault")


async def _chain(
    first: Result, others: AsyncGenerator[Result, None]
) -> AsyncGenerator[Result, None]:
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
