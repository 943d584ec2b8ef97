"""Requests that are not answered, in OpenAI's format."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cof.engines.vllm.clients import RequestAborted
from cof.errors import CofError, OutOfMemory, TooLarge

_log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}

_MEMORY = "The server is out of memory: ask again, or send a smaller image."
_KNOWN: tuple[tuple[type[Exception], int, str, str], ...] = (
    (ClientDisconnect, 499, "The client has gone.", "client_gone"),
    (OutOfMemory, 503, _MEMORY, "out_of_memory"),
    (asyncio.TimeoutError, 504, "There was no answer in time: ask for less.", "timeout"),
    (TooLarge, 413, "", "too_large"),
    (RequestAborted, 503, "", "stopping"),
    (CofError, 400, "", "invalid_request"),
)
"""Errors with their status, message (empty: their own) and code; the first that fits counts."""


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one sentence that says what to do.
        code: the kind of error, for programs and metrics.
    """

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
        if len(message) > 1000:  # it repeats what a client sent
            message = f"{message[:500]}...{message[-300:]}"
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's server would say it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": _TYPES.get(self.status, kind)}
        return {"error": {**error, "param": None, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, or how to log in."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}.", "no_such_route")
    for kind, status, message, code in _KNOWN:
        if isinstance(error, kind):
            return ApiError(status, message or str(error), code)
    _log.error("The engine failed.", exc_info=error)
    return ApiError(500, "The engine failed on this request.", "engine_failed")
