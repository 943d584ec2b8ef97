"""What a server counts, for Prometheus."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cof.server.errors import ApiError, as_api_error
from cof.types import Timings

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server.

    Args:
        registry: where they are kept; None: one of their own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = own = registry or CollectorRegistry()
        seconds = partial(Histogram, buckets=_SECONDS, registry=own)
        self.requests = Counter("cof_requests", "Requests", ["path", "status"], registry=own)
        self.errors = Counter("cof_errors", "Requests not answered", ["kind"], registry=own)
        self.seconds = seconds("cof_request_seconds", "From a request's head to its end")
        self._ground = seconds("cof_ground_seconds", "Encoding and stage 1, of a batch")
        self._answer = seconds("cof_answer_seconds", "Stage 2, of a batch")
        self._batch = Histogram(
            "cof_batch_size", "Requests in a batch", buckets=_SIZES, registry=own
        )
        self.under_way = Gauge(
            "cof_under_way",
            "Chat requests that were begun",
            registry=own,
            multiprocess_mode="livesum",
        )

    def batch(self, size: int, timings: Timings) -> None:
        """Count a batch that was answered."""
        self._batch.observe(size)
        self._ground.observe(timings.ground)
        self._answer.observe(timings.answer)

    def failure(self, error: Exception, about: dict[str, Any]) -> ApiError:
        """Count an error; what a client is told of it. `about` is what its log line says."""
        told = as_api_error(error)
        about["error"] = told.code
        self.errors.labels(told.code).inc()
        return told
