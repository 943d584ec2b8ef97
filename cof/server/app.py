"""The server's routes, and how they are served."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from cof import __version__
from cof.answer import Answer
from cof.pipeline import CoF
from cof.server.errors import ApiError, as_api_error
from cof.server.images import Fetcher
from cof.server.limits import Limits
from cof.server.logs import RequestLog, start_logging
from cof.server.metrics import Metrics
from cof.server.protocol import completion, event, events, unknown_model
from cof.server.service import Service
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
        limits: None: the defaults.
        api_key: what requests under /v1 must bring as a bearer token; None: nothing.
        fetcher: fetches images from addresses; None: they are refused.
    """
    limits, metrics = limits or Limits(), Metrics()
    worker, most = Worker(cof, limits.max_batch, metrics), limits.max_queue + limits.max_batch
    service = Service(worker, cof.settings, model, metrics, limits, fetcher, most)
    return service_app(service, api_key)


def service_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The ASGI application of a service."""
    model = service.model

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close, CLOSING_S)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(RequestLog, metrics=service.metrics)

    def count(request: Request, error: Exception) -> ApiError:
        failure = as_api_error(error)
        request.state.about["error"] = failure.code
        service.metrics.errors.labels(failure.code).inc()
        return failure

    def refused(request: Request, error: Exception) -> JSONResponse:
        failure = count(request, error)
        return JSONResponse(failure.body, failure.status, failure.headers)

    for kind in (ApiError, HTTPException):
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
            ask, first, later = await service.answer(request)
        except Exception as error:
            raise as_api_error(error) from None

        async def stream() -> AsyncGenerator[str, None]:
            async with aclosing(later):
                try:
                    async for content in events(first, later, ask, model, service.tokens):
                        yield content
                except Exception as error:  # too late for a status
                    yield event(count(request, error).body)

        if isinstance(first, Answer) and not ask.stream:
            return JSONResponse(completion(first, ask, model, service.tokens))
        return StreamingResponse(stream(), media_type="text/event-stream")

    own = {"id": model, "object": "model", "created": service.started, "owned_by": "cof"}

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
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/version")  # vLLM's own tells vLLM's
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


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
