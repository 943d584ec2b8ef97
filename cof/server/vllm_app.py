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
from prometheus_client import REGISTRY
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send

from cof.engines.vllm.clients import ServedClient
from cof.engines.vllm.engine import WORKER, VllmEngine, load_processor
from cof.images import check_image
from cof.limits import UPLOAD_FORMATS
from cof.presets import default_settings
from cof.server.errors import ApiError
from cof.server.images import Fetcher
from cof.server.limits import Limits
from cof.server.logs import RequestLog, start_logging
from cof.server.metrics import Metrics
from cof.server.service import Message, Service, read_body
from cof.server.vllm_chat import Looker, check_single, look_first, replay, show_file
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
            CofError: an unknown preset or setting, or one that vLLM cannot follow.
        """
        settings = default_settings(model, dialect, self.preset).changed(**self.settings)
        check_single(settings)
        return settings

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
        app.add_middleware(Gate)
        app.add_middleware(RequestLog, metrics=self._metrics)

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
        client = ServedClient(engine_client, asyncio.get_running_loop(), None)
        engine = VllmEngine(client, config, processor, name=args.model)
        settings = options.settings_for(engine.name, engine.dialect.name)
        fetcher = Fetcher(options.limits.max_image_bytes) if options.allow_url else None
        limits = options.limits
        service = Service(settings, self._metrics, limits, fetcher, most=limits.max_queue)
        state.cof = Looker(service, engine, engine_client)


class Gate:
    """ASGI middleware: requests go on to vLLM, those with `cof` after a look at their image. Bodies
    and images keep to our limits."""

    def __init__(self, app: ASGIApp) -> None:
        self._vllm = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and not path.startswith(OPEN):
            raise ApiError(404, "There is no such route here.", "no_such_route")
        async with AsyncExitStack() as until_answered:
            if scope.get("method") == "POST":
                looker: Looker = scope["app"].state.cof
                body = await read_body(Request(scope, receive), looker.service.limits)
                fields = await asyncio.to_thread(_parse, body) if path == CHAT else {}
                if fields.get("cof") is not None:
                    request = Request(scope, receive)
                    body, send = await look_first(looker, fields, until_answered, request, send)
                elif await _check_images(looker.service, fields):
                    body = json.dumps(fields).encode()
                receive = replay(body, receive)
            await self._vllm(scope, receive, send)


def _parse(body: bytes) -> dict[str, Any]:
    """The fields of a request; none where vLLM will refuse it."""
    try:
        fields = json.loads(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


async def _check_images(service: Service, fields: dict[str, Any]) -> bool:
    """Put the data of a plain request's images in the place of addresses, if there are any.

    Raises:
        ApiError, CofError: an image cannot be taken.
    """
    fetched = []

    async def load(part: Message, address: str, data: bytes) -> None:
        limit = service.limits.max_pixels
        await asyncio.to_thread(check_image, data, max_pixels=limit, formats=UPLOAD_FORMATS)
        if address[:5].lower() != "data:":
            show_file(part, data)
            fetched.append(address)

    await service.with_images(fields.get("messages"), load)
    return bool(fetched)
