"""`cof serve`, asked by programs that people have: what they get is what the pipeline answers here.

`make test-clients` runs them in an environment of their own.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("llm")

import openai
from langchain_openai import ChatOpenAI
from processes import KEY, ROOT, Server, free_port

from cof import CoF

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not errors

SCENES = [ROOT / "cof/demo" / f"scene-{number}.png" for number in (4, 6)]
QUESTION, LATER = "What letter is on the green square?", "What letter is on the yellow cross?"
TEXT, SYSTEM = {"type": "text", "text": QUESTION}, {"role": "system", "content": "Be brief."}


def image(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


ONE = user(image(SCENES[0]), TEXT)
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [ONE],
    "a system message": [SYSTEM, ONE],
    "a second turn": [ONE, {"role": "assistant", "content": "X"}, user({**TEXT, "text": LATER})],
    "two images": [user(*map(image, reversed(SCENES)), TEXT)],
    "no image": [{"role": "user", "content": QUESTION}],
}
EVERY_CHAT = pytest.mark.parametrize("name", CHATS)
LOOKS = pytest.mark.parametrize("extra_body", [{}, {"cof": {}}], ids=["plain", "cof"])
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server(free_port())
    running.start()
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def local() -> CoF:
    return CoF.from_pretrained("tiny-early")


def here(local: CoF, messages: list[dict[str, Any]], *, looks: bool) -> str:
    """The answer of the pipeline in this process."""
    load = {image(path)["image_url"]["url"]: str(path) for path in SCENES}
    own = [
        {**message, "content": [_own(part, load) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]
    answer = local.chat(own)
    return answer.text if looks else answer.plain()


def _own(part: dict[str, Any], load: dict[str, str]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    return {"type": "image", "path": load[part["image_url"]["url"]]}


def test_looking_changes_the_answer(local: CoF) -> None:
    assert [here(local, [ONE], looks=looks) for looks in (False, True)] == ["X", "C"]


@EVERY_CHAT
@LOOKS
@STREAMS
def test_openai(
    name: str, extra_body: dict[str, Any], stream: bool, server: Server, local: CoF
) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        ask: dict[str, Any] = {"model": "tiny-early", "messages": CHATS[name], "stream": stream}
        if stream:
            ask["stream_options"] = {"include_usage": True}
        made: Any = client.chat.completions.create(**ask, extra_body=extra_body)
        if stream:
            *chunks, last = made
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            look, usage = getattr(chunks[-1], "cof", None), last.usage
        else:
            text, usage = made.choices[0].message.content, made.usage
            look = getattr(made, "cof", None)
    assert text == here(local, CHATS[name], looks=bool(extra_body))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (look is not None) == bool(extra_body)
    if look:
        assert bool(look["boxes"]) == (name != "no image")


def test_openai_and_models(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        assert client.models.retrieve("tiny-early").id == "tiny-early"
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here"):
            client.models.retrieve("gpt-4")


@EVERY_CHAT
@LOOKS
@STREAMS
def test_langchain(
    name: str, extra_body: dict[str, Any], stream: bool, server: Server, local: CoF
) -> None:
    model: Any = ChatOpenAI(
        model="tiny-early", base_url=f"{server.url}/v1", api_key=KEY, extra_body=extra_body or None
    )
    if stream:
        text = "".join(chunk.text for chunk in model.stream(CHATS[name]))
    else:
        text = model.invoke(CHATS[name]).text
    assert text == here(local, CHATS[name], looks=bool(extra_body))


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Any:
    """The command `llm`, which has no way to send `cof`: its answers are the plain model's."""
    model = {"model_id": "tiny", "model_name": "tiny-early", "api_base": f"{server.url}/v1"}
    models = [{**model, "api_key_name": "cof", "vision": True}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"cof": KEY}))

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("how", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_llm(how: list[str], llm: Any, local: CoF) -> None:
    shown = ["-a", str(SCENES[0])]
    first = user(TEXT, image(SCENES[0]))  # it puts the text first
    said = llm("-m", "tiny", *how, *shown, QUESTION)
    assert said == here(local, [first], looks=False)
    second = [first, {"role": "assistant", "content": said}, {"role": "user", "content": LATER}]
    assert llm("-c", *how, LATER) == here(local, second, looks=False)
    both = user(TEXT, *map(image, SCENES))
    said = llm("-m", "tiny", *how, "-s", SYSTEM["content"], *shown, "-a", str(SCENES[1]), QUESTION)
    assert said == here(local, [SYSTEM, both], looks=False)
