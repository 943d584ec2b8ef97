"""`vllm serve` with what `cof serve` was told, and what it then loads of us (entry point
`vllm.endpoint_plugins`): chat requests that hold `cof` are looked at, and then answered by vLLM as
all others."""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import REGISTRY
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm import plugins

from cof.engines.vllm.clients import ServedClient, while_running
from cof.engines.vllm.engine import WORKER, VllmEngine, load_processor, model_options
from cof.errors import CofError
from cof.families import family_of
from cof.images import open_checked
from cof.limits import UPLOAD_FORMATS, Limits
from cof.presets import default_settings
from cof.server.errors import ApiError
from cof.server.images import Fetcher
from cof.server.logs import Metrics, RequestLog, start_logging
from cof.server.service import Message, Service, unless_gone
from cof.server.vllm_chat import (
    Looker,
    after_looking,
    check_single,
    looking,
    replay,
    show_file,
)
from cof.settings import Settings
from cof.tiny import resolve_model

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
        limits = ServeOptions.from_environment().limits
        app.add_middleware(Gate)
        app.add_middleware(RequestLog, metrics=self._metrics, limits=limits)

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
        await state.cof.warm_up()
        engine_client.generate = after_looking(engine_client.generate)


class Gate:
    """ASGI middleware: requests go on to vLLM, those with `cof` after a look at their image. Bodies
    and images keep to our limits."""

    def __init__(self, app: ASGIApp) -> None:
        self._vllm = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._vllm(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not path.startswith(OPEN):
            raise ApiError(404, "There is no such route here.", "no_such_route")
        engine, stage_1 = scope["app"].state.engine_client, None
        with ExitStack() as until_answered:
            if scope["method"] == "POST" and path == CHAT:
                looker: Looker = scope["app"].state.cof
                request = Request(scope, receive)
                body = await request.body()
                fields = await asyncio.to_thread(_parse, body)
                if fields.get("cof") is not None:
                    body, stage_1, send = await looker.look_first(
                        fields, until_answered, request, send
                    )
                elif await _check_images(looker.service, fields):
                    body = json.dumps(fields).encode()
                receive = replay(body, receive, stage_1)
            looking.set(stage_1)
            work = while_running(engine, self._vllm(scope, receive, send))
            answering = asyncio.ensure_future(work)
            until_answered.callback(answering.cancel)
            if stage_1 is not None:
                await asyncio.gather(unless_gone(request, stage_1), answering)
            await answering


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
        await asyncio.to_thread(open_checked, data, False, limit, UPLOAD_FORMATS)
        if address[:5].lower() != "data:":
            show_file(part, data)
            fetched.append(address)

    await service.with_images(fields.get("messages"), load)
    return bool(fetched)


FLAGS = {
    "logging_config.formatter": "json",
    "disable_uvicorn_access_log": True,  # we write one line for each request
    "disable_fastapi_docs": True,
    "enable_prompt_tokens_details": True,  # of which some are found in the prefix cache
    "shutdown_timeout": 30,  # seconds to answer what was begun
    "allowed_media_domains": "none.invalid",  # vLLM itself fetches nothing
}
"""Options of `vllm serve` that are the same for all models."""


def run_vllm(
    model: str,
    served_name: str,
    options: ServeOptions,
    *,
    api_key: str | None,
    flags: Mapping[str, Any],
    more: Sequence[str] = (),
) -> None:
    """Serve until a signal ends it.

    Args:
        model: hub id or path.
        served_name: the name that requests give.
        options: those of ours.
        api_key: what requests must bring.
        flags: of `vllm serve`, by name; those that are None are left out.
        more: what else `vllm serve` takes, over the others.

    Raises:
        CofError: vLLM would not find our plugin, the model is not supported, a setting is unknown,
            or vLLM does not start.
    """
    model = str(resolve_model(model))
    if Plugin.name not in entry_points(group=plugins.ENDPOINT_PLUGINS_GROUP).names:
        raise CofError(  # vLLM would answer as if nobody had asked to look closer
            f"This installation of cof has no {plugins.ENDPOINT_PLUGINS_GROUP}: install it again, "
            "in a clone by pip install -e '.[vllm,serve]'."
        )
    options.settings_for(model)  # checked before minutes are spent on loading a model
    config, processor = load_processor(model, options.pad_to_square)
    os.environ |= {
        ServeOptions.VARIABLE: TypeAdapter(ServeOptions).dump_json(options).decode(),
        "VLLM_PLUGINS": ",".join(filter(None, [os.environ.get("VLLM_PLUGINS"), Plugin.name])),
        **({"VLLM_API_KEY": api_key} if api_key else {}),  # not in the arguments, which are logged
    }
    named = [word[2:].partition("=")[0].replace("-", "_") for word in more if word[:2] == "--"]
    own = model_options(config, processor, [*named, *flags])
    given = {"served_model_name": served_name, **FLAGS, **own, **flags}
    if not getattr(processor, "chat_template", None):
        given["chat_template"] = family_of(config).chat_template or None
    _serve(["serve", model, *arguments(given), *more])


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """As on a command line.

    >>> arguments({"port": 80, "enforce_eager": True, "limit_mm_per_prompt": {"image": 2}})
    ['--port', '80', '--enforce-eager', '--limit-mm-per-prompt', '{"image": 2}']
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is not None:
            words.append("--" + name.replace("_", "-"))
        if value is not None and value is not True:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


def _serve(words: list[str]) -> None:
    """What the command `vllm` does."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    parser, command = FlexibleArgumentParser(prog="vllm"), ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(words)
    configure_logging_from_args(args)
    try:
        command.validate(args)
        command.cmd(args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise CofError(f"vllm serve has ended; the log above says why: {error}") from error
