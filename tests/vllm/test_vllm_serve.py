"""`cof serve --engine vllm` as processes of their own, two engines in parallel, asked over loopback
and held against the transformers engine in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.version")

import httpx2
import openai
from PIL import ExifTags, Image
from processes import KEY, Server, free_port
from test_serve import QUESTION, SCENES, chat, told
from typer.testing import CliRunner

from cof import CoF, CofError, Decoding, Query, Settings
from cof.cli import app
from cof.client import RemoteCoF
from cof.images import data_url
from cof.messages import SYSTEMS
from cof.prompting.dialects import fill
from cof.query import Sample

VLLM = ["--max-model-len", "512", "--kv-cache-memory-bytes", "64M"]
ENGINES = ["--data-parallel-size", "2", "--api-server-count", "1", "--block-size", "32"]
SHORT = Decoding(max_new_tokens=8)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Compiled, as it is for users; the other tests' engines are not."""
    ours = ["--engine", "vllm", "--dtype", "float32", "--strength", "8"]
    limits = ["--max-pixels", "1000000", "--max-images", "2"]
    running = Server(free_port(), [*ours, *limits, "--", *VLLM, *ENGINES])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHDYNAMO_DISABLE")
        running.start()
    running.wait(300)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def remote(server: Server) -> Iterator[RemoteCoF]:
    with CoF.connect(server.url, api_key=KEY) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def local() -> CoF:
    return CoF.from_pretrained("tiny-early", dtype="float32", strength=8.0)


def queries() -> list[Query]:
    """Questions that differ in image, region and settings."""
    return [
        Query(SCENES[0], QUESTION),
        Query(SCENES[0], "What digit is on the red star?", strength=4.0),
        Query(SCENES[1], QUESTION, boxes=[(0.25, 0.125, 0.5, 0.75)]),
        Query(SCENES[2], QUESTION, polygon=[(0.1, 0.1), (0.9, 0.1), (0.5, 0.8)]),
        Query(SCENES[3], QUESTION),
        Query(SCENES[3], QUESTION, settings=Settings(grounder="whole", scope="all")),
        Query(SCENES[4], QUESTION, settings=Settings(boxes="template", expand=2.0)),
        Query(SCENES[4], QUESTION, settings=Settings(layers=(1, 2), heads=(0,))),
        Query(SCENES[5], QUESTION, settings=Settings(focus="none")),
        Query(SCENES[5], QUESTION, settings=Settings(grounder="attention")),
        Query(SCENES[2], QUESTION, settings=Settings(grounder="attention", grounder_layers=(2, 5))),
        Query(SCENES[3], QUESTION, grounding_question="Where is the yellow cross?"),
    ]


def succeeded(server: Server) -> list[float]:
    """How many requests each engine has answered."""
    name = 'vllm:request_success_total{engine="%d",finished_reason="%s",model_name="tiny-early"}'
    ended = ("stop", "length")
    return [sum(server.metric(name % (rank, how)) for how in ended) for rank in (0, 1)]


PREFIX_TOKENS = [
    f'cof_prefix_cache_{what}_total{{stage="{stage}"}}'
    for stage in ("ground", "answer")
    for what in ("queries", "hits")
]


def post(server: Server, path: str, body: bytes, key: str = KEY) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    reply = httpx2.post(server.url + path, content=body, headers=headers, timeout=60)
    return reply.status_code, reply.text


def test_each_engine_has_looked_before_the_first_request(server: Server) -> None:
    assert succeeded(server) == [1, 1]


def test_the_same_answers_as_transformers(remote: RemoteCoF, local: CoF) -> None:
    asked = queries() * 3
    theirs = remote.batch(asked, decoding=SHORT, batch_size=8)
    ours = local.batch(asked, decoding=SHORT)
    assert [told(answer) for answer in theirs] == [told(answer) for answer in ours]
    for their, our in zip(theirs, ours, strict=True):
        assert their.confidence == pytest.approx(our.confidence, abs=1e-5)
        assert their.answer_confidence == pytest.approx(our.answer_confidence, abs=1e-4)
    assert [answer.plain() for answer in theirs[::3]] == [answer.plain() for answer in ours[::3]]
    assert len({answer.text for answer in ours}) > 3


def test_both_stages_go_to_one_engine_in_parallel(server: Server, remote: RemoteCoF) -> None:
    stages = ("cof_ground_seconds_count", "cof_answer_seconds_count")
    before, told = succeeded(server), [server.metric(stage) for stage in stages]
    tokens = [server.metric(name) for name in PREFIX_TOKENS]
    hits = 'vllm:prefix_cache_hits_total{engine="%d",model_name="tiny-early"}'
    found = [server.metric(hits % rank) for rank in (0, 1)]
    for number in range(6):  # stage 2 finds the prefix that stage 1 has left
        seen = Image.new("RGB", (160, 160), (number, 200, 90))
        assert remote(seen, QUESTION, decoding=SHORT).grounding_text
    answered = [after - past for after, past in zip(succeeded(server), before, strict=True)]
    assert answered == [6, 6]
    assert [server.metric(stage) for stage in stages] == [count + 6 for count in told]
    for rank, past in enumerate(found):
        assert server.metric(hits % rank) - past >= 3 * 32
    grown = zip(map(server.metric, PREFIX_TOKENS), tokens, strict=True)
    asked, first, answered_tokens, second = (after - past for after, past in grown)
    assert (first, second) == (0, 6 * 96)  # the image's last whole block; these images are new
    assert 6 * 100 < asked < answered_tokens + 6 * 10


def test_requests_without_cof_are_vllms(client: openai.OpenAI, local: CoF) -> None:
    image = local(SCENES[3], QUESTION).image
    reply = client.chat.completions.create(
        **chat(image=image), temperature=0, max_tokens=8, logprobs=True, top_logprobs=2
    )
    plain = local.batch([Query(image, QUESTION, settings=Settings(focus="none"))], decoding=SHORT)
    (choice,) = reply.choices
    assert choice.message.content.strip() == plain[0].text
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2, 2]
    assert reply.usage is not None
    assert not hasattr(reply, "cof")


@pytest.mark.parametrize("cof", [None, {"boxes": [[0, 0, 1, 1]]}], ids=["plain", "cof"])
@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("file:///etc/hostname", "data: URL"),
        ("http://127.0.0.1/x.png", "fetches no addresses"),
        ("data:image/png;base64,AAAA", "is not an image"),
        (Image.new("RGB", (1200, 1000)), "1200x1000 pixels"),
    ],
    ids=["file", "address", "damaged", "large"],
)
def test_bad_images(server: Server, image: Any, sentence: str, cof: Any) -> None:
    body = json.dumps(chat(image=image) | ({"cof": cof} if cof else {})).encode()
    status, reply = post(server, "/v1/chat/completions", body)
    assert status == (413 if "pixels" in sentence else 400)
    assert sentence in json.loads(reply)["error"]["message"]


def test_routes_and_keys(server: Server) -> None:
    ask = json.dumps(chat(image=Image.new("RGB", (64, 64)))).encode()
    assert post(server, "/invocations", ask)[0] == 404
    assert post(server, "/scale_elastic_ep", b"{}")[0] == 404
    assert post(server, "/v1/chat/completions", ask, key="wrong")[0] == 401
    with_cof = json.dumps(json.loads(ask) | {"cof": {}}).encode()
    assert post(server, "/v1/chat/completions", with_cof, key="wrong")[0] == 401
    assert post(server, "/v1/chat/completions", b'{"cof": ')[0] in (400, 422)
    assert post(server, "/v1/chat/completions", b" " * (2**20 * 28))[0] == 413
    assert post(server, "/v1/completions", b'{"model": "tiny-early", "prompt": "A"}')[0] == 200


def test_what_vllm_cannot_do_is_said(remote: RemoteCoF) -> None:
    for settings in (Settings(grounder="relevance"), Settings(focus="contrast")):
        with pytest.raises(CofError):
            remote.batch([Query(SCENES[0], QUESTION, settings=settings)])
    remote._servers._retry_s = 0
    with pytest.raises(CofError, match="vLLM refuses"):
        remote(SCENES[0], "why " * 600)
    assert remote(SCENES[0], QUESTION).text


@pytest.mark.parametrize("cof", [None, {"strength": 4.0}], ids=["plain", "cof"])
def test_streaming(client: openai.OpenAI, local: CoF, cof: Any) -> None:
    image = local(SCENES[3], QUESTION).image
    question, _ = fill(local.engine.dialect.template, "it")
    body = chat(question, image) | {"temperature": 0, "max_tokens": 24}
    extra = {"cof": cof} if cof else {}
    whole = client.chat.completions.create(**body, extra_body=extra)
    chunks = list(client.chat.completions.create(**body, extra_body=extra, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 1  # vLLM joins steps that a busy listener has not yet taken
    assert (getattr(chunks[-1], "cof", None) is not None) == bool(cof)


def part(image: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image}}


def file_url(image: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(data.getvalue()).decode()


def files() -> dict[str, str]:
    """A scene as files whose pixels vLLM would show as we do, or otherwise."""
    scene = Image.open(SCENES[3]).convert("RGB")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    clear = scene.convert("RGBA")
    clear.putalpha(200)
    return {
        "webp": file_url(scene, "WEBP", lossless=True),
        "turned": file_url(scene, "JPEG", exif=turned, quality=95),
        "clear": file_url(clear, "PNG"),
        "palette": file_url(scene.convert("P"), "PNG"),
        "wide": file_url(scene.crop((0, 0, 480, 300)), "PNG"),
    }


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [part(data_url(Image.open(SCENES[3]))), "What is it?"]},
    {"role": "assistant", "content": "A star."},
    {"role": "user", "content": QUESTION},
]
TWO = [
    {"role": "user", "content": [part(url), {"type": "text", "text": QUESTION}]}
    for url in (data_url(Image.open(SCENES[3])), data_url(Image.open(SCENES[1])))
]
TWO.insert(1, {"role": "assistant", "content": "C"})


CHATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "turns": (TURNS, {}),
    "two images": (TWO, {}),
    "the first of two": (TWO, {"image": 0, "scope": "all"}),
    "soft": (TWO, {"boxes": [[0.1, 0.1, 0.5, 0.5]], "focus": "soft", "system": "Be brief."}),
    "no image": (TURNS[3:], {}),
    "crop": (TWO, {"image": 0, "focus": "crop"}),
    "beside": (TURNS, {"focus": "beside"}),
    "dimmed": (TWO, {"boxes": [[0.1, 0.1, 0.5, 0.5]], "focus": "overlay", "overlay": "dim"}),
} | {
    name: ([{"role": "user", "content": [part(url), QUESTION]}], {})
    for name, url in files().items()
}


@pytest.mark.parametrize(("messages", "cof"), CHATS.values(), ids=CHATS)
def test_chats_have_the_answers_of_transformers(
    client: openai.OpenAI, local: CoF, messages: Any, cof: dict[str, Any]
) -> None:
    about = {**cof}
    given = {name: about.pop(name) for name in ("image", "boxes") if name in about}
    settings = local.settings.changed(**about)
    decoding = Decoding(max_new_tokens=8)
    query = Query(messages=messages, settings=settings, **given)
    (ours,) = local.batch([query], decoding=decoding)
    told = client.chat.completions.create(
        model="tiny-early",
        messages=messages,
        temperature=0,
        max_tokens=8,
        logprobs=True,
        extra_body={"cof": cof},
    )
    (choice,) = told.choices
    assert choice.message.content.strip() == ours.text
    logprobs = [token.logprob for token in choice.logprobs.content]
    assert logprobs[: len(ours.logprobs)] == pytest.approx(ours.logprobs, abs=1e-3)
    assert told.cof["boxes"] == [list(box) for box in ours.boxes]
    assert told.cof["settings"] == json.loads(json.dumps(ours.settings.as_dict()))
    assert told.usage.prompt_tokens == ours.num_prompt_tokens


def test_everything_of_vllms_own_goes_with_cof(
    server: Server, client: openai.OpenAI, local: CoF
) -> None:
    def ask(**more: Any) -> Any:
        asked = {**chat(), "temperature": 0, "max_tokens": 8, "extra_body": {"cof": {}}}
        return client.chat.completions.create(**{**asked, **more})

    ours = local(SCENES[3], QUESTION, decoding=SHORT)
    two = ask(n=2, temperature=0.01)
    assert [choice.message.content.strip() for choice in two.choices] == [ours.text] * 2
    assert two.cof["raw_boxes"] == [list(box) for box in ours.raw_boxes]
    (top,) = ask(logprobs=True, top_logprobs=3).choices
    assert [len(token.top_logprobs) for token in top.logprobs.content] == [3, 3]
    assert top.logprobs.content[0].logprob == pytest.approx(ours.logprobs[0], abs=1e-3)
    own: dict[str, Any] = {"boxes": [[0.2, 0.2, 0.3, 0.3]], "strength": 64.0}
    beams = ask(n=2, extra_body={"cof": own, "use_beam_search": True}).choices
    best = local(SCENES[3], QUESTION, **own, decoding=Decoding(num_beams=2, max_new_tokens=8))
    assert beams[0].message.content.strip() == best.text != best.plain()
    schema = {"name": "answer", "schema": {"type": "string", "enum": ["red", "blue"]}}
    (held,) = ask(
        response_format={"type": "json_schema", "json_schema": schema}, max_tokens=16
    ).choices
    assert json.loads(held.message.content) in ("red", "blue")
    (cut,) = ask(stop=ours.text).choices
    assert (cut.message.content.strip(), cut.stop_reason) == ("", ours.text)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    counted = server.metric(PREFIX_TOKENS[2])
    chunks = list(ask(n=2, temperature=0.01, **usage))
    assert server.metric(PREFIX_TOKENS[2]) - counted == chunks[-1].usage.prompt_tokens
    looks = [chunk for chunk in chunks if hasattr(chunk, "cof")]
    assert [chunk.choices[0].finish_reason for chunk in looks] == ["stop"]
    assert looks == [chunk for chunk in chunks if chunk.choices][-1:]
    assert chunks[-1].usage.completion_tokens == 2 * (ours.num_tokens + 1)
    assert ask(extra_body={"cof": {}, "vllm_xargs": {"mine": "1"}}).cof["found"]
    call = {"name": "read", "arguments": "{}"}
    tools = [
        {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "x", "content": "7"},
    ]
    assert ask(messages=[*chat()["messages"], *tools]).cof["boxes"] == two.cof["boxes"]
    with pytest.raises(openai.BadRequestError, match="vllm_xargs"):
        ask(extra_body={"cof": {}, "vllm_xargs": "mine"})
    with pytest.raises(openai.BadRequestError, match="changes what the model sees"):
        ask(extra_body={"cof": {}, "mm_processor_kwargs": {"do_pad": False}})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(temperature=-1)
    with pytest.raises(openai.NotFoundError):
        ask(model="another")
    several = {"focus": "contrast", "max_plain_confidence": 0.5, "grounder": "prompt+whole"}
    for name, value in several.items():
        with pytest.raises(openai.BadRequestError, match="one request is one answer"):
            ask(extra_body={"cof": {name: value}})


def test_refusals_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*options: str) -> str:
        result = CliRunner().invoke(app, ["serve", "tiny-early", "--engine", "vllm", *options])
        assert result.exit_code == 2
        return result.stderr

    assert "--device is for the transformers engine" in refused("--device", "cpu")
    assert "nope" in refused("--grounder", "none", "--preset", "nope")
    assert "one request is one answer" in refused("--focus", "contrast")
    none = metadata.EntryPoints()
    monkeypatch.setattr("cof.server.vllm_app.entry_points", lambda group: none)
    assert "has no vllm.endpoint_plugins" in refused()


def test_what_was_begun_is_answered_when_the_server_is_stopped(server: Server, local: CoF) -> None:
    """The last test of this server: it is stopped as soon as one of the answers has begun."""
    asked, first = queries()[:4] * 4, Event()
    with CoF.connect(server.url, api_key=KEY) as remote, ThreadPoolExecutor(16) as pool:
        remote._servers._retry_s = 0
        how: Any = {"decoding": SHORT, "on_text": lambda *_: first.set()}
        begun = [pool.submit(remote.batch, [query], **how) for query in asked]
        assert first.wait(30)
        server.process.send_signal(signal.SIGTERM)
        outcomes = [future.exception() or future.result()[0].text for future in begun]
    expected = [answer.text for answer in local.batch(asked, decoding=SHORT)]
    assert any(isinstance(outcome, str) for outcome in outcomes)
    for outcome, text in zip(outcomes, expected, strict=True):
        assert outcome == text or isinstance(outcome, CofError), outcome
    assert server.process.wait(60) is not None


def test_the_system_message_of_the_settings_is_sent_as_text() -> None:
    """Not as its name."""
    from cof.server.vllm_chat import write_body

    asked = [{"role": "user", "content": "what?"}]
    query = Query(messages=asked, settings=Settings(system="vicuna_v1"))
    sample = Sample.from_query(query, Settings(), False, {})
    tokenizer = SimpleNamespace(bos_token=None)
    engine: Any = SimpleNamespace(
        processor=SimpleNamespace(tokenizer=tokenizer),
        chat=SimpleNamespace(text=lambda request: ""),
    )
    fields = {"messages": list(asked), "cof": {}}
    body = json.loads(write_body(fields, sample.request, sample.request, engine))
    assert body["messages"] == [{"role": "system", "content": SYSTEMS["vicuna_v1"]}, *asked]


def test_what_vllm_never_answers_ends_with_its_engine() -> None:
    """A request that comes as the engine is stopped; the app is shut down in its own time."""
    from cof.engines.vllm.clients import RequestAborted
    from cof.server.vllm_app import Gate

    async def late(*_: object) -> None:
        await asyncio.sleep(3)

    async def ask(kind: str) -> None:
        engine = SimpleNamespace(output_handler=asyncio.ensure_future(asyncio.sleep(0.1)))
        app = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
        scope = {"type": kind, "method": "GET", "path": "/v1/models", "app": app}
        unused: Any = late
        await Gate(late)(scope, unused, unused)

    with pytest.raises(RequestAborted, match="being stopped"):
        asyncio.run(ask("http"))
    asyncio.run(ask("lifespan"))
