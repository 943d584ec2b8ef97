"""How a served engine is asked from threads, with a stand-in for vLLM's `AsyncLLM`, and what is
changed in chat requests and replies that are vLLM's own."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from models import picture
from PIL import ExifTags, Image
from vllm import SamplingParams

from cof.engines.vllm.clients import RequestAborted, ServedClient
from cof.engines.vllm.engine import VllmEngine, load_processor
from cof.images import is_plain, png
from cof.server.logs import Metrics
from cof.server.vllm_chat import _looked_at, _WithCof


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
                counts = {"prompt_token_ids": [1, 2], "num_cached_tokens": None}
                yield SimpleNamespace(outputs=[output], **counts)
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


def test_one_that_fails_ends_its_call(engine: Engine) -> None:
    def fail(place: int, output: Any) -> None:
        raise KeyError(place)

    with pytest.raises(ValueError, match="too long"):
        answer(engine, "fail", "wait")
    assert answer(engine, "a") == ["a"]
    with pytest.raises(KeyError):
        answer(engine, "abc", "wait", on_output=fail)
    assert answer(engine, "a") == ["a"]


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
        sending = _WithCof(send, lambda: LOOK, choices, Metrics())
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
    file = png(picture((112, 112)))
    monkeypatch.setattr(Image.core, "zip_decoder", None)
    assert is_plain(file)
