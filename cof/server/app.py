"""The server's routes, and how they are served."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL.Image import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from cof import __version__
from cof.answer import Answer
from cof.limits import Limits
from cof.pipeline import CoF
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.images import Fetcher
from cof.server.logs import Metrics, RequestLog, start_logging
from cof.server.protocol import Ask, completion, event, events, query_of, unknown_model
from cof.server.service import Message, Service, unless_gone
from cof.server.worker import Worker

CLOSING_S = 30
"""How long the engine may go on with what waits when the server is stopped."""

CONNECTIONS = 512
"""The most at a time; beyond it uvicorn answers 503."""


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
        api_key: what requests under /v1 must bring as a bearer token; None: nothing.
        fetcher: fetches images from addresses; None: they are refused.
    """
    limits, metrics = limits or Limits(), Metrics()
    worker = Worker(cof, limits.max_batch, metrics)
    service = Service(
        cof.settings, metrics, limits, fetcher, most=limits.max_queue + limits.max_batch
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close, CLOSING_S)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLog, metrics=metrics, limits=limits)

    @app.exception_handler(HTTPException)
    async def pass_on(request: Request, error: HTTPException) -> Response:
        raise error  # RequestLog answers all errors

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
            message = "The API key is missing or wrong: send it as a bearer token."
            raise ApiError(401, message, "unauthorized")

    @app.post("/v1/chat/completions", dependencies=[Depends(check_key)])
    async def chat(request: Request) -> Response:
        ends = asyncio.get_running_loop().time() + limits.timeout_s
        ask, query = await asyncio.wait_for(read_ask(request, model, service), limits.timeout_s)
        later = updates(ask, query, ends, service, worker)
        first = await unless_gone(request, anext(later))

        async def stream() -> AsyncGenerator[str, None]:
            async with aclosing(later):
                try:
                    async for content in events(first, later, ask, worker.token_text):
                        yield content
                except Exception as error:  # too late for a status
                    yield event(metrics.failure(error, request.state.about).body)

        if isinstance(first, Answer) and not ask.stream:
            return JSONResponse(completion(first, ask, worker.token_text))
        return StreamingResponse(stream(), media_type="text/event-stream")

    own = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "cof"}

    @app.get("/v1/models", dependencies=[Depends(check_key)])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [own]}

    @app.get("/v1/models/{name:path}", dependencies=[Depends(check_key)])
    async def one_model(name: str) -> dict[str, Any]:
        if name != model:
            raise unknown_model(name, model)
        return own

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/version")  # vLLM's own tells vLLM's
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def counters() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def read_ask(request: Request, model: str, service: Service) -> tuple[Ask, Query]:
    """What an HTTP request asks; the query has its images loaded.

    Raises:
        ApiError, CofError: it cannot be answered.
    """
    ask = await asyncio.to_thread(Ask.read, await request.body(), model, service.limits)
    query = query_of(ask.messages, ask.cof, service.settings, service.limits)
    images: list[Image] = []

    async def load(part: Message, address: str, data: bytes) -> Image:
        images.append(await asyncio.to_thread(service.decode, data))
        return images[-1]

    messages = await service.with_images(ask.messages, load)
    ask.messages.clear()  # megabytes of base64
    request.state.about |= {
        "cof": ask.cof is not None,
        "stream": ask.stream,
        "images": [image.size for image in images],
    }
    return ask, replace(query, messages=messages)


async def updates(
    ask: Ask, query: Query, ends: float, service: Service, worker: Worker
) -> AsyncGenerator[str | Answer, None]:
    """What comes from the worker's thread until the loop's time `ends`: the pieces of the text as
    they are decoded, if it is to be streamed, and then the answer. Closed before the answer, it
    takes the query out of the queue.

    Raises:
        ApiError, CofError, TimeoutError: there is no answer.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[str | Future[Answer]] = asyncio.Queue()

    def tell(update: str | Future[Answer]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and its clients with it
            loop.call_soon_threadsafe(arrived.put_nowait, update)

    if not worker.alive:
        raise ApiError(503, "The server is being stopped: ask again in a moment.", "stopping")
    with service.begun():
        answer = worker.submit(query, ask.decoding, tell if ask.stream else None)
        answer.add_done_callback(tell)
        try:
            while isinstance(
                update := await asyncio.wait_for(arrived.get(), ends - loop.time()), str
            ):
                yield update
        finally:
            answer.cancel()
    yield update.result()


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, and then answer what was asked before."""
    start_logging()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=60,
    )
