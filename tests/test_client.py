"""The client against servers that are busy, away for a while, or something else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import ExifTags, Image

from cof.answer import Answer
from cof.client import RemoteCoF
from cof.errors import CofError, ServerError
from cof.images import embedded, load_image
from cof.settings import Settings
from cof.types import EncodedImage

IMAGE = Image.new("RGB", (8, 8))
MODELS = {"data": [{"id": "fake"}]}
Reply = tuple[int, Any]


@contextmanager
def serving(*replies: Reply) -> Iterator[str]:
    """A server that gives these replies, one after another; None: it hangs up."""
    waiting = iter(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content = next(waiting)
            if content is None:
                self.close_connection = True
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if data.startswith(b"data: "):
                self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
    assert next(waiting, None) is None, "not all of them were asked for"


def events(*pieces: str, last: Any = None, done: bool = True) -> bytes:
    """A streamed answer."""
    contents: list[Any] = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    contents += [] if last is None else [last]
    lines = [*map(json.dumps, contents), *(["[DONE]"] if done else [])]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


LOOK = Answer(image=IMAGE, question="", settings=Settings()).as_dict()
LAST = {"choices": [{"delta": {}}], "cof": LOOK}
UNENDED = {"choices": [{"delta": {"content": ""}, "finish_reason": None}]}
FAILED = {"error": {"message": "It failed."}}
BUSY = {"error": {"message": "Too many requests are waiting: ask again in a moment."}}


def test_it_asks_again_while_the_server_is_busy_or_away() -> None:
    replies = [(429, BUSY), (503, b"down"), (0, None), (502, b""), (200, MODELS)]
    with serving(*replies) as url, RemoteCoF(url) as remote:
        assert remote.model == "fake"


@pytest.mark.parametrize(
    ("replies", "sentence"),
    [
        ([(429, BUSY)], "Too many requests are waiting"),
        ([(0, None)], "cannot be reached"),
        ([(401, {"error": "Unauthorized"})], "Unauthorized"),  # vLLM's own
        ([(404, b"<html>")], "answered 404, so it is no cof serve"),
        ([(200, b"<html>")], "answered 200, so it is no cof serve"),
        ([(200, MODELS), (500, FAILED)], r"It failed\."),
        ([(200, MODELS), (200, {"choices": [{"message": {"content": "x"}}]})], "without looking"),
        ([(200, MODELS), (200, events("a", last=FAILED, done=False))], r"It failed\."),
        ([(200, MODELS), (200, events("a"))], "without looking"),
        ([(200, MODELS), (200, b"<html>")], "so it is no cof serve"),
        ([(200, MODELS), (200, {"choices": [{"finish_reason": "abort"}]})], "being stopped"),
        ([(200, MODELS), (200, events(last=UNENDED))], "being stopped"),  # vLLM's
    ],
)
def test_what_is_no_answer(replies: list[Reply], sentence: str) -> None:
    with serving(*replies) as url, pytest.raises(ServerError, match=sentence):  # noqa: SIM117
        with RemoteCoF(url, retry_s=0) as remote:
            remote(IMAGE, "What?", on_text=lambda _: None)


def test_a_stream_that_breaks_off_is_asked_for_again_and_nothing_is_told_twice() -> None:
    replies = [
        (200, MODELS),
        (429, BUSY),
        (200, events("a", " red", done=False)),
        (200, events("a", last={"error": {"message": "Bye.", "code": "stopping"}}, done=False)),
        (200, events("a red", " star", last=LAST)),
    ]
    told: list[str] = []
    with serving(*replies) as url, RemoteCoF(url) as remote:
        answer = remote(IMAGE, "What?", on_text=told.append)
    assert (answer.text, told) == ("a red star", ["a", " red", " star"])


def test_what_vllm_says_of_its_tokens() -> None:
    cof = {name: LOOK[name] for name in LOOK if name not in ("num_tokens", "answer_confidence")}
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    words = [(" a", 0.5), (" star", 0.125), ("</s>", 1.0)]
    tokens = [{"token": text, "logprob": math.log(p)} for text, p in words]
    whole = {"finish_reason": "stop", "message": {"content": " a star", "reasoning": "Hm."}}
    reply = {"choices": [{**whole, "logprobs": {"content": tokens}}], "usage": usage, "cof": cof}
    chunks: list[dict[str, Any]] = [
        {"delta": {"content": text * (text != "</s>")}, "logprobs": {"content": [token]}}
        for (text, _), token in zip(words, tokens, strict=True)
    ]
    chunks[0]["delta"]["reasoning"] = "Hm."
    chunks[-1]["finish_reason"] = "stop"
    stream: list[dict[str, Any]] = [{"choices": [chunk]} for chunk in chunks]
    stream[-1]["cof"] = cof
    lines = [*map(json.dumps, stream), json.dumps({"choices": [], "usage": usage}), "[DONE]"]
    events = "".join(f"data: {line}\n\n" for line in lines).encode()
    told: list[str] = []
    with serving((200, MODELS), (200, reply), (200, events)) as url, RemoteCoF(url) as remote:
        answers = [remote(IMAGE, "What?"), remote(IMAGE, "What?", on_text=told.append)]
    for answer in answers:
        assert (answer.text, answer.reasoning) == ("a star", "Hm.")
        assert (answer.num_tokens, answer.num_prompt_tokens) == (2, 9)
        assert answer.answer_confidence == pytest.approx(0.25)
    assert told == ["a", " star"]


def test_an_answer_that_differs_from_what_was_told_is_an_error() -> None:
    streams = [(200, events("a", done=False)), (200, events("b", last=LAST))]
    with serving((200, MODELS), *streams) as url, RemoteCoF(url) as remote:
        (answer,) = remote.batch([(IMAGE, "?")], on_error="return", on_text=lambda *_: None)
    assert "another text than the one sent" in answer.error


REFUSAL = {"error": {"message": "It is too much."}}


def test_a_refusal_lies_in_the_question_and_other_errors_in_the_server() -> None:
    statuses = (400, 401, 413, 500, 504)
    with serving((200, MODELS), *((status, REFUSAL) for status in statuses)) as url:  # noqa: SIM117
        with RemoteCoF(url, retry_s=0) as remote:
            for status in statuses:
                with pytest.raises(CofError, match="It is too much") as error:
                    remote(IMAGE, "What?")
                assert isinstance(error.value, ServerError) == (status != 400)
                assert (url in str(error.value)) == (status != 400)


def test_what_a_server_had_begun_is_sent_to_another() -> None:
    with serving((200, MODELS), (0, None)) as dies, serving((400, REFUSAL)) as lives:  # noqa: SIM117
        with RemoteCoF([dies, lives], retry_s=0) as remote:
            with pytest.raises(CofError, match=r"^It is too much\.$"):
                remote(IMAGE, "What?")


def test_a_chat_without_images() -> None:
    said = {"choices": [{"message": {"content": "x"}}], "cof": LOOK}
    with serving((200, MODELS), (200, said)) as url, RemoteCoF(url) as remote:
        assert remote.chat([{"role": "user", "content": "What?"}]).text == "x"


def test_an_image_is_made_ready_once() -> None:
    with serving((200, MODELS)) as url, RemoteCoF(url) as remote:
        encoded = remote.encode(IMAGE)
        assert encoded.pixels.startswith("data:image/png;base64,")
        assert remote._ready(encoded) is encoded
        here = remote._ready(EncodedImage(IMAGE, pixels=object()))  # as an engine makes it
        assert here.pixels == encoded.pixels


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    """So that a photo is no larger than it was, and the server sees the same as we do."""
    noise = Image.effect_noise((400, 300), 90).convert("RGB")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    files = {}
    for kind, more in {"JPEG": {"exif": turned}, "PNG": {}, "TIFF": {}}.items():
        files[kind] = tmp_path / f"noise.{kind.lower()}"
        noise.save(files[kind], kind, **more)
    photo = files["JPEG"].read_bytes()
    address = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    with serving((200, MODELS)) as url, RemoteCoF(url) as remote:
        for source in (files["JPEG"], str(files["JPEG"]), photo, address):
            sent = remote.encode(source)
            assert embedded(sent.pixels) == photo
            assert sent.size == (300, 400)  # upright, as the server will have it
            assert load_image(embedded(sent.pixels)).tobytes() == sent.image.tobytes()
        sizes = {kind: len(remote.encode(file).pixels) for kind, file in files.items()}
    assert sizes["JPEG"] < sizes["PNG"] / 2
    assert 0 < abs(sizes["TIFF"] - sizes["PNG"]) < sizes["PNG"] / 2  # as a PNG, written fast
