"""The server's routes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from cof.answer import Answer
from cof.errors import CofError, OutOfMemory
from cof.pipeline import CoF
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.images import Decoder, Fetcher, from_data
from cof.server.limits import Limits
from cof.server.logs import RequestLog
from cof.server.metrics import Metrics
from cof.server.protocol import Ask, completion, events, parse
from cof.server.worker import Worker
from cof.settings import Settings
from cof.types import Decoding

CLOSING_S = 30
"""How long the engine may go on with what waits when the server is stopped."""

_log = logging.getLogger(__name__)

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

    async def answer(self, request: Request) -> tuple[Ask, Answer]:
        """The request of an HTTP request, and its answer.

        Raises:
            ApiError, CofError: there is none.
        """
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
        answer = asyncio.wrap_future(self.worker.submit(query, ask.decoding))
        return ask, await _wait(request, answer)

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
    limits, metrics = limits or Limits(), Metrics()
    worker = Worker(cof, limits.max_batch, limits.max_queue, metrics)
    return service_app(Service(worker, cof.settings, model, metrics, limits, fetcher), api_key)


def service_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The ASGI application of a service."""
    model, limits = service.model, service.limits

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close, CLOSING_S)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLog, metrics=service.metrics)

    def refused(request: Request, error: Exception) -> JSONResponse:
        failure = as_api_error(error)
        request.state.about["error"] = failure.code
        service.metrics.errors.labels(failure.code).inc()
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
            with service.metrics.under_way.track_inprogress():
                ask, answer = await asyncio.wait_for(service.answer(request), limits.timeout_s)
        except asyncio.TimeoutError:
            raise ApiError(
                504, f"There was no answer in {limits.timeout_s:g} s: ask for less.", "timeout"
            ) from None
        except (ApiError, CofError):
            raise
        except Exception as error:
            _log.exception("A request failed.")
            raise ApiError(500, "The server failed on this request.", "fault") from error
        if ask.stream:
            return StreamingResponse(events(answer, ask, model), media_type="text/event-stream")
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


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfMemory):
        return ApiError(
            503, "The server is out of memory: ask again, or send a smaller image.", "out_of_memory"
        )
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}.", "no_such_route")
    return ApiError(400, str(error))


async def _wait(request: Request, answer: asyncio.Future[Answer]) -> Answer:
    """The answer; where the client has gone or the time is up, it leaves the queue."""
    gone = asyncio.ensure_future(request.receive())
    both: list[asyncio.Future[Any]] = [answer, gone]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ApiError(499, "The client has gone.", "client_gone")
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()
