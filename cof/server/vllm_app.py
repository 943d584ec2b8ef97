"""What `vllm serve` loads of us (entry point `vllm.endpoint_plugins`): chat requests that hold
`cof` are looked at, and then answered by vLLM as all others."""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send

from cof.engines.vllm.clients import ServedClient
from cof.engines.vllm.engine import WORKER, VllmEngine, load_processor
from cof.images import check_image
from cof.limits import UPLOAD_FORMATS
from cof.presets import default_settings
from cof.server.app import service_app
from cof.server.errors import ApiError, as_api_error
from cof.server.images import Fetcher
from cof.server.limits import Limits
from cof.server.logs import RequestLog, start_logging
from cof.server.metrics import Metrics
from cof.server.service import Service, address_in, read_body
from cof.server.vllm_chat import HighlightedChat, parts_of, replay, show_file
from cof.server.vllm_worker import ServedWorker
from cof.settings import Settings

CHAT = "/v1/chat/completions"
OPEN = ("/v1/", "/health", "/ping", "/version", "/load", "/metrics")
"""What begins otherwise is not served: vLLM's `--api-key` does not guard it."""


@dataclass(frozen=True)
class ServeOptions:
    """What `cof serve` tells the plugin, by a variable of the environment.

    Attributes:
        preset, settings: see `CoF.from_pretrained`.
        limits: see `Limits`; `max_batch` and `max_queue` are vLLM's and the threads' here.
        allow_url: whether images are fetched from public addresses.
        pad_to_square: see `CoF.from_pretrained`.
    """

    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    allow_url: bool = False
    pad_to_square: bool | None = None

    VARIABLE = "COF_SERVE"

    def settings_for(self, model: str, dialect: str = "") -> Settings:
        """The settings that requests change.

        Raises:
            CofError: an unknown preset or setting.
        """
        return default_settings(model, dialect, self.preset).changed(**self.settings)

    @classmethod
    def from_environment(cls) -> ServeOptions:
        """Those that `cof serve` has set; without it, the defaults."""
        return TypeAdapter(cls).validate_json(os.environ.get(cls.VARIABLE, "{}"))


class Plugin:
    """Implements vLLM's `EndpointPlugin`."""

    name = "cof"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._metrics = Metrics(REGISTRY)  # which vLLM's /metrics shows

    def attach_router(self, app: FastAPI) -> None:
        """Put ourselves before the routes, and behind vLLM's check of the API key."""
        start_logging()
        app.add_middleware(Gate, metrics=self._metrics)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """
        Raises:
            CofError, RuntimeError: the engine cannot look closer.
        """
        if args.worker_cls != WORKER:
            raise RuntimeError(
                f"cof: start it with cof serve --engine vllm, or --worker-cls {WORKER}."
            )
        options = ServeOptions.from_environment()
        config, processor = await asyncio.to_thread(
            load_processor, args.model, options.pad_to_square
        )
        loop = asyncio.get_running_loop()
        engine = VllmEngine(
            ServedClient(engine_client, loop, None), config, processor, name=args.model
        )
        settings = options.settings_for(engine.name, engine.dialect.name)
        worker = ServedWorker(engine, engine_client, loop, settings, options.limits, self._metrics)
        model = args.served_model_name[0] if args.served_model_name else args.model
        fetcher = Fetcher(options.limits.max_image_bytes) if options.allow_url else None
        most = options.limits.max_queue
        state.cof = service_app(
            Service(worker, settings, model, self._metrics, options.limits, fetcher, most)
        )


class Gate:
    """ASGI middleware: requests go on to vLLM, those with `cof` after a look at their image
    (`HighlightedChat`). What a highlight cannot say, our own application answers.

    Bodies and images keep to our limits wherever they go.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._vllm: ASGIApp = RequestLog(app, metrics)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        app, passed = self._vllm, (scope, receive, send)
        async with AsyncExitStack() as until_answered:
            try:
                if scope["type"] == "http" and not path.startswith(OPEN):
                    raise ApiError(404, "There is no such route here.", "no_such_route")
                if scope.get("method") == "POST":
                    ours: FastAPI = scope["app"].state.cof
                    service: Service = ours.state.service
                    body = await read_body(Request(scope, receive), service.limits)
                    fields = await asyncio.to_thread(_parse, body) if path == CHAT else {}
                    passed = scope, replay(body, receive), send
                    if fields.get("cof") is None:
                        body = await _check_images(service, fields, body)
                        passed = scope, replay(body, receive), send
                    elif (chat := HighlightedChat.of(fields, service)) is None:
                        app = ours
                    else:
                        passed = await chat.look_first(until_answered, scope, receive, send)
            except Exception as error:
                failure = as_api_error(error)
                self._metrics.errors.labels(failure.code).inc()
                reply = JSONResponse(failure.body, failure.status, failure.headers)
                app, passed = RequestLog(reply, self._metrics), (scope, receive, send)
            await app(*passed)


def _parse(body: bytes) -> dict[str, Any]:
    """The fields of a request; none where vLLM will refuse it."""
    try:
        fields = json.loads(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


async def _check_images(service: Service, fields: dict[str, Any], body: bytes) -> bytes:
    """A plain request's body, with the data of the images that it gives addresses of.

    Raises:
        ApiError, CofError: an image cannot be taken.
    """
    changed = False
    for part in parts_of(fields.get("messages")):
        address = address_in(part)
        if address is None:
            continue
        data = await service.image_data(address)
        limit = service.limits.max_pixels
        await asyncio.to_thread(check_image, data, max_pixels=limit, formats=UPLOAD_FORMATS)
        if address[:5].lower() != "data:":
            show_file(part, data)
            changed = True
    return json.dumps(fields).encode() if changed else body
