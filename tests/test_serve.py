"""`cof serve` as a process of its own, asked over loopback, against the pipeline in this one."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from processes import KEY, ROOT, Server, free_port

from cof import Answer, CoF, CofError, Decoding, Query, Settings
from cof.client import RemoteCoF
from cof.images import data_url

SCENES = sorted((ROOT / "cof/demo").glob("scene-*.png"))
CHAT = "/v1/chat/completions"
QUESTION = "What letter is on the green square?"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server(free_port(), ["--max-batch", "4", "--max-queue", "6", "--allow-url"])
    running.start()
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def remote(server: Server) -> Iterator[RemoteCoF]:
    with CoF.connect(server.url, api_key=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def local() -> CoF:
    return CoF.from_pretrained("tiny-early")


def image(path: Path) -> dict[str, str]:
    return {"type": "image", "path": str(path)}


def queries() -> list[Query]:
    """Questions that differ in image, region and settings."""
    return [
        Query(SCENES[0], QUESTION),
        Query(SCENES[0], "What digit is on the red star?", strength=4.0),
        Query(SCENES[1], QUESTION, boxes=[(0.25, 0.125, 0.5, 0.75)]),
        Query(SCENES[2], QUESTION, polygon=[(0.1, 0.1), (0.9, 0.1), (0.5, 0.8)]),
        Query(SCENES[3], QUESTION, settings=Settings(grounder="attention", strength=8.0)),
        Query(SCENES[3], QUESTION, settings=Settings(grounder="whole")),
        Query(SCENES[3], QUESTION, settings=Settings(grounder="prompt+attention", focus="soft")),
        Query(SCENES[4], QUESTION, settings=Settings(boxes="template", expand=2.0)),
        Query(SCENES[5], QUESTION, settings=Settings(focus="none")),
        Query(SCENES[3], QUESTION, grounding_question="Where is the yellow cross?"),
        Query(
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [image(SCENES[3]), "What is it?"]},
                {"role": "assistant", "content": "A star."},
                {"role": "user", "content": [image(SCENES[1]), QUESTION]},
            ]
        ),
    ]


def told(answer: Answer) -> dict[str, Any]:
    """What travels, but the times."""
    names = "text boxes raw_boxes found grounder grounding_text reason settings num_tokens error"
    return {name: getattr(answer, name) for name in names.split()}


def test_the_same_answers_as_in_this_process(remote: RemoteCoF, local: CoF) -> None:
    decoding = Decoding(max_new_tokens=8)
    theirs = remote.batch(queries(), decoding=decoding)
    ours = local.batch(queries(), decoding=decoding)
    assert [told(answer) for answer in theirs] == [told(answer) for answer in ours]
    for their, our in zip(theirs, ours, strict=True):
        assert their.confidence == pytest.approx(our.confidence, abs=1e-4)
        assert their.answer_confidence == pytest.approx(our.answer_confidence, abs=1e-4)
        assert our.answer_confidence
        assert (their.region is None) == (our.region is None)
        if their.region and our.region:
            assert (their.region.boxes, their.region.whole) == (our.region.boxes, our.region.whole)
        assert their.image.tobytes() == our.image.tobytes()
    assert [answer.plain() for answer in theirs[::4]] == [answer.plain() for answer in ours[::4]]
    assert len({answer.text for answer in ours}) > 3
    sampled = Decoding(max_new_tokens=4, temperature=3.0, seed=5)
    theirs = remote.batch([(scene, QUESTION) for scene in SCENES[:3]], decoding=sampled)
    for their, scene in zip(theirs, SCENES[:3], strict=True):
        assert their.text == local(scene, QUESTION, decoding=sampled).text


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as made:
        yield made


BOX_QUESTION = f"{QUESTION}\nWhere?"  # the reply is four tokens
PLAIN = Settings(focus="none")


def chat(question: str = QUESTION, image: Any = None) -> dict[str, Any]:
    """A request in OpenAI's format, about the fourth scene, another image, or one at an address."""
    url = image if isinstance(image, str) else data_url(image or Image.open(SCENES[3]))
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": "tiny-early", "messages": [{"role": "user", "content": content}]}


def test_the_openai_package(client: openai.OpenAI, local: CoF) -> None:
    (model,) = client.models.list()
    answer, create = local(SCENES[3], QUESTION), client.chat.completions.create
    assert model.id == "tiny-early"
    assert create(**chat()).choices[0].message.content == answer.plain() != answer.text
    focused: Any = create(**chat(), extra_body={"cof": {}})
    assert focused.choices[0].message.content == answer.text
    assert focused.cof["boxes"] == [list(box) for box in answer.boxes]

    chunks: list[Any] = list(create(**chat(BOX_QUESTION), stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) == 4
    heard: list[str] = []
    CoF(local.engine, PLAIN)(SCENES[3], BOX_QUESTION, on_text=heard.append)
    assert pieces == heard
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]

    *first, last = create(**chat(BOX_QUESTION), stream=True, extra_body={"cof": {}})
    closer = local(SCENES[3], BOX_QUESTION)
    assert "".join(chunk.choices[0].delta.content for chunk in first) == closer.text
    assert last.cof["boxes"] == [list(box) for box in closer.boxes]

    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        create(**chat(), n=2)
    with pytest.raises(openai.BadRequestError, match="layers"):
        create(**chat(), stream=True, extra_body={"cof": {"layers": [99]}})
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        client.with_options(api_key="wrong").models.list()


def test_streaming_by_connect(remote: RemoteCoF) -> None:
    decoding = Decoding(max_new_tokens=8)
    asked = [*queries(), Query(SCENES[3], BOX_QUESTION, settings=PLAIN)]
    heard: dict[int, list[str]] = {number: [] for number in range(len(asked))}
    answers = remote.batch(
        asked, decoding=decoding, on_text=lambda place, piece: heard[place].append(piece)
    )
    assert ["".join(pieces) for pieces in heard.values()] == [answer.text for answer in answers]
    assert len(heard[len(asked) - 1]) == 4
    again = remote.batch(asked, decoding=decoding)
    assert [told(answer) for answer in answers] == [told(answer) for answer in again]

    class Stop(Exception):
        pass

    def stop(piece: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        remote(SCENES[3], BOX_QUESTION, on_text=stop)
    with pytest.raises(CofError, match="layer"):
        remote.batch([Query(SCENES[0], QUESTION, settings=Settings(layers=(99,)))], on_text=print)


def test_clients_that_leave_while_text_is_streamed(
    server: Server, remote: RemoteCoF, local: CoF
) -> None:
    ask = {**chat(BOX_QUESTION), "stream": True}
    asked = [Query(scene, QUESTION) for scene in SCENES[:4]]
    with ThreadPoolExecutor() as pool:
        stay = pool.submit(remote.batch, asked, batch_size=2)
        for _ in range(4):
            with remote._http.stream("POST", f"{server.url}{CHAT}", json=ask) as leaves:
                assert next(leaves.iter_lines()).startswith("data: ")
        answers = stay.result(60)
    assert [told(answer) for answer in answers] == [told(answer) for answer in local.batch(asked)]
    ends = time.monotonic() + 10
    while server.metric("cof_under_way") > 0:
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_what_the_documentation_shows(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/serving.md").read_text("utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        own = block.replace("http://127.0.0.1:8000", server.url).replace('"none"', f'"{KEY}"')
        exec(own, names)
    names["client"].close()
    first, _, last = capsys.readouterr().out.splitlines()
    assert (first, last[:4]) == ("X C", "C X ")


def test_what_the_client_refuses(remote: RemoteCoF, server: Server) -> None:
    mask = Image.new("L", (8, 8), 255)
    failing = [
        Query(SCENES[0], " "),
        Query("nowhere.png", QUESTION),
        Query(SCENES[0], QUESTION, mask=mask),
        Query(SCENES[0], QUESTION, settings=Settings(layers=(99,))),
    ]
    answers = remote.batch([*failing, Query(SCENES[0], QUESTION)], on_error="return")
    errors = [answer.error for answer in answers]
    for error, sentence in zip(
        errors,
        ["question is empty", "no image file nowhere.png", "Masks do not travel", "layer", "^$"],
        strict=True,
    ):
        assert re.search(sentence, error)
    with pytest.raises(CofError, match="layer"):
        remote.batch(failing[-1:])
    with pytest.raises(CofError, match="without num_beams"):
        remote(SCENES[0], QUESTION, decoding=Decoding(num_beams=2))
    with pytest.raises(CofError, match="API key is missing or wrong"):
        CoF.connect(server.url, api_key="wrong")
    with pytest.raises(CofError, match="no option 'lambda'"):
        CoF.connect(server.url, **{"lambda": 2})
    with pytest.raises(CofError, match=r"cannot be asked: .*'gopher://'\.$"):
        CoF.connect("gopher://127.0.0.1")


def test_a_port_that_is_taken(server: Server) -> None:
    command = [sys.executable, "-m", "cof.cli", "serve", "tiny-early", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    told = f"Port {server.port} of 127.0.0.1 cannot be used: choose another --port."
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, told)


def test_no_private_address_is_fetched(remote: RemoteCoF, server: Server) -> None:
    for address in (server.url, "http://localhost/", "http://2130706433/", "http://[::1]:80/"):
        with pytest.raises(CofError, match="is not on the public internet"):
            remote._ask("POST", CHAT, chat(image=address))


def test_slow_and_broken_clients_hold_up_nobody(remote: RemoteCoF, server: Server) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Length: 5000\r\n\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for connection in slow[:10]:
        connection.sendall(head.encode() + b'{"model"')
    for data in (b"\x00\xff\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", head.encode()):
        with socket.create_connection(("127.0.0.1", server.port)) as broken:
            broken.sendall(data)
    assert remote(SCENES[3], QUESTION).text == "C"
    for connection in slow:
        connection.close()
    assert remote(SCENES[3], QUESTION).text == "C"


def test_nothing_is_lost_or_done_twice_when_the_server_is_killed(
    server: Server, remote: RemoteCoF, local: CoF
) -> None:
    """Nor when it is told to stop: it answers what it has begun. (The last test: it ends it.)"""
    quick = Settings(boxes="template")
    questions = (QUESTION, "What digit is on the red star?", "What letter is on the blue circle?")
    asked = [Query(scene, text, settings=quick) for text in questions for scene in SCENES]
    before = server.metric("cof_batch_size_sum")
    with ThreadPoolExecutor() as pool:
        batch = pool.submit(remote.batch, asked)
        while server.metric("cof_batch_size_sum") < before + 4:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert not batch.done()
        server.start()
        server.wait()
        answers = batch.result(60)

        begun = pool.submit(remote.batch, queries()[:4])
        while server.metric("cof_under_way") < 4:
            assert not begun.done()
        server.process.send_signal(signal.SIGTERM)
        last = begun.result(60)
        assert server.process.wait(30) in (0, -signal.SIGTERM)
    assert [told(answer) for answer in answers] == [told(answer) for answer in local.batch(asked)]
    assert [told(answer) for answer in last] == [
        told(answer) for answer in local.batch(queries()[:4])
    ]
