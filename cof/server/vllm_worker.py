"""What answers queries, or looks for their boxes, inside `vllm serve`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from vllm.exceptions import GracefulHTTPError

from cof.answer import Answer
from cof.engines.vllm.clients import RequestAborted, ServedClient
from cof.engines.vllm.engine import VllmEngine
from cof.pipeline import CoF
from cof.query import Query
from cof.server.errors import ApiError
from cof.server.limits import Limits
from cof.server.metrics import Metrics
from cof.settings import Settings
from cof.streaming import for_one
from cof.types import Decoding, Thought

Result = TypeVar("Result")


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
