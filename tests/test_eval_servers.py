"""A benchmark through `cof serve` processes that are killed on the way, against the runner here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import formats
import pytest
from processes import KEY, ROOT, Server, free_port
from typer.testing import CliRunner, Result

from cof import CoF, CofError, Settings, cli
from cof.client import RemoteCoF
from cof.eval.data.base import Benchmark
from cof.eval.data.pope import POPE
from cof.eval.data.scenes import Scenes
from cof.eval.data.vstar import VStar
from cof.eval.methods import PLAIN, Method
from cof.eval.runner import Runner
from cof.eval.store import Store
from cof.images import data_url
from cof.tiny.benchmark import write_benchmark

BASE = Settings(expand=1.6, strength=16.0, scope="text")
TWO_LOOKS = BASE.changed(grounder="prompt+attention")
METHODS = [
    PLAIN,
    Method(BASE.changed(grounder="whole")),
    Method(BASE),
    Method(BASE, "oracle"),
    Method(BASE, "random"),
]
MANY = [
    *METHODS,
    Method(TWO_LOOKS),
    Method(TWO_LOOKS.changed(max_plain_confidence=0.8)),
    Method(BASE.changed(max_plain_confidence=0.5, released=True)),
    Method(BASE.changed(boxes="template", focus="soft")),
    Method(BASE.changed(focus="crop", expand=2.0)),
    Method(BASE.changed(strength=1.0)),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    servers = [Server(free_port(), ["--max-batch", "8"]) for _ in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        server.wait()
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """12 questions about two scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_benchmark(folder, "test", num_objects=(4, 8), scenes=1)
    return Scenes(folder, prompt_style="tiny", limit=12)


@pytest.fixture(scope="module")
def local(task: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the model in this process answers."""
    engine = CoF.from_pretrained("tiny-early").engine
    path = tmp_path_factory.mktemp("local") / "a.jsonl"
    return Runner(engine, task, path).run(MANY, [TWO_LOOKS])


@contextmanager
def asking(
    servers: list[Server], task: Benchmark, path: Path, *, retry_s: float = 120.0
) -> Iterator[Runner]:
    urls = [server.url for server in servers]
    with RemoteCoF(urls, api_key=KEY, retry_s=retry_s) as remote:
        yield Runner(remote, task, path, batch_size=4)


def check_same(store: Store, other: Store) -> None:
    """The same records, each once, in the same order."""
    assert order(store) == order(other)
    assert max(Counter(order(store)).values()) == 1
    for record in other.values():
        same = store[record.method, record.id]
        assert replace(same, confidence=None) == replace(record, confidence=None)
        assert same.confidence == pytest.approx(record.confidence, abs=1e-3)


def order(store: Store) -> list[tuple[str, str]]:
    lines = map(json.loads, store.path.read_bytes().splitlines())
    return [(line["method"], line["id"]) for line in lines]


def count_records(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(path: Path, records: int) -> None:
    ends = time.monotonic() + 60
    while count_records(path) < records:
        assert time.monotonic() < ends
        time.sleep(0.01)


def asked(servers: list[Server]) -> float:
    """How many requests the servers have answered."""
    return sum(server.metric("cof_batch_size_sum") for server in servers)


def test_the_store_is_that_of_the_model_here(
    pair: list[Server],
    task: Scenes,
    local: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[int] = []
    sent: list[object] = []
    monkeypatch.setattr("cof.client.data_url", lambda of: sent.append(of) or data_url(of))
    with asking(pair, task, tmp_path / "a.jsonl") as run:
        check_same(run.run(MANY, [TWO_LOOKS], done.append), local)
        assert {example.image.read_bytes() for example in task.examples} == {*sent}
        assert sum(done) == len(task.examples)
        assert all(server.metric("cof_batch_size_sum") > 0 for server in pair)
        before = asked(pair)
        run.run(MANY, [TWO_LOOKS], done.append)
        assert asked(pair) == before
        assert sum(done) == 2 * len(task.examples)


def test_refused_questions_are_those_of_the_model_here(pair: list[Server], tmp_path: Path) -> None:
    formats.pope(tmp_path / "data")
    pope = POPE(tmp_path / "data", prompt_style="tiny")
    long, damaged = pope.examples[0], pope.examples[-1]
    pope.examples[0] = replace(long, prompt="7" * 3900)
    assert isinstance(damaged.image, Path)
    damaged.image.write_bytes(damaged.image.read_bytes()[:200])
    engine = CoF.from_pretrained("tiny-early").engine
    methods = [PLAIN, Method(BASE), Method(BASE.changed(max_plain_confidence=0.5))]
    here = Runner(engine, pope, tmp_path / "here.jsonl").run(methods, [BASE])
    with asking(pair, pope, tmp_path / "there.jsonl") as run:
        check_same(run.run(methods, [BASE]), here)
        errors = {record.error for record in here.values()}
        assert len(errors) > 2
        many = [replace(pope.examples[0], id=str(n), question="") for n in range(200)]
        for examples in (many[:5], many):
            none = replace(run, task=replace(pope), path=tmp_path / "none.jsonl")
            none.task.examples[:] = examples
            done: list[int] = []
            with pytest.raises(CofError, match="tokens"):
                none.run(methods, advance=done.append)
            assert not Store(none.path)
        assert sum(done) < 100  # it does not ask all of them


def test_what_servers_cannot_do_is_refused_at_the_start(
    pair: list[Server], task: Scenes, tmp_path: Path
) -> None:
    wordy = replace(task)
    wordy.examples[:] = [replace(example, prompt="x" * 16_001) for example in task.examples]
    with asking(pair, task, tmp_path / "a.jsonl") as run:
        likely = replace(run, task=VStar(formats.vstar(tmp_path), prompt_style="official"))
        with pytest.raises(CofError, match="cannot say how likely"):
            likely.run([PLAIN])
        with pytest.raises(CofError, match="The chat has 16001 characters"):  # its own limit
            replace(run, task=wordy).run([PLAIN])
    assert not Store(tmp_path / "a.jsonl")


def arguments(task: Scenes, out: Path, *more: str) -> list[str]:
    return ["eval", "scenes", str(task.path), "--out", str(out), "--limit", "12", *more]


def invoke(*words: str, key: str = KEY) -> Result:
    return CliRunner().invoke(cli.app, [*words], env={"COF_API_KEY": key})


def test_the_command_is_killed_and_goes_on(
    pair: list[Server], task: Scenes, tmp_path: Path
) -> None:
    urls = ",".join(server.url for server in pair)
    command = arguments(task, tmp_path / "two", "--server", urls, "--batch-size", "2")
    begins = asked(pair)
    process = subprocess.Popen(
        [sys.executable, "-m", "cof.cli", *command],
        cwd=ROOT,
        env={**os.environ, "COF_API_KEY": KEY, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    answers = tmp_path / "two" / "answers.jsonl"
    wait_for(answers, 20)
    process.kill()
    process.wait()
    assert count_records(answers) < 12 * 6
    result = invoke(*command, "--batch-size", "4")
    assert result.exit_code == 0, result.output
    assert asked(pair) - begins <= 12 * 5 + 12  # and those under way when it was killed

    text = (tmp_path / "two" / "results.json").read_text("utf-8")
    results = json.loads(text)
    assert results["about"]["model"] == "tiny-early"
    assert list(results["methods"]) == ["plain", "whole", "cof", "oracle", "random"]
    for path in (tmp_path / "two").iterdir():
        content = path.read_text("utf-8")
        assert "127.0.0.1" not in content
        assert KEY not in content
    assert invoke("report", str(tmp_path / "two")).exit_code == 0
    here = invoke(*arguments(task, tmp_path / "here", "--model", "tiny-early"))
    assert here.exit_code == 0, here.output
    check_same(Store(answers), Store(tmp_path / "here" / "answers.jsonl"))
    assert figures(here.output) == figures(result.output)


def figures(output: str) -> list[str]:
    return [line for line in output.splitlines() if "│" in line]


def test_what_the_command_refuses(pair: list[Server], task: Scenes, tmp_path: Path) -> None:
    url = pair[0].url
    for words, key, sentence in (
        (["--server", url], "wrong", f"{url}: The API key is missing or wrong"),
        (["--server", url, "--model", "tiny"], KEY, "--model is for models loaded here"),
        (["--server", url, "--device", "cpu"], KEY, "--device is for models loaded here"),
        (["--server", url, "--preset", "mine"], KEY, "There is no preset 'mine'"),
        (
            ["--server", url, "--grounder", "detector", "--set", "detector=x"],
            KEY,
            "cof.detector is chosen by the server",
        ),
        (["--server", ","], KEY, "There is no server to ask"),
    ):
        result = invoke(*arguments(task, tmp_path / "out", *words), key=key)
        assert result.exit_code == 2, result.output
        assert result.stderr.splitlines()[-1].startswith(sentence)


def test_servers_are_killed_and_come_back(
    pair: list[Server], task: Scenes, local: Store, tmp_path: Path
) -> None:
    """(The last test: it ends the servers.)"""
    first, last = pair
    with ThreadPoolExecutor() as pool, asking(pair, task, tmp_path / "a.jsonl") as run:
        running = pool.submit(run.run, MANY, [TWO_LOOKS])
        wait_for(run.path, 30)
        first.stop()
        wait_for(run.path, count_records(run.path) + 30)  # the other goes on alone
        last.stop()
        first.start()
        assert not running.done()
        check_same(running.result(120), local)

    # none is left: the run ends, and is begun again before the server is
    path = tmp_path / "b.jsonl"
    with ThreadPoolExecutor() as pool, asking([first], task, path, retry_s=0.5) as run:
        running = pool.submit(run.run, MANY, [TWO_LOOKS])
        wait_for(path, 40)
        first.stop()
        with pytest.raises(CofError, match=r"cannot be reached.*the same command goes on"):
            running.result(60)
    assert 40 <= count_records(path) < len(local)
    with pytest.raises(CofError, match="None of 2 servers answers; the last one: http"):
        RemoteCoF([first.url, last.url], api_key=KEY, retry_s=0.2)
    last.start()
    with asking(pair, task, path) as run:  # one of them is away
        check_same(run.run(MANY, [TWO_LOOKS]), local)
