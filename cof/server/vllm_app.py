"""What `vllm serve` loads of us (entry point `vllm.endpoint_plugins`): chat requests that hold
`cof` are looked at, and then answered by vLLM as all others."""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.exceptions import GracefulHTTPError

from cof.answer import Answer
from cof.engines.vllm.clients import RequestAborted, ServedClient
from cof.engines.vllm.engine import WORKER, VllmEngine, load_processor
from cof.images import check_image
from cof.limits import UPLOAD_FORMATS
from cof.pipeline import CoF
from cof.presets import default_settings
from cof.query import Query
from cof.server.app import service_app
from cof.server.errors import ApiError, as_api_error
from cof.server.images import Fetcher
from cof.server.limits import Limits
from cof.server.logs import RequestLog, start_logging
from cof.server.metrics import Metrics
from cof.server.service import Service, address_in, read_body
from cof.server.vllm_chat import HighlightedChat, parts_of, replay, show_file
from cof.settings import Settings
from cof.streaming import for_one
from cof.types import Decoding, Thought

Result = TypeVar("Result")

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


class ServedWorker:
    """Answers each query in a thread of its own; vLLM batches what they ask of it.

    Both stages of a query go to one data-parallel engine, the one with the fewest queries, so that
    the second finds the image's prefix in its cache.
    """

    def __init__(
        self,
        engine: VllmEngine,
        async_llm: Any,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.engine, self._async_llm, self._loop = engine, async_llm, loop
        self._settings, self.metrics = settings, metrics
        self._threads = ThreadPoolExecutor(limits.max_queue, "cof-answer")
        self._ranks = range(len(async_llm.engine_core.engine_ranks_managed))
        self._under_way: Counter[int] = Counter()  # by rank
        self._given: Counter[int] = Counter()
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it takes queries."""
        return not self._closed and not self._async_llm.errored

    async def answer(
        self, query: Query, decoding: Decoding, on_text: Callable[[str], object] | None = None
    ) -> Answer:
        """See `cof.server.service.Answerer`."""
        on_thought = on_text and (lambda piece: on_text(Thought(piece)))
        with self.pipeline() as (cof, _):
            ask = partial(
                cof.batch,
                [query],
                decoding=decoding,
                on_text=for_one(on_text),
                on_thought=for_one(on_thought),
            )
            (answer,) = await self.run(ask)
        self.metrics.batch(1, answer.timings)
        return answer

    @contextmanager
    def pipeline(self) -> Iterator[tuple[CoF, int | None]]:
        """A pipeline for one query, and the rank of the engine that it asks; None: there is one.
        What it asks is ended with it."""
        # of equals, each gets its turn
        rank = min(self._ranks, key=lambda each: (self._under_way[each], self._given[each]))
        chosen = rank if len(self._ranks) > 1 else None
        client = ServedClient(self._async_llm, self._loop, chosen)
        self._given[rank] += 1
        self._under_way[rank] += 1
        try:
            yield CoF(self.engine.with_client(client), self._settings), chosen
        finally:
            client.cancel()  # where nobody waits for it any more
            self._under_way[rank] -= 1

    async def run(self, work: Callable[[], Result]) -> Result:
        """What a pipeline's work in a thread gives.

        Raises:
            ApiError: vLLM is full or being stopped.
        """
        try:
            return await self._loop.run_in_executor(self._threads, work)
        except RequestAborted as error:
            raise ApiError(503, str(error), "stopping") from None
        except GracefulHTTPError:
            raise ApiError(503, "The engine is full: ask again in a moment.", "full") from None

    def token_text(self, token_id: int) -> str:
        """See `cof.server.service.Answerer`."""
        return str(self.engine.processor.tokenizer.decode([token_id]))

    def close(self, timeout_s: float) -> None:
        """Take no more; vLLM answers what it has begun, or not, by its `--shutdown-timeout`."""
        self._closed = True


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
