"""Counters for Prometheus, and logs as one JSON object a line, without what was asked, shown or
answered."""

from __future__ import annotations

import json
import logging
import time
import traceback
import uuid
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cof.errors import TooLarge
from cof.limits import Limits
from cof.server.errors import ApiError, as_api_error
from cof.types import Timings

_log = logging.getLogger("cof.server")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


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
    own = logging.getLogger("transformers")  # which writes to stderr itself
    own.handlers, own.propagate = [], True


class Metrics:
    """The counters of one server, in a registry of their own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = own = registry or CollectorRegistry()
        seconds = partial(Histogram, buckets=_SECONDS, registry=own)
        self.requests = Counter("cof_requests", "Requests", ["path", "status"], registry=own)
        self.errors = Counter("cof_errors", "Requests not answered", ["kind"], registry=own)
        self.seconds = seconds("cof_request_seconds", "From a request's head to its end")
        self._ground = seconds("cof_ground_seconds", "Encoding and stage 1, of a batch")
        self._answer = seconds("cof_answer_seconds", "Stage 2, of a batch")
        about = ("cof_batch_size", "Requests in a batch")
        self._batch = Histogram(*about, buckets=_SIZES, registry=own)
        about = ("cof_under_way", "Chat requests that were begun")
        self.under_way = Gauge(*about, registry=own, multiprocess_mode="livesum")
        prefix = partial(Counter, labelnames=["stage"], registry=own)
        self._asked = prefix("cof_prefix_cache_queries", "Tokens of prompts with cof")
        self._found = prefix("cof_prefix_cache_hits", "Those found in the prefix cache")

    def batch(self, size: int, timings: Timings) -> None:
        """Count a batch that was answered."""
        self._batch.observe(size)
        self._ground.observe(timings.ground)
        self._answer.observe(timings.answer)

    def prompt(self, stage: str, asked: int, found: int) -> None:
        """Count a prompt's tokens, and those that were found in the prefix cache."""
        self._asked.labels(stage).inc(asked)
        self._found.labels(stage).inc(found)

    def failure(self, error: Exception, about: dict[str, Any]) -> ApiError:
        """Count an error; what a client is told of it. `about` is what its log line says."""
        told = as_api_error(error)
        about["error"] = told.code
        self.errors.labels(told.code).inc()
        return told


class RequestLog:
    """ASGI middleware: a line and a count for each request, a limit of its length, and a reply for
    each error.

    What a route puts into `scope["state"]["about"]` is in the line too.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, limits: Limits) -> None:
        self._app, self._metrics, self._longest = app, metrics, limits.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, length = time.perf_counter(), 0, 0
        about: dict[str, Any] = scope.setdefault("state", {}).setdefault("about", {})
        about["id"] = uuid.uuid4().hex[:12]

        async def receiving() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > self._longest:
                wrong = f"The request has more than {self._longest:,} bytes: send smaller images."
                raise TooLarge(wrong)
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", about["id"].encode())]
            await send(message)

        try:
            await self._app(scope, receiving, sending)
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
