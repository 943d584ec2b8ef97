"""The client against servers that are busy, away for a while, or something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from cof.client import RemoteCoF
from cof.errors import CofError

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
        ([(404, b"<html>")], "answered 404, so it is no cof serve"),
        ([(200, b"<html>")], "answered 200, so it is no cof serve"),
        ([(200, MODELS), (500, {"error": {"message": "It failed."}})], r"It failed\."),
        ([(200, MODELS), (200, {"choices": [{"message": {"content": "x"}}]})], "without looking"),
    ],
)
def test_what_is_no_answer(replies: list[Reply], sentence: str) -> None:
    with serving(*replies) as url, pytest.raises(CofError, match=sentence):  # noqa: SIM117
        with RemoteCoF(url, retry_s=0) as remote:
            remote(IMAGE, "What?")
