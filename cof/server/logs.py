"""Logs as one JSON object a line, without what was asked, shown or answered."""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cof.server.metrics import Metrics

_log = logging.getLogger("cof.server")


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and the record's `fields`.

    An exception is told by its type and its frames, not by its message, which may quote a
    question.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


def start_logging() -> None:
    """Send the process's logs and warnings to stderr in JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it would log the images' addresses
    logging.captureWarnings(True)


class RequestLog:
    """ASGI middleware: a line and a count for each request, and a reply for each error.

    What a route puts into `scope["state"]["about"]` is in the line too.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        about: dict[str, Any] = scope.setdefault("state", {}).setdefault("about", {})
        about["id"] = uuid.uuid4().hex[:12]

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", about["id"].encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if status:
                raise
            failure = self._metrics.failure(error, about)
            reply = JSONResponse(failure.body, failure.status, failure.headers)
            await reply(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - start
            path = getattr(scope.get("route"), "path", "other")  # a stranger's paths are no labels
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.observe(seconds)
            about |= {"method": scope["method"], "path": path, "status": status}
            about["seconds"] = round(seconds, 4)
            quiet = path in ("/health", "/metrics")  # which are asked for every few seconds
            _log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": about})
