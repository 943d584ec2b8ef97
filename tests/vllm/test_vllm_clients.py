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
        self.loop = loop
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
def engine() -> Iterator[Engine]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = Engine(loop)
    yield made
    if not made.ended.done():
        made.ended.set_result(None)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def ask(client: ServedClient, *prompts: str, **options: Any) -> list[Any]:
    return client.run(prompts, [SamplingParams() for _ in prompts], **options)


def answer(engine: Engine, *prompts: str, **options: Any) -> list[str]:
    """The answers of a client of its own."""
    outputs = ask(ServedClient(engine, engine.loop, 3), *prompts, **options)
    return ["".join(output.token_ids) for output in outputs]


def test_replies_come_in_order_and_step_by_step(engine: Engine) -> None:
    steps: list[tuple[int, int]] = []
    told = lambda place, got: steps.append((place, len(got.token_ids)))  # noqa: E731
    assert answer(engine, "ab", "c", on_output=told) == ["ab", "c"]
    assert sorted(steps) == [(0, 1), (0, 2), (1, 1)]
    assert engine.ranks == [3, 3]


def test_one_that_fails_ends_the_others_of_its_call(engine: Engine) -> None:
    def fail(place: int, output: Any) -> None:
        raise KeyError(place)

    with pytest.raises(ValueError, match="too long"):
        answer(engine, "wait", "fail")
    assert answer(engine, "a") == ["a"]
    with pytest.raises(KeyError):
        answer(engine, "abc", "wait", on_output=fail)
    assert answer(engine, "a") == ["a"]
    assert engine.aborted == ["wait", "wait"]


def test_cancelling(engine: Engine) -> None:
    client = ServedClient(engine, engine.loop, None)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, "wait")
        assert engine.asked.wait(10)
        client.cancel()
        with pytest.raises(RequestAborted):
            asked.result(10)
    with pytest.raises(RequestAborted):  # nor the second stage
        ask(client, "a")
    assert answer(engine, "b") == ["b"]
    assert engine.aborted[:1] == ["wait"]


def test_an_engine_that_ends(engine: Engine) -> None:
    with pytest.raises(RequestAborted):  # it answers with what it has
        answer(engine, "late")
    engine.asked.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answer, engine, "wait")
        assert engine.asked.wait(10)
        engine.ended.set_result(None)
        with pytest.raises(RequestAborted):
            asked.result(10)
