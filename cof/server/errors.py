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


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one sentence that says what to do.
        code: the kind of error, for programs and metrics.
    """

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
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
    if isinstance(error, ClientDisconnect):
        return ApiError(499, "The client has gone.", "client_gone")
    if isinstance(error, OutOfMemory):
        return ApiError(
            503, "The server is out of memory: ask again, or send a smaller image.", "out_of_memory"
        )
    if isinstance(error, asyncio.TimeoutError):
        return ApiError(504, "There was no answer in time: ask for less.", "timeout")
    if isinstance(error, TooLarge):
        return ApiError(413, str(error), "too_large")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}.", "no_such_route")
    if isinstance(error, RequestAborted):
        return ApiError(503, str(error), "stopping")
    if isinstance(error, CofError):
        return ApiError(400, str(error))
    _log.error("The engine failed.", exc_info=error)
    return ApiError(500, "The engine failed on this request.", "engine_failed")
