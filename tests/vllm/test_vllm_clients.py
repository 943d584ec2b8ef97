"""How a served engine is asked from threads, with a stand-in for vLLM's `AsyncLLM`, and what is
changed in chat requests and replies that are vLLM's own."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from models import picture
from PIL import ExifTags, Image
from starlette.requests import ClientDisconnect
from vllm import SamplingParams

from cof import CofError, Settings
from cof.engines.vllm.clients import RequestAborted, ServedClient
from cof.engines.vllm.engine import VllmEngine, load_processor
from cof.geometry.regions import Region
from cof.images import data_url, image_file, is_plain
from cof.limits import Limits
from cof.server import vllm_chat
from cof.server.logs import Metrics
from cof.server.service import Service
from cof.server.vllm_app import CHAT, Gate
from cof.server.vllm_chat import Looker, Seen, _looked_at, _WithCof, after_looking
from cof.stages import Look
from cof.types import EncodedImage, Grounding


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

    async def add_request(
        self, request_id: str, prompt: str, params: Any, *, data_parallel_rank: int | None
    ) -> Any:
        if prompt == "fail":
            raise ValueError("too long")
        self.ranks.append(data_parallel_rank)
        self.asked.set()
        return SimpleNamespace(get=self._steps(prompt).__anext__, request_id=prompt)

    async def _steps(self, prompt: str) -> AsyncIterator[Any]:
        if prompt == "wait":
            await asyncio.sleep(3600)
        for step in range(1, len(prompt) + 1):
            reason = None if step < len(prompt) else "abort" if prompt == "late" else "stop"
            output = SimpleNamespace(token_ids=list(prompt[:step]), finish_reason=reason)
            counts = {"prompt_token_ids": [1, 2], "num_cached_tokens": None}
            yield SimpleNamespace(outputs=[output], finished=reason is not None, **counts)

    async def abort(self, request_id: str, internal: bool) -> None:
        self.aborted.append(request_id)


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


def test_one_that_fails_ends_its_call(engine: Engine) -> None:
    def fail(place: int, output: Any) -> None:
        raise KeyError(place)

    with pytest.raises(ValueError, match="too long"):
        answer(engine, "fail", "wait")
    assert answer(engine, "a") == ["a"]
    with pytest.raises(KeyError):
        answer(engine, "abc", "wait", on_output=fail)
    assert answer(engine, "a") == ["a"]
    assert engine.aborted == ["abc"]


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


LOOK = {"found": True}


def sent(
    status: int, kind: str, *parts: bytes, choices: int = 1
) -> tuple[dict[bytes, bytes], bytes]:
    """The headers and the body of a reply that `cof` was put into."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def reply() -> None:
        stage_1 = asyncio.get_running_loop().create_future()
        stage_1.set_result(None)
        sending = _WithCof(send, lambda: LOOK, choices, Metrics(), stage_1)
        length = str(sum(map(len, parts))).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", length)]
        await sending({"type": "http.response.start", "status": status, "headers": headers})
        for number, part in enumerate(parts, 1):
            more = number < len(parts)
            await sending({"type": "http.response.body", "body": part, "more_body": more})

    asyncio.run(reply())
    start, *bodies = messages
    assert [body.get("more_body", False) for body in bodies][-1] is False
    return dict(start["headers"]), b"".join(body["body"] for body in bodies)


def test_cof_is_put_into_a_reply() -> None:
    whole = b'{"object":"chat.completion","choices":[{"finish_reason":"stop"}]}'
    headers, body = sent(200, "application/json", whole[:9], whole[9:], choices=3)
    assert json.loads(body) == json.loads(whole) | {"cof": LOOK}
    assert list(headers) == [b"content-type"]
    refusal = b'{"error": {"message": "no"}}'
    assert sent(400, "application/json", refusal)[1] == refusal


def test_cof_is_put_into_a_stream_where_the_last_choice_ends() -> None:
    def event(index: int, text: str, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
        return (
            b"data: " + json.dumps({"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"
        )

    lines = [
        event(0, '"finish_reason":"stop"'),
        event(1, "é", "stop"),
        event(0, "", "length"),
        b'data: {"choices":[],"usage":{}}\n\n',
        b"data: [DONE]\n\n",
    ]
    whole = b"".join(lines)
    expected = whole.replace(b'"finish_reason":"length"}]}', b'"finish_reason":"length"}],"cof":1}')
    for size in (1, 7, 60, len(whole)):
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        _, body = sent(200, "text/event-stream; charset=utf-8", *parts, b"", choices=2)
        told = [line.removeprefix(b"data: ") for line in body.split(b"\n\n")]
        wanted = expected.replace(b'"cof":1', b'"cof":' + json.dumps(LOOK).encode())
        asked = [line.removeprefix(b"data: ") for line in wanted.split(b"\n\n")]
        assert [*map(json.loads, told[:4])] == [*map(json.loads, asked[:4])]
        assert told[4:] == asked[4:]


async def looked_at(stage_1, vllm: Any, receive: Any = None) -> list[Any]:
    """What is sent where `Gate` gets a request whose stage 1 has begun."""
    messages: list[Any] = []
    requests = [{"type": "http.request", "body": b'{"cof": {}}'}]

    async def receives() -> Any:
        return requests.pop() if requests else await (receive or asyncio.Event().wait)()

    async def sends(message: Any) -> None:
        messages.append(message)

    class Looker:
        async def look_first(self, *given: Any) -> Any:
            return b"{}", stage_1, _WithCof(given[-1], lambda: LOOK, 1, Metrics(), stage_1)

    running = asyncio.ensure_future(asyncio.Event().wait())
    state = SimpleNamespace(cof=Looker(), engine_client=SimpleNamespace(output_handler=running))
    scope = {"type": "http", "method": "POST", "path": CHAT, "app": SimpleNamespace(state=state)}
    try:
        await Gate(vllm)(scope, receives, sends)
    finally:
        running.cancel()
    return messages


def test_vllm_reads_a_request_while_stage_one_runs() -> None:
    params = SimpleNamespace(extra_args={"mine": 1})
    happened: list[object] = []

    async def generate(prompt: str, params: Any, name: str) -> AsyncIterator[str]:
        happened.append(params.extra_args)
        yield prompt

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        happened.append((await receive())["body"])
        async for text in after_looking(generate)("an answer", params, "name"):
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": text.encode()})

    async def run() -> list[Any]:
        stage_1 = asyncio.get_running_loop().create_future()
        asked = asyncio.ensure_future(looked_at(stage_1, vllm))
        await asyncio.sleep(0.05)
        assert happened == [b"{}"]
        stage_1.set_result(Seen(None, None, {"cof": "bias"}, 0))
        return await asked

    assert [message.get("body") for message in asyncio.run(run())] == [None, b"an answer"]
    assert happened[1:] == [{"mine": 1, "cof": "bias"}]


@pytest.mark.parametrize("gone", [False, True])
def test_a_stage_one_that_fails_ends_vllms_work(gone: bool) -> None:
    """vLLM's own refusal, which may come before, is not sent."""
    ended: list[str] = []

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        try:
            assert (await receive())["body"] == b"{}"
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await receive()
        finally:
            ended.append("vllm")

    async def leave() -> dict[str, str]:
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def run() -> None:
        stage_1 = asyncio.get_running_loop().create_future()
        if not gone:
            asyncio.get_running_loop().call_later(0.05, stage_1.set_exception, CofError("No."))
        with pytest.raises(ClientDisconnect if gone else CofError):
            await looked_at(stage_1, vllm, leave if gone else None)
        await asyncio.sleep(0.05)
        assert stage_1.cancelled() == gone
        assert ended == ["vllm"]

    asyncio.run(run())


@pytest.mark.parametrize("early", [True, False])
def test_the_body_is_ready_when_the_engine_is_busy(
    monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Where the focus leaves the image as it is; else when the region is known."""
    region, order = Region(((0.2, 0.2, 0.6, 0.6),)), []

    async def run() -> None:
        loop, found = asyncio.get_running_loop(), threading.Event()

        class Pipeline:
            def __init__(self, engine: Any, settings: Any) -> None:
                self.client = engine

            def look_for(self, sample: Any) -> Look:
                loop.call_soon_threadsafe(self.client.asked.set)
                assert found.wait(10)
                order.append("look")
                return Look("prompt", Grounding(region), region)

        written = lambda fields, plain, seen, engine: order.append(seen is plain) or b"body"  # noqa: E731
        monkeypatch.setattr(vllm_chat, "CoF", Pipeline)
        monkeypatch.setattr(vllm_chat, "write_body", written)
        monkeypatch.setattr(Looker, "_added", lambda *_: {"cof": "bias"})
        settings = Settings(focus="attention" if early else "crop")
        service = Service(settings, Metrics(), Limits(), None, 1)
        core = SimpleNamespace(engine_ranks_managed=[0])
        vllm = SimpleNamespace(model_config=None, engine_core=core)
        file = lambda image, data: EncodedImage(image, SimpleNamespace(original_bytes=data))  # noqa: E731
        engine: Any = SimpleNamespace(with_client=lambda client: client, encode_file=file)
        image = {"type": "image_url", "image_url": {"url": data_url(picture((40, 30)))}}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]
        request: Any = SimpleNamespace(
            receive=asyncio.Event().wait, state=SimpleNamespace(about={}), scope={"headers": []}
        )
        with ExitStack() as until_answered:
            fields = {"messages": messages, "cof": {}}
            begun = Looker(service, engine, vllm).look_first(fields, until_answered, request, sends)
            asked = asyncio.ensure_future(begun)
            await asyncio.wait({asked}, timeout=1 if early else 0.2)
            assert asked.done() == early
            found.set()
            body, stage_1, _ = await asked
            assert (body, (await stage_1).added) == (b"body", {"cof": "bias"})

    async def sends(message: Any) -> None: ...

    asyncio.run(run())
    assert order == ([True, "look"] if early else ["look", False])


def test_stage_one_reads_a_chat_up_to_its_question() -> None:
    user, answer = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}
    call = {"role": "assistant", "content": None, "tool_calls": [{}]}
    result = {"role": "tool", "content": "7"}
    assert _looked_at([user, answer, user, call, result]) == [user, answer, user]
    assert _looked_at([user, call, result, answer]) == [user]
    assert _looked_at("a text") == []


def test_the_file_of_an_image_shows_what_the_engine_shows() -> None:
    config, processor = load_processor(str(checkpoint("llava")))
    client = SimpleNamespace(model_config=SimpleNamespace(get_diff_sampling_param=dict))
    engine = VllmEngine(client, config, processor, name="llava")

    def sent_for(image: Image.Image, kind: str) -> tuple[bytes, bytes, Any]:
        data = io.BytesIO()
        image.save(data, kind, exif=image.getexif())
        encoded = engine.encode_file(image.convert("RGB"), data.getvalue())
        return data.getvalue(), encoded.pixels.original_bytes, encoded

    for kind in ("PNG", "JPEG"):
        data, file, _ = sent_for(picture((112, 112)), kind)
        assert file is data or file == data
    turned = picture((112, 112))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    data, file, _ = sent_for(turned, "PNG")
    assert file != data
    for image in (picture((112, 56)), picture((112, 112)).convert("L")):
        data, file, encoded = sent_for(image, "PNG")
        assert file != data
        shown = Image.open(io.BytesIO(file))
        assert shown.tobytes() == encoded.pixels.media.tobytes()
        assert shown.size == (112, 112)
        assert encoded.size == image.size


def test_a_file_is_not_decoded_to_see_that_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    file = image_file(picture((112, 112)), "PNG")
    monkeypatch.setattr(Image.core, "zip_decoder", None)
    assert is_plain(file)
