"""How a served engine is asked from threads, with a stand-in for vLLM's `AsyncLLM`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version")

from vllm import SamplingParams

from cof.engines.vllm.clients import RequestAborted, ServedClient


class Engine:
    """Answers `word` with its letters, one a step; `wait` never."""

    model_config = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended: Future[None] = Future()
        self.output_handler = asyncio.run_coroutine_threadsafe(self._handle(), loop).result()
        self.asked = threading.Event()
        self.ranks: list[int | None] = []
        self.aborted: list[str] = []

    async def _handle(self) -> asyncio.Future[None]:
        return asyncio.ensure_future(asyncio.wrap_future(self.ended))

    async def generate(
        self, prompt: str, params: Any, request_id: str, *, data_parallel_rank: int | None
    ) -> AsyncIterator[Any]:
        self.ranks.append(data_parallel_rank)
        self.asked.set()
        try:
            if prompt == "wait":
                await asyncio.sleep(3600)
            if prompt == "fail":
                raise ValueError("too long")
            for step in range(1, len(prompt) + 1):
                reason = None if step < len(prompt) else "abort" if prompt == "late" else "stop"
                output = SimpleNamespace(token_ids=list(prompt[:step]), finish_reason=reason)
                yield SimpleNamespace(outputs=[output])
        except asyncio.CancelledError:
            self.aborted.append(prompt)
            raise


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


@pytest.fixture
def engine(loop: asyncio.AbstractEventLoop) -> Iterator[Engine]:
    made = Engine(loop)
    yield made
    if not made.ended.done():
        made.ended.set_result(None)


def ask(client: ServedClient, *prompts: str, **options: Any) -> list[Any]:
    return client.run(prompts, [SamplingParams() for _ in prompts], **options)


def test_replies_come_in_order_and_step_by_step(
    engine: Engine, loop: asyncio.AbstractEventLoop
) -> None:
    client, steps = ServedClient(engine, loop, 3), []
    outputs = ask(
        client, "ab", "c", on_output=lambda place, got: steps.append((place, len(got.token_ids)))
    )
    assert ["".join(output.token_ids) for output in outputs] == ["ab", "c"]
    assert sorted(steps) == [(0, 1), (0, 2), (1, 1)]
    assert engine.ranks == [3, 3]


def test_one_that_is_refused_ends_the_others(
    engine: Engine, loop: asyncio.AbstractEventLoop
) -> None:
    with pytest.raises(ValueError, match="too long"):
        ask(ServedClient(engine, loop, None), "wait", "fail")
    assert [output.token_ids for output in ask(ServedClient(engine, loop, None), "a")] == [["a"]]
    assert engine.aborted == ["wait"]


def test_cancelling(engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
    client = ServedClient(engine, loop, None)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, "wait")
        assert engine.asked.wait(10)
        client.cancel()
        with pytest.raises(RequestAborted):
            asked.result(10)
    with pytest.raises(RequestAborted):  # nor the second stage
        ask(client, "a")
    assert [output.token_ids for output in ask(ServedClient(engine, loop, None), "b")] == [["b"]]
    assert engine.aborted[:1] == ["wait"]


def test_an_engine_that_ends(engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(RequestAborted):  # it answers with what it has
        ask(ServedClient(engine, loop, None), "late")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, ServedClient(engine, loop, None), "wait")
        assert engine.asked.wait(10)
        engine.ended.set_result(None)
        with pytest.raises(RequestAborted):
            asked.result(10)


def test_what_a_listener_raises_ends_the_request(
    engine: Engine, loop: asyncio.AbstractEventLoop
) -> None:
    def fail(place: int, output: Any) -> None:
        raise KeyError(place)

    with pytest.raises(KeyError):
        ask(ServedClient(engine, loop, None), "abc", "wait", on_output=fail)
    ask(ServedClient(engine, loop, None), "a")
    assert engine.aborted == ["wait"]
