"""The server on a scripted engine: what it takes, what it refuses, and that it goes on."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fakes import FakeEngine
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from cof.cli import app as commands
from cof.errors import CofError, OutOfMemory
from cof.images import data_url
from cof.limits import Limits
from cof.pipeline import CoF, Query
from cof.prompting.dialects import TINY
from cof.server.app import create_app
from cof.server.errors import ApiError
from cof.server.images import Fetcher, is_public
from cof.server.logs import JsonFormatter, Metrics
from cof.server.worker import Worker
from cof.settings import Settings
from cof.types import Decoding, Generation, Request, Slot, Thought, Turn

QUESTION = "What digit is on the red star?"
BOX = (0.2, 0.2, 0.4, 0.6)
CHAT = "/v1/chat/completions"


def reply(request: Request) -> str:
    if "Where" in request.prompt or request.prompt.startswith("{"):
        return str(list(BOX))
    if "crash" in request.prompt:
        raise RuntimeError(f"cannot read {request.prompt}")
    if "memory" in request.prompt:
        raise OutOfMemory("Out of memory.")
    return "focused" if request.highlight else "plain answer"


TIFF = base64.b64encode(b"II*\0\x08\0\0\0").decode()
IMAGE = data_url(Image.new("RGB", (64, 64), "red"))


def body(question: str = QUESTION, *urls: str, **more: Any) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls or (IMAGE,)]
    content = [*images, {"type": "text", "text": question}]
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **more}


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    api_key: str | None = None,
    fetcher: Fetcher | None = None,
    settings: Settings = Settings(expand=1.0),  # noqa: B008
    **limits: Any,
) -> Iterator[TestClient]:
    cof = CoF(engine or FakeEngine(reply, dialect=TINY), settings)
    app = create_app(cof, "fake", limits=Limits(**limits), api_key=api_key, fetcher=fetcher)
    with TestClient(app) as client:
        yield client


def message(response: httpx2.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].count(". ") == 0, "one sentence"
    return str(error["message"])


class TestAnswers:
    def test_without_cof_the_model_is_asked_once_and_plainly(self) -> None:
        engine = FakeEngine(reply, dialect=TINY)
        with serving(engine) as client:
            answer = client.post(CHAT, json=body(max_tokens=7, temperature=0.5, top_p=0.9, seed=3))
        ((request,), decoding) = engine.calls[0]
        assert len(engine.calls) == 1
        assert request.prompt == QUESTION
        assert request.highlight is None
        assert decoding == Decoding(7, temperature=0.5, top_p=0.9, seed=3)
        assert answer.json()["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "plain answer", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert "cof" not in answer.json()

    def test_with_cof(self) -> None:
        with serving() as client:
            answer = client.post(CHAT, json=body(cof={"strength": 3.0})).json()
        assert answer["choices"][0]["message"]["content"] == "focused"
        look = answer["cof"]
        assert look["boxes"] == look["raw_boxes"] == [list(BOX)]
        assert (look["found"], look["grounder"], look["reason"]) == (True, "prompt", "")
        assert look["confidence"] == pytest.approx(0.5)
        assert look["timings"].keys() == {"ground_s", "answer_s"}
        assert Settings(**look["settings"]) == Settings(expand=1.0, strength=3.0)

    def test_what_asks_for_nothing_is_taken(self) -> None:
        values: dict[str, Any] = {
            "n": 1,
            "function_call": "none",
            "modalities": ["text"],
            "response_format": {"type": "text"},
            "user": "me",
            "presence_penalty frequency_penalty top_logprobs": 0,
            "tools functions stop": [],
            "logit_bias metadata": {},
            "tool_choice service_tier": "auto",
            "reasoning_effort verbosity": "medium",
            "logprobs store parallel_tool_calls": False,
            "max_tokens temperature top_p seed stream_options audio prediction cof": None,
        }
        neutral = {name: value for names, value in values.items() for name in names.split()}
        engine = FakeEngine(reply, dialect=TINY)
        with serving(engine) as client:
            assert client.post(CHAT, json=body(**neutral)).status_code == 200
        assert engine.calls[0][1] == Decoding()

    def test_a_chat(self) -> None:
        """A system message, earlier turns with images of their own, addresses as plain strings."""
        other, third = (data_url(Image.new("RGB", (10, side))) for side in (20, 30))
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image_url", "image_url": IMAGE}, "First?"]},
            {"role": "assistant", "content": [{"type": "text", "text": "A star."}]},
            body("Which?", other, third)["messages"][0],
        ]
        engine = FakeEngine(reply, dialect=TINY)
        with serving(engine) as client:
            for own in ({"image": 1}, {}):
                made = client.post(CHAT, json=body(messages=messages, cof=own))
                assert made.json()["choices"][0]["message"]["content"] == "focused"
        one, last = engine.calls[1][0][0], engine.calls[3][0][0]
        assert [(each.prompt, each.pil_image.size) for each in (one, last)] == [
            ("Which?", (10, 20)),
            ("Which?", (10, 30)),
        ]
        assert [image.size for image in one.images] == [(64, 64), (10, 20), (10, 30)]
        assert one.chat == (
            Turn("system", ("Be brief.",)),
            Turn("user", (0, "First?")),
            Turn("assistant", ("A star.",)),
            Turn("user", (Slot.IMAGE, 1, Slot.PROMPT)),
        )

    @pytest.mark.parametrize("cof", [None, {}])
    def test_text_alone(self, cof: Any) -> None:
        engine = FakeEngine(reply, dialect=TINY)
        with serving(engine) as client:
            answer = client.post(CHAT, json=body(**text_of("What is a star?"), cof=cof)).json()
        assert answer["choices"][0]["message"]["content"] == "plain answer"
        (((request,), _),) = engine.calls
        assert (request.images, request.highlight) == ([], None)
        assert ("cof" in answer) == (cof is not None)
        assert cof is None or answer["cof"]["reason"] == "The chat has no image."

    @pytest.mark.parametrize(
        ("stop", "text"),
        [
            ("answer", "plain "),
            (["x", "swer", "n a"], "plai"),
            ("n answer", "plai"),
            ("plain", ""),
            ("answers", "plain answer"),
            (["", "y"], "plain answer"),
        ],
    )
    def test_stop(self, stop: Any, text: str) -> None:
        with serving() as client:
            whole = client.post(CHAT, json=body(stop=stop)).json()["choices"][0]
            short = body(stop=stop, max_completion_tokens=2)
            cut = client.post(CHAT, json=short).json()["choices"][0]
            chunks = events_of(client.post(CHAT, json=body(stop=stop, stream=True)))
        assert (whole["message"]["content"], whole["finish_reason"]) == (text, "stop")
        assert cut["finish_reason"] == ("length" if text == "plain answer" else "stop")
        assert "".join(map(content_of, chunks)) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"

    def test_usage_and_logprobs(self) -> None:
        with serving(Thinking()) as client:
            whole = client.post(CHAT, json=body(logprobs=True)).json()
            with_usage = {"stream": True, "stream_options": {"include_usage": True}}
            *chunks, last, usage = events_of(
                client.post(CHAT, json=body(logprobs=True, **with_usage))
            )
            without = events_of(client.post(CHAT, json=body(stream=True)))
        numbers = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        assert whole["usage"] == usage["usage"] == numbers
        assert usage["choices"] == []
        assert not any("usage" in chunk for chunk in (*chunks, last, *without))
        told = whole["choices"][0]["logprobs"]
        assert told == last["choices"][0]["logprobs"]
        assert told["content"] == [
            {"token": f"t{n}", "logprob": pytest.approx(-0.6931, abs=1e-4), "top_logprobs": []}
            | {"bytes": [116, 48 + n]}
            for n in range(2)
        ]
        assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)

    def test_what_a_reasoning_model_thinks(self) -> None:
        with serving(Thinking()) as client:
            message = client.post(CHAT, json=body()).json()["choices"][0]["message"]
            response = client.post(CHAT, json=body(stream=True, cof={}))
        assert message["reasoning_content"] == "It may be red."
        assert message["content"] == "plain answer"
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = events_of(response)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas == [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "It may"},
            {"reasoning_content": " be red."},
            {"content": "focused"},
            {},
        ]
        ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert ends == [None] * 4 + ["stop"]
        assert ["cof" in chunk for chunk in chunks] == [False] * 4 + [True]
        assert chunks[-1]["cof"]["reasoning"] == "It may be red."

    def test_models_and_health(self) -> None:
        with serving() as client:
            (model,) = client.get("/v1/models").json()["data"]
            assert model["id"] == "fake"
            assert client.get("/v1/models/fake").json() == model
            other = client.get("/v1/models/a/b")
            assert (other.status_code, message(other)[:23]) == (404, "There is no model 'a/b'")
            assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/health").status_code == 503
        late = client.post(CHAT, json=body())
        assert (late.status_code, "being stopped" in message(late)) == (503, True)

    def test_metrics(self) -> None:
        with serving() as client:
            client.post(CHAT, json=body(cof={}))
            client.post(CHAT, json=body(tools=[{}]))
            client.get("/nowhere/at/all")
            lines = client.get("/metrics").text.splitlines()
        assert f'cof_requests_total{{path="{CHAT}",status="200"}} 1.0' in lines
        assert f'cof_requests_total{{path="{CHAT}",status="400"}} 1.0' in lines
        assert 'cof_requests_total{path="other",status="404"} 1.0' in lines
        assert 'cof_errors_total{kind="invalid_request"} 1.0' in lines
        for name in ("batch_size", "ground_seconds", "answer_seconds"):
            assert f"cof_{name}_count 1.0" in lines
        assert "cof_queue_length 0.0" in lines


class Thinking(FakeEngine):
    """Thinks before it answers, and has a tokenizer."""

    processor = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: f"t{ids[0]}"))

    def __init__(self) -> None:
        super().__init__(reply, dialect=TINY)

    def _reply(self, request: Request) -> Generation:
        made = super()._reply(request)
        return replace(made, reasoning="It may be red.", num_prompt_tokens=7)

    def _stream(self, replies: Any, on_text: Any) -> None:
        for piece in ("It may", " be red."):
            on_text(0, Thought(piece))
        super()._stream(replies, on_text)


def events_of(response: httpx2.Response) -> list[Any]:
    """What the events of a whole stream hold, but the last."""
    *lines, end = [line for line in response.text.split("\n\n") if line]
    assert end == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def content_of(event: Any) -> str:
    """The text in an event; the last has none."""
    return str(event["choices"][0]["delta"].get("content", ""))


def text_of(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def url(address: str) -> dict[str, Any]:
    return body(QUESTION, address)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "several answers": ({"n": 2}, "n is not supported"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is not supported"),
    "a schema": ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
    "a penalty": ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
    "likely tokens": ({"logprobs": True, "top_logprobs": 3}, "top_logprobs is not supported"),
    "a stream's option": ({"stream_options": {"x": 1}}, r"^stream_options\.x is not supported"),
    "stop": ({"stop": 5}, "^stop: "),
    "unknown": ({"top_k": 5}, "top_k is not supported"),
    "no messages": ({"messages": []}, "A chat is a list of messages"),
    "a message": ({"messages": ["What?"]}, r"^messages\.0: "),
    "a tool's turn": ({"messages": [{"role": "tool", "content": "x"}]}, "A message needs a role"),
    "no turn to answer": (
        {"messages": [*body()["messages"], {"role": "assistant", "content": "x"}]},
        "The last message of a chat must be the user's",
    ),
    "no content": (text_of(None), "must be the user's, with a text"),
    "another content": (text_of(5), "A content is a text, or a list of parts"),
    "a part alone": (text_of({"type": "text", "text": "What?"}), "A content is a text, or a list"),
    "audio": (text_of([{"type": "input_audio"}, "What?"]), "parts of the type text, or image"),
    "no text": (text_of([{"type": "text", "text": 5}]), "must be a text"),
    "no question": (body(" "), "must be the user's, with a text"),
    "five images": (body(QUESTION, *[IMAGE] * 5), "5 images, above 4"),
    "no image to look at": ({**text_of("What?"), "cof": {"boxes": [BOX]}}, "no image to look at"),
    "no such image": ({"cof": {"image": 1}}, "has no image 1: it has 1, counted from 0"),
    "a path": (url("/etc/passwd"), "takes a data: URL"),
    "a part with a path": (text_of([{"type": "image", "path": "/x"}]), "of the type image_url"),
    "an address": (url("https://example.com/a.png"), "fetches no addresses"),
    "no base64": (url("data:image/png;base64,@@@"), "nor valid base64"),
    "another encoding": (url("data:image/png,abc"), "begins data:image/png;base64,"),
    "no image data": (url("data:image/png;base64,aGVsbG8="), "not an image of the kinds PNG"),
    "TIFF": (url("data:image/tiff;base64," + TIFF), "not an image of the kinds PNG"),
    "too long": ({"max_tokens": 513}, "max_tokens is above 512"),
    "no tokens": ({"max_tokens": 0}, "^max_tokens must be a whole number above 0"),
    "too long either": ({"max_completion_tokens": 513}, "^max_completion_tokens is above 512"),
    "cof: a list": ({"cof": []}, "cof: Input should be an object"),
    "cof: unknown": ({"cof": {"lambda": 2}}, "no option 'lambda'"),
    "cof: many boxes": ({"cof": {"boxes": [[0, 0, 1, 1]] * 65}}, "length of 65, above 64"),
    "cof: a polygon": ({"cof": {"polygon": [[0, 0], [1, 1]]}}, "at least three"),
    "cof: a detector": ({"cof": {"grounder": "detector", "detector": "/x"}}, "by the server"),
    "cof: a long text": ({"cof": {"strength": "x" * 9000}}, r"^strength .{480,500}\.\.\.x{200}"),
    "cof: a long box": ({"cof": {"grounding_max_new_tokens": 10**9}}, "above 512"),
}
OTHERS: dict[str, tuple[dict[str, Any], str, int]] = {
    "another model": ({"model": "gpt-4"}, "no model 'gpt-4' here; there is 'fake'", 404),
    "a long question": (body("x" * 16_001), "16001 characters, above 16000", 413),
    "a long chat": ({"messages": body("x" * 9000)["messages"] * 2}, "18000 characters", 413),
    "a long prompt": ({"cof": {"grounding_prompt": "{question}" + "x" * 16_000}}, "16010 ch", 413),
    "too many pixels": (url(data_url(Image.new("1", (200, 101)))), "200x101 pixels", 413),
}


@pytest.fixture(scope="module")
def small() -> Iterator[TestClient]:
    with serving(max_pixels=20_000) as client:
        yield client


class TestRefusals:
    @pytest.mark.parametrize("name", [*BAD, *OTHERS])
    def test_bad_requests(self, name: str, small: TestClient) -> None:
        change, sentence, status = OTHERS[name] if name in OTHERS else (*BAD[name], 400)
        response = small.post(CHAT, json={**body(), **change})
        assert response.status_code == status
        assert re.search(sentence, message(response))
        assert small.post(CHAT, json=body()).status_code == 200

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_no_request_at_all(self, data: bytes, small: TestClient) -> None:
        response = small.post(CHAT, content=data)
        assert response.status_code == 400
        assert "The body" in message(response)

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image", "path": "{file}"},
            {"type": "image", "image": "{file}"},
            {"type": "image", "url": "file://{file}"},
            {"type": "image_url", "path": "{file}"},
            {"type": "image_url", "image_url": None, "path": "{file}"},
            {"type": "image_url", "image_url": {"path": "{file}"}},
            {"type": "image_url", "image_url": {"url": "{file}"}},
            {"type": "image_url", "image_url": "{file}"},
        ],
    )
    def test_no_file_is_opened(
        self, part: Any, small: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "own.png"
        Image.new("RGB", (8, 8)).save(file)
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
        asked = json.loads(json.dumps([part, "What?"]).replace("{file}", str(file)))
        response = small.post(CHAT, json=body(**text_of(asked)))
        assert response.status_code == 400
        assert "image_url" in message(response)

    def test_large_bodies(self) -> None:
        with serving(max_image_bytes=1000) as client:
            response = client.post(CHAT, content=b" " * 2**21)
            assert response.status_code == 413
            assert "more than" in message(response)
            response = client.post(CHAT, json=url("data:image/png;base64," + "A" * 1400))
            assert response.status_code == 413
            assert "more than 1,000 bytes" in message(response)

    def test_no_such_route(self, small: TestClient) -> None:
        for response in (small.get("/v1/completions"), small.get(CHAT)):
            assert response.status_code in (404, 405)
            assert message(response)

    def test_the_key(self) -> None:
        with serving(api_key="s3cret") as client:
            for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic x"}):
                response = client.post(CHAT, json=body(), headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert "API key is missing or wrong" in message(response)
            right = {"Authorization": "Bearer s3cret"}
            assert client.post(CHAT, json=body(), headers=right).status_code == 200
            assert client.get("/v1/models").status_code == 401
            assert client.get("/health").status_code == 200

    def test_a_full_queue(self) -> None:
        held = Held()
        with serving(held, max_batch=1, max_queue=1) as client, ThreadPoolExecutor() as pool:
            taken = [pool.submit(client.post, CHAT, json=body()) for _ in range(2)]
            while "cof_under_way 2.0" not in client.get("/metrics").text.splitlines():
                pass
            response = client.post(CHAT, json=body())
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
            assert "Too many requests" in message(response)
            held.go.set()
            assert [each.result().status_code for each in taken] == [200, 200]

    def test_no_answer_in_time(self) -> None:
        held = Held()
        with serving(held, timeout_s=0.2) as client:
            response = client.post(CHAT, json=body())
            held.go.set()
            assert client.post(CHAT, json=body()).status_code == 200
        assert response.status_code == 504
        assert message(response) == "There was no answer in time: ask for less."

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_crash_in_the_engine(self, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
        with serving() as client:
            response = client.post(CHAT, json=body("crash: my secret", stream=stream))
            assert response.status_code == 500
            assert message(response) == "The engine failed on this request."
            response = client.post(CHAT, json=body("memory", stream=stream))
            assert response.status_code == 503
            assert "out of memory" in message(response)
            assert client.post(CHAT, json=body()).status_code == 200
            assert client.get("/health").status_code == 200
        lines = [JsonFormatter().format(record) for record in caplog.records]
        (failure,) = [json.loads(line) for line in lines if "engine failed" in line]
        assert failure["exception"] == "RuntimeError"
        assert any("test_server.py" in frame for frame in failure["frames"])

    def test_logs_tell_neither_question_nor_answer_nor_image(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with serving(api_key="s3cret") as client:
            for question in ("star of secrets", "crash of secrets"):
                more = {"json": body(question, cof={"grounding_question": "secrets, too"})}
                client.post(CHAT, **more, headers={"Authorization": "Bearer s3cret"})
        own = [record for record in caplog.records if record.name.startswith("cof")]
        lines = [JsonFormatter().format(record) for record in own]
        (first, *_) = [json.loads(line) for line in lines if json.loads(line).get("path") == CHAT]
        assert first.items() >= {"status": 200, "cof": True, "images": [[64, 64]]}.items()
        for private in ("secret", "focused", IMAGE[40:80]):
            assert private not in "".join(lines)


def test_the_log_of_transformers_is_json_too() -> None:
    script = (
        "from transformers.utils import logging; from cof.server.logs import start_logging\n"
        "start_logging(); logging.get_logger('transformers.x').warning('long')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "long"


class Held(FakeEngine):
    """Says nothing, or one word of each reply, until it may go on."""

    def __init__(self, *, begins: bool = False) -> None:
        super().__init__(reply, dialect=TINY)
        self.began, self.go, self.begins, self.done = Event(), Event(), begins, 0

    def generate(self, requests: Any, decoding: Decoding, on_text: Any = None) -> Any:
        def tell(place: int, piece: str) -> None:
            if self.begins and piece.startswith(" "):
                assert self.go.wait(10)
                if "break" in requests[place].prompt:
                    raise RuntimeError
            on_text(place, piece)

        self.began.set()
        assert self.begins or self.go.wait(10)
        replies = super().generate(requests, decoding, on_text and tell)
        self.done += 1
        return replies


class Visit:
    """A client that hears events while the answer is made, which `TestClient` does not."""

    def __init__(self, question: str, **more: Any) -> None:
        self.data = json.dumps(body(question, stream=True, **more)).encode()
        self.status, self.left = 0, asyncio.Event()
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._asked = False

    def start(self, app: Any) -> asyncio.Task[None]:
        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": []}
        return asyncio.create_task(app(scope, self._receive, self._send))

    async def next(self) -> Any:
        """What the next event holds; None: it is the last one."""
        event = (await asyncio.wait_for(self.heard.get(), 10)).decode()
        assert event.startswith("data: ")
        assert event.endswith("\n\n")
        return None if "[DONE]" in event else json.loads(event.removeprefix("data: "))

    async def _receive(self) -> Any:
        if self._asked:
            await self.left.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": self.data}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        if data := message.get("body"):
            self.heard.put_nowait(data)


class TestStreaming:
    @pytest.mark.parametrize(
        ("question", "limits", "error"),
        [
            ("What?", {}, ""),
            ("break", {}, "The engine failed on this request."),
            ("What?", {"timeout_s": 1}, "There was no answer in time: ask for less."),
        ],
    )
    def test_pieces_come_while_the_answer_is_made(
        self, question: str, limits: dict[str, Any], error: str
    ) -> None:
        async def visit(engine: Held, app: Any) -> None:
            client = Visit(question, cof={})
            answered = client.start(app)
            assert [content_of(await client.next()) for _ in range(2)] == ["", "plain"]
            assert (client.status, engine.done) == (200, 0)
            if not limits:
                engine.go.set()
            event = await client.next()
            if error:
                assert event["error"]["message"] == error
                assert event["error"]["type"] == "server_error"
            else:
                assert content_of(event) == " answer"
                assert (await client.next())["cof"]["num_tokens"] == 2
                assert await client.next() is None
            await answered
            assert client.heard.empty()

        engine = Held(begins=True)
        with serving(engine, settings=Settings(focus="none"), **limits) as client:
            asyncio.run(visit(engine, client.app))
            engine.go.set()
            assert client.post(CHAT, json=body()).status_code == 200
            lines = client.get("/metrics").text.splitlines()
            assert "cof_under_way 0.0" in lines
            assert ('cof_errors_total{kind="engine_failed"} 1.0' in lines) == (question == "break")

    def test_a_client_that_leaves_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cof.server.worker.WINDOW_S", 10)  # until a batch is full

        async def visit(engine: Held, app: Any) -> None:
            stays, leaves, waits = Visit("stays"), Visit("leaves"), Visit("waits", max_tokens=9)
            tasks = [client.start(app) for client in (stays, leaves)]
            for client in (stays, leaves):
                assert [content_of(await client.next()) for _ in range(2)] == ["", "plain"]
            queued = waits.start(app)
            leaves.left.set()
            waits.left.set()
            await asyncio.wait_for(tasks[1], 10)
            await asyncio.wait_for(queued, 10)
            assert (waits.status, engine.done) == (499, 0)
            engine.go.set()
            assert content_of(await stays.next()) == " answer"
            await stays.next()
            assert await stays.next() is None
            await tasks[0]

        engine = Held(begins=True)
        with serving(engine, settings=Settings(focus="none"), max_batch=2) as client:
            asyncio.run(visit(engine, client.app))
            assert client.post(CHAT, json=body("after")).status_code == 200
            assert "cof_under_way 0.0" in client.get("/metrics").text.splitlines()
        asked = [sorted(request.prompt for request in call) for call, _ in engine.calls]
        assert asked == [["leaves", "stays"], ["after"]]


PICTURE = Image.new("RGB", (64, 48))


class TestWorker:
    @contextmanager
    def working(self, max_batch: int = 16) -> Iterator[tuple[Held, Worker]]:
        """A worker whose engine is busy with one query until it may go on."""
        held = Held()
        worker = Worker(CoF(held, Settings(expand=1.0)), max_batch, Metrics())
        first = worker.submit(query("first"), Decoding())
        assert held.began.wait(5)
        yield held, worker
        held.go.set()
        worker.close(10)
        assert first.result(0).text == "plain answer"

    def test_what_arrives_together_is_answered_together(self) -> None:
        """But what is sampled from a seed alone, so that it always draws the same."""
        with self.working() as (held, worker):
            waiting = [worker.submit(query(str(n)), Decoding()) for n in range(3)]
            waiting.append(worker.submit(query("other"), Decoding(max_new_tokens=5)))
            seeded = Decoding(temperature=1.0, seed=1)
            waiting += [worker.submit(query("seeded"), seeded) for _ in range(2)]
            held.go.set()
            assert [future.result(5).question for future in waiting[:3]] == ["0", "1", "2"]
            assert {future.result(5).text for future in waiting} == {"plain answer"}
        calls = [[request.prompt for request in call] for call, _ in held.calls]
        assert calls == [["first"], ["0", "1", "2"], ["other"], ["seeded"], ["seeded"]]

    def test_one_that_fails_fails_alone(self) -> None:
        with self.working() as (held, worker):
            questions = ["a", "b", "crash", "c", "memory", "d"]
            waiting = [worker.submit(query(question), Decoding()) for question in questions]
            held.go.set()
            failures = {n: future.exception(5) for n, future in enumerate(waiting)}
        kinds = {n: type(failure) for n, failure in failures.items() if failure}
        assert kinds == {2: RuntimeError, 4: OutOfMemory}

    def test_a_batch_that_fails_after_pieces_sends_nothing_twice(self) -> None:
        """And an answer that differs from what was sent fails alone."""
        with self.working() as (held, worker):
            told: list[list[str]] = [[], [], []]
            whole = FakeEngine._stream

            def broken(replies: Any, on_text: Any) -> None:
                if len(replies) == 3:
                    on_text(0, "another")
                    on_text(1, "plain")
                    raise RuntimeError
                whole(held, replies, on_text)

            held._stream = broken  # type: ignore[method-assign]
            waiting = [worker.submit(query("?"), Decoding(), pieces.append) for pieces in told]
            held.go.set()
            with pytest.raises(ApiError, match="another text than the one sent") as error:
                waiting[0].result(5)
            assert (error.value.status, error.value.code) == (500, "answer_changed")
            assert [future.result(5).text for future in waiting[1:]] == ["plain answer"] * 2
        assert told == [["another"], ["plain", " answer"], ["plain", " answer"]]


def query(question: str) -> Query:
    return Query(PICTURE, question, settings=Settings(focus="none"))


PUBLIC, OTHER = "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"
PRIVATE = (
    "127.0.0.1 10.1.2.3 100.64.0.1 169.254.169.254 168.63.129.16 192.0.0.192 224.0.0.1 "
    "::1 fe80::1%eth0 fd00:ec2::254 ff02::1 ::ffff:169.254.169.254 64:ff9b::7f00:1 2002:7f00:1:: "
    "2001:0:4136:e378::"
)


def streamed(data: bytes) -> httpx2.Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return httpx2.Response(200, content=chunks())


class TestAddresses:
    """A fetcher with a resolver and a network that are made up."""

    def fetch(
        self,
        address: str,
        hosts: dict[str, list[list[str]]] | None = None,
        network: Callable[[httpx2.Request], Any] = lambda _: streamed(b"x"),
        **options: Any,
    ) -> tuple[bytes, list[httpx2.Request]]:
        """What is fetched, and the requests that were sent; each look-up of a host gives the next
        of its addresses."""
        names = {host: iter(found) for host, found in (hosts or {}).items()}
        sent: list[httpx2.Request] = []

        async def resolve(host: str, port: int) -> list[str]:
            return next(names[host]) if host in names else [host]

        async def connect(request: httpx2.Request) -> httpx2.Response:
            sent.append(request)
            response = network(request)
            return await response if asyncio.iscoroutine(response) else response

        fetcher = Fetcher(
            **{"max_bytes": 100, **options},
            resolve=resolve,
            transport=httpx2.MockTransport(connect),
        )
        return asyncio.run(fetcher.fetch(address)), sent

    @pytest.mark.parametrize("address", PRIVATE.split())
    def test_addresses_that_are_not_public(self, address: str) -> None:
        assert not is_public(address)
        with pytest.raises(CofError, match="is not on the public internet"):
            self.fetch("http://images.test/a.png", {"images.test": [[PUBLIC, address]]})

    def test_it_connects_to_the_address_that_was_checked(self) -> None:
        rebinding = {"images.test": [[PUBLIC], ["127.0.0.1"]]}
        assert all(map(is_public, (PUBLIC, OTHER, "8.8.8.8")))
        data, (request,) = self.fetch("https://images.test:8443/a.png?b=c", rebinding)
        assert data == b"x"
        assert (request.url.host, request.url.port, request.url.path) == (PUBLIC, 8443, "/a.png")
        assert request.headers["host"] == "images.test:8443"
        assert request.extensions["sni_hostname"] == "images.test"

    @pytest.mark.parametrize(
        ("location", "sentence"),
        [
            ("file:///etc/passwd", "from http"),
            ("ftp://images.test/", "from http"),
            ("http://user:word@images.test/", "without a password"),
            ("http://127.0.0.1/", "not on the public internet"),
            ("http://[::1]/", "not on the public internet"),
            ("http://images.test/again", "redirects"),
            ("http://inside.test/", r"inside\.test is not on the public internet"),
            ("http://moves.test/", "not on the public internet"),
        ],
    )
    def test_redirects_elsewhere(self, location: str, sentence: str) -> None:
        hosts = {"images.test": [[PUBLIC]] * 9, "moves.test": [[PUBLIC], ["127.0.0.1"]]}
        hosts["inside.test"] = [[PUBLIC, "10.0.0.1"]]
        moved = httpx2.Response(302, headers={"location": location})
        with pytest.raises(CofError, match=sentence):
            self.fetch("http://images.test/a", hosts, lambda request: moved)

    @pytest.mark.parametrize(
        ("address", "network", "sentence"),
        [
            (PUBLIC, lambda _: streamed(b"x" * 101), "more than 100 bytes"),
            (PUBLIC, lambda _: asyncio.sleep(5), r"did not answer in 0\.1 s"),
            (PUBLIC, lambda _: httpx2.Response(404), "404"),
            ("[", lambda _: httpx2.Response(200), "cannot be fetched"),
        ],
    )
    def test_what_cannot_be_fetched(self, address: str, network: Any, sentence: str) -> None:
        with pytest.raises(CofError, match=sentence):
            self.fetch(f"http://{address}", network=network, timeout_s=0.1)

    def test_a_server_that_may_fetch(self) -> None:
        async def resolve(host: str, port: int) -> list[str]:
            return [{"images.test": PUBLIC}.get(host, "127.0.0.1")]

        png = base64.b64decode(IMAGE.split(",")[1])
        network = httpx2.MockTransport(lambda request: streamed(png))
        fetcher = Fetcher(10_000, resolve=resolve, transport=network)
        with serving(fetcher=fetcher) as client:
            answer = client.post(CHAT, json=url("https://images.test/star.png"))
            assert answer.status_code == 200
            refused = client.post(CHAT, json=url("http://localhost:8000/metrics"))
            assert refused.status_code == 400
            assert "localhost is not on the public internet" in message(refused)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "^Serving needs fastapi: pip install 'cof\\[serve\\]'.\n$"),
        ("-- --pp 2", "--pp is for vllm serve: add --engine vllm"),
        pytest.param(
            "--engine vllm",
            r"pip install 'cof\[vllm\]'",
            marks=pytest.mark.skipif(find_spec("vllm.version") is not None, reason="vLLM is here"),
        ),
    ],
)
def test_what_serving_needs(options: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cof.server.app")
    if not options:
        monkeypatch.setitem(sys.modules, "fastapi", None)
    result = CliRunner().invoke(commands, ["serve", "tiny", *options.split()])
    assert result.exit_code == 2
    assert re.search(sentence, result.stderr)
