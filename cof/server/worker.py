"""One thread that owns the engine and answers together what arrives together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Gauge

from cof.answer import Answer, SentText
from cof.errors import CofError
from cof.pipeline import CoF
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.logs import Metrics
from cof.types import Decoding, Thought

WINDOW_S = 0.005
"""How long the first request of a batch waits for others."""


@dataclass(frozen=True, eq=False)
class Job:
    """A query, and where its answer is put, and its text before if somebody wants it."""

    query: Query
    decoding: Decoding
    text: SentText | None = None
    answer: Future[Answer] = field(default_factory=Future)


class Worker:
    """Answers queries in a thread of its own.

    A query that fails, whatever the reason, gets its exception; the others and the thread go on.
    """

    def __init__(self, cof: CoF, max_batch: int, metrics: Metrics) -> None:
        self._cof, self._max_batch, self._metrics = cof, max_batch, metrics
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: it is closed
        about = ("cof_queue_length", "Requests that wait for the engine")
        Gauge(*about, registry=metrics.registry).set_function(self._jobs.qsize)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="cof-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes queries."""
        return self._thread.is_alive() and not self._closed

    def submit(
        self, query: Query, decoding: Decoding, on_text: Callable[[str], object] | None = None
    ) -> Future[Answer]:
        """Put a query into the queue; cancel the future while it waits to take it out. `on_text`
        gets the answer's text, and as `Thought`s what comes before, in the worker's thread."""
        text = on_text and SentText(on_text, lambda piece: on_text(Thought(piece)))
        job = Job(query, decoding, text)
        self._jobs.put(job)
        return job.answer

    def token_text(self, token_id: int) -> str:
        """A token as text."""
        engine: Any = self._cof.engine
        return str(engine.processor.tokenizer.decode([token_id]))

    def close(self, timeout_s: float) -> None:
        """Answer what waits, and end the thread."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closed or not self._jobs.empty():
            groups: dict[object, list[Job]] = {}
            for job in self._collect():
                # one that samples from a seed is alone, so that it always draws the same
                alone = job.decoding.temperature > 0 and job.decoding.seed is not None
                if job.answer.set_running_or_notify_cancel():
                    groups.setdefault(job if alone else job.decoding, []).append(job)
            for group in groups.values():
                self._answer(group)

    def _collect(self) -> list[Job]:
        """The next jobs, waited for; those that come in the window of the first."""
        jobs, ends = [self._jobs.get()], time.monotonic() + WINDOW_S
        with suppress(queue.Empty):
            while None not in jobs and len(jobs) < self._max_batch:
                jobs.append(self._jobs.get(timeout=max(0.0, ends - time.monotonic())))
        return [job for job in jobs if job is not None]

    def _answer(self, jobs: list[Job]) -> None:
        """Answer jobs of one decoding together; if that fails, each half by itself."""
        texts = [job.text for job in jobs]
        for text in filter(None, texts):
            text.begin()

        def tell(place: int, piece: str) -> None:
            if (text := texts[place]) is not None:
                text.grow(piece)

        try:
            answers = self._cof.batch(
                [job.query for job in jobs],
                decoding=jobs[0].decoding,
                batch_size=len(jobs),
                on_text=tell if any(texts) else None,
                on_thought=lambda place, piece: tell(place, Thought(piece)),
            )
        except Exception as error:  # a fault in the engine as well
            middle = len(jobs) // 2
            if middle:
                self._answer(jobs[:middle])
                self._answer(jobs[middle:])
            else:
                jobs[0].answer.set_exception(error)
            return
        self._metrics.batch(len(jobs), answers[0].timings)
        for job, answer in zip(jobs, answers, strict=True):
            try:
                if job.text is not None:
                    job.text.finish(answer.text)
                job.answer.set_result(answer)
            except CofError as error:
                job.answer.set_exception(ApiError(500, str(error), "answer_changed"))
