"""The two ways to a vLLM engine: in this process, and behind a running `vllm serve`."""

from __future__ import annotations

import asyncio
import threading
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from itertools import count
from typing import Any, TypeVar

from cof.engines.vllm.maps import KEY
from cof.errors import CofError

Result = TypeVar("Result")
OnOutput = Callable[[int, Any], object]
"""Called with the place of a request and vLLM's `CompletionOutput` so far."""


_STOPPING = "The engine is being stopped: ask again in a moment."


class RequestAborted(CofError):
    """The engine, or whoever asked, has ended the request before its answer."""


class OfflineClient:
    """Runs requests on vLLM's `LLM`; threads wait for one another.

    Attributes:
        model_config: vLLM's `ModelConfig`.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.model_config = llm.model_config
        self._running = threading.Lock()

    def run(
        self, prompts: Sequence[Any], params: Sequence[Any], on_output: OnOutput | None = None
    ) -> list[Any]:
        """vLLM's `CompletionOutput` for each of its prompts and `SamplingParams`; where these ask
        for a map, it has what each worker has of it as `map`. `on_output` is called whenever a
        reply grows; what it raises ends the call.

        Raises:
            ValueError: vLLM refuses one of them; then none is answered.
        """
        engine = self.llm.llm_engine
        places: dict[str, int] = {}
        outputs: dict[int, Any] = {}
        with self._running:
            try:
                for place, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
                    request_id = str(next(self.llm.request_counter))
                    engine.add_request(request_id, prompt, each)
                    places[request_id] = place
                while len(outputs) < len(prompts):
                    for step in engine.step():
                        place, output = places[step.request_id], step.outputs[0]
                        if on_output is not None:
                            on_output(place, output)
                        if step.finished:
                            outputs[place] = output
                            if asked := (params[place].extra_args or {}).get(KEY):
                                output.map = engine.collective_rpc("take_map", None, asked[:1])
            except BaseException:
                engine.abort_request(list(places))
                raise
        return [outputs[place] for place in range(len(prompts))]


class ServedClient:
    """Runs requests on vLLM's `AsyncLLM`, called from threads; one of these serves one question.

    Attributes:
        model_config: vLLM's `ModelConfig`.
        rank: of the data-parallel engine that gets all of its requests, which share prefixes;
            None: vLLM chooses.
        asked: set once the engine has a request.
        prefix_tokens: of all of its prompts so far, and of these the ones that vLLM found in its
            prefix cache.
    """

    _numbers = count()

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop, rank: int | None) -> None:
        """`loop` is the one that `engine` runs in."""
        self.model_config = engine.model_config
        self.rank = rank
        self.asked = asyncio.Event()
        self.prefix_tokens = (0, 0)
        self._engine, self._loop = engine, loop
        self._cancelled = threading.Event()
        self._under_way: Future[list[Any]] | None = None

    def run(
        self, prompts: Sequence[Any], params: Sequence[Any], on_output: OnOutput | None = None
    ) -> list[Any]:
        """As `OfflineClient.run`.

        Raises:
            RequestAborted: by `cancel`, or because the engine is being stopped.
        """
        if self._cancelled.is_set():
            raise RequestAborted("The request was cancelled.")
        self._under_way = asyncio.run_coroutine_threadsafe(
            self._run(prompts, params, on_output), self._loop
        )
        if self._cancelled.is_set():  # in between
            self._under_way.cancel()
        try:
            return self._under_way.result()
        except CancelledError:
            raise RequestAborted("The request was cancelled.") from None

    def cancel(self) -> None:
        """End what is under way, and whatever is asked later."""
        self._cancelled.set()
        if self._under_way is not None:
            self._under_way.cancel()

    async def _run(
        self, prompts: Sequence[Any], params: Sequence[Any], on_output: OnOutput | None
    ) -> list[Any]:
        """One after another, as a question asks for one thing at a time."""
        pairs = enumerate(zip(prompts, params, strict=True))
        asked = (self._one(place, *pair, on_output) for place, pair in pairs)
        return [await while_running(self._engine, one) for one in asked]

    async def _one(self, place: int, prompt: Any, params: Any, on_output: OnOutput | None) -> Any:
        from vllm.exceptions import GracefulHTTPError

        name, engine, finished = f"cof-{next(self._numbers)}", self._engine, False
        try:
            steps = await engine.add_request(name, prompt, params, data_parallel_rank=self.rank)
            self.asked.set()
            try:
                while not finished:
                    step = await steps.get()
                    output, finished = step.outputs[0], step.finished
                    if on_output is not None:
                        on_output(place, output)
            except BaseException:
                await engine.abort(steps.request_id, internal=True)
                raise
        except GracefulHTTPError:
            raise RequestAborted("The engine is full: ask again in a moment.") from None
        if output.finish_reason == "abort":  # with a part of the answer, or none
            raise RequestAborted(_STOPPING)
        asked, found = self.prefix_tokens
        self.prefix_tokens = (
            asked + len(step.prompt_token_ids),
            found + (step.num_cached_tokens or 0),
        )
        if wanted := (params.extra_args or {}).get(KEY):
            core = self._engine.engine_core  # whose own method asks the first engine alone
            call = ("collective_rpc", "take_map", None, wanted[:1], None)
            ours = core.core_engines[self.rank or 0]
            output.map = await core._call_utility_async(*call, engine=ours)
        return output


async def while_running(engine: Any, work: Awaitable[Result]) -> Result:
    """The result of work with vLLM's `AsyncLLM`, in which what comes at its end waits for ever.

    Raises:
        RequestAborted: the engine has ended before.
    """
    asked = asyncio.ensure_future(work)
    try:
        until = {asked, engine.output_handler} - {None}
        await asyncio.wait(until, return_when=FIRST_COMPLETED)
        await asyncio.wait({asked}, timeout=1)  # for what the engine has just given
        if not asked.done():
            raise RequestAborted(_STOPPING)
        return asked.result()
    finally:
        asked.cancel()


Client = OfflineClient | ServedClient
