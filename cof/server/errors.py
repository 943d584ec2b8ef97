"""Requests that are not answered, in OpenAI's format."""

from __future__ import annotations

from typing import Any

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
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": None,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, or how to log in."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
