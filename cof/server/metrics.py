"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cof.types import Timings

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server.

    Args:
        registry: where they are kept; None: in one of their own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        own = self._registry
        self.requests = Counter("cof_requests", "Requests", ["path", "status"], registry=own)
        self.errors = Counter("cof_errors", "Requests not answered", ["kind"], registry=own)
        self.seconds = _histogram("cof_request_seconds", "From a request's head to its end", own)
        self._ground = _histogram("cof_ground_seconds", "Encoding and stage 1, of a batch", own)
        self._answer = _histogram("cof_answer_seconds", "Stage 2, of a batch", own)
        self._batch = Histogram(
            "cof_batch_size", "Requests in a batch", buckets=_SIZES, registry=own
        )
        self.under_way = Gauge(
            "cof_under_way",
            "Chat requests that were begun",
            registry=own,
            multiprocess_mode="livesum",
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Show how many requests wait for the engine."""
        queue = Gauge(
            "cof_queue_length", "Requests that wait for the engine", registry=self._registry
        )
        queue.set_function(length)

    def batch(self, size: int, timings: Timings) -> None:
        """Count a batch that was answered."""
        self._batch.observe(size)
        self._ground.observe(timings.ground)
        self._answer.observe(timings.answer)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


def _histogram(name: str, help: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, help, buckets=_SECONDS, registry=registry)
