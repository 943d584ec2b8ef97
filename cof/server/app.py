"""The server's routes."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from cof.answer import Answer
from cof.errors import CofError
from cof.pipeline import CoF
from cof.server.errors import ApiError, as_api_error
from cof.server.images import Fetcher
from cof.server.limits import Limits
from cof.server.logs import RequestLog
from cof.server.metrics import Metrics
from cof.server.protocol import completion, event, events
from cof.server.service import Service
from cof.server.worker import Worker

CLOSING_S = 30
"""How long the engine may go on with what waits when the server is stopped."""


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
    model = service.model

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close, CLOSING_S)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLog, metrics=service.metrics)

    def count(request: Request, error: Exception) -> ApiError:
        failure = as_api_error(error)
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
            raise as_api_error(error) from error

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
