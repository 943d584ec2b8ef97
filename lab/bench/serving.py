"""What a server of the embedded model takes: how long requests wait, how many it answers a second
with CoF and without, and whether anything is lost or kept over thousands of them.

    python -m lab.bench.serving
    python -m lab.bench.serving --engine vllm      # in vLLM's environment (make test-vllm)

It starts `cof serve` on this machine and asks it over loopback. Throughput with CoF is a ratio to
plain requests at the same concurrency, in the same rounds. Then good requests of all kinds are
mixed with bad ones while other clients send too slowly or break off: every good one must get the
answer that it got before, and every bad one its refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import operator
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import httpx2

from cof.eval.json_files import write_atomically
from cof.eval.report.document import Cell, Table, Text, markdown
from cof.images import data_url
from cof.query import Query
from lab.bench.endurance import scene_queries
from lab.bench.machine import machine, make_parser
from lab.bench.meter import resident, resident_with_children

CHAT = "/v1/chat/completions"
OWN_BOX = [[0.2, 0.2, 0.6, 0.6]]
KINDS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "CoF, own box": {"boxes": OWN_BOX},
    "CoF, box by template": {"boxes": "template"},
    "CoF, free box": {},
}
"""What requests have as `cof`."""

AIMS = {"CoF, own box": 0.8, "CoF, box by template": 0.6, "CoF, free box": 0.5}
BOX_STEPS = {"CoF, own box": 0, "CoF, box by template": 4, "CoF, free box": 5}
"""Of `tiny-early`, which writes a number with a token; the end token is a free box's fifth."""
CONCURRENCY = (1, 8, 32)
BAD = (
    {"cof": {}, "temperature": -1},
    {"cof": {"lambda": 2}},
    {"cof": {"boxes": [[0, 0, 9, 9]]}},
    {"cof": {"layers": [99]}},
    {"cof": {"grounder": "nobody"}},
)
OPTIONS = {
    "transformers": "",
    "vllm": "--engine vllm --dtype float32 -- --max-model-len 512 --block-size 32 "
    "--kv-cache-memory-bytes 1G --enable-scale-out",
}
"""What `cof serve` gets."""


@dataclass
class Load:
    """Requests to one server, and what became of them."""

    client: httpx2.AsyncClient
    bodies: Sequence[dict[str, Any]]
    route: str = CHAT
    seconds: list[float] = field(default_factory=list)
    answers: dict[int, tuple[int, str]] = field(default_factory=dict)

    async def run(self, concurrency: int) -> float:
        """Send all of them, so many at a time; the seconds it took."""
        numbers = iter(range(len(self.bodies)))

        async def ask() -> None:
            for number in numbers:
                await self._ask(number)

        start = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(concurrency)))
        return time.perf_counter() - start

    async def _ask(self, number: int) -> None:
        start = time.perf_counter()
        reply = await self.client.post(self.route, json=self.bodies[number])
        self.seconds.append(time.perf_counter() - start)
        good = reply.status_code == 200 and self.route == CHAT
        text = reply.json()["choices"][0]["message"]["content"] if good else ""
        self.answers[number] = (reply.status_code, text)


def body(query: Query, cof: dict[str, Any] | None) -> dict[str, Any]:
    """A chat request."""
    image = {"type": "image_url", "image_url": {"url": data_url(query.image)}}
    content = [image, {"type": "text", "text": query.question}]
    made = {"model": "tiny-early", "messages": [{"role": "user", "content": content}]}
    made |= {"temperature": 0, "max_tokens": 64}
    return made if cof is None else {**made, "cof": cof}


def fresh_queries() -> Iterator[Query]:
    """One question about each embedded scene, without end."""
    for _, queries in groupby(scene_queries(), key=lambda query: id(query.image)):
        yield next(queries)


async def measure(client: httpx2.AsyncClient, requests: int, rounds: int) -> list[dict[str, Any]]:
    """Every kind at every concurrency, in turn, several rounds of so many requests each; one client
    alone asks one request of each kind after the other, so that all meet the same other work.

    Each image is new to the server. Then the same requests are sent once more: what of them is
    still in its caches costs plain answers less than others.
    """
    records: list[dict[str, Any]] = []
    fresh = fresh_queries()
    total = requests * rounds
    for concurrency in CONCURRENCY:
        size = 1 if concurrency == 1 else requests
        seconds, again, waits = ({kind: [] for kind in KINDS} for _ in range(3))
        for number in range(total // size):
            for kind in list(KINDS)[:: 1 if number % 2 == 0 else -1]:
                load = Load(client, [body(query, KINDS[kind]) for query in islice(fresh, size)])
                seconds[kind].append(await load.run(concurrency))
                waits[kind] += load.seconds
                again[kind].append(await Load(client, load.bodies).run(concurrency))
                assert all(status == 200 for status, _ in load.answers.values())
        for kind in KINDS:
            cuts = statistics.quantiles(waits[kind], n=100)
            record = {
                "kind": kind,
                "concurrency": concurrency,
                "requests": total,
                "per_second": total / sum(seconds[kind]),
                "latency_s": {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]},
            }
            for end, of in (("", seconds), ("_again", again)):
                ratios = [a / b for a, b in zip(of["plain"], of[kind], strict=True)]
                record |= {f"ratio{end}": statistics.median(ratios), f"ratios{end}": ratios}
            records.append(record)
            print(f"{kind:22s} {concurrency:3d} {record['per_second']:7.1f}/s", flush=True)
    return records


async def floors(client: httpx2.AsyncClient, requests: int) -> dict[str, float]:
    """The ratio to plain that one client alone could get where each token takes a step, as in vLLM.

    A plain answer is its first token's step, with the image, and the end's. A box adds its steps
    to the first, and then there is a plain answer about an image that is known, for which HTTP and
    what is done before the engine (`render`) have been done while the box was written.
    """
    spent: dict[str, list[float]] = {"new": [], "known": [], "long": [], "short": [], "render": []}
    for query in islice(fresh_queries(), requests):
        plain = body(query, None)
        long = plain | {"ignore_eos": True, "max_tokens": 18}
        load = Load(client, [plain, plain, long, long | {"max_tokens": 2}])
        await load.run(1)
        rendered = Load(client, [plain], f"{CHAT}/render")
        await rendered.run(1)
        assert rendered.answers[0][0] == 200
        for each, seconds in zip(spent.values(), load.seconds + rendered.seconds, strict=True):
            each.append(seconds)
    new, known, longer, shorter, render = map(statistics.median, spent.values())
    step = (longer - shorter) / 16
    return {
        kind: new / (new + (steps - 2) * step + known - render) if steps else 1.0
        for kind, steps in BOX_STEPS.items()
    }


async def endure(client: httpx2.AsyncClient, total: int, pid: int, port: int) -> dict[str, Any]:
    """Mixed requests at a concurrency of 8, a tenth of them bad, beside clients that misbehave."""
    kinds = list(KINDS.values())
    good = [
        body(query, kinds[n % len(kinds)]) for n, query in enumerate(islice(scene_queries(), 48))
    ]
    known = Load(client, good)
    await known.run(8)
    bodies, expected = [], []
    for n in range(total):
        bad = n % 10 == 9
        bodies.append(good[n % len(good)] | (BAD[n // 10 % len(BAD)] if bad else {}))
        expected.append((400, "") if bad else known.answers[n % len(good)])
    memory, answers = [], []
    misbehaving = asyncio.ensure_future(misbehave(port))
    step = max(total // 20, 1)
    for begin in range(0, total, step):
        load = Load(client, bodies[begin : begin + step])
        await load.run(8)
        answers += [load.answers.get(place) for place in range(len(load.bodies))]
        memory.append(resident_with_children(pid))
        print(f"{len(answers):6d} requests: {memory[-1]:.3f} GiB", flush=True)
    misbehaving.cancel()
    first, last = memory[: len(memory) // 4], memory[-len(memory) // 4 :]
    return {
        "requests": total,
        "refused": sum(answer is not None and answer[0] == 400 for answer in answers),
        "lost": answers.count(None),
        "wrong": sum(map(operator.ne, answers, expected)) - answers.count(None),
        "resident_gib": memory,
        "growth": statistics.median(last) / statistics.median(first) - 1,
    }


async def misbehave(port: int) -> None:
    """Send half a request and wait, half a request and go, or no HTTP, over and over."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
    while True:
        _, slow = await asyncio.open_connection("127.0.0.1", port)
        slow.write(head + b"{")
        for data in (head + b'{"model": "ti', b"\x16\x03\x01\x00", b"GET / HTTP/1.1\r\n"):
            _, broken = await asyncio.open_connection("127.0.0.1", port)
            broken.write(data)
            await broken.drain()
            broken.close()
        await asyncio.sleep(0.5)
        slow.close()


@contextmanager
def serving(port: int, engine: str) -> Iterator[int]:
    """A server of its own process; its process id."""
    command = [sys.executable, "-m", "cof.cli", "serve", "tiny-early", "--port", str(port)]
    process = subprocess.Popen([*command, *OPTIONS[engine].split()], stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"The server did not start; {' '.join(command)} says why.")
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx2.TransportError:
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def report(content: dict[str, Any]) -> str:
    """The records as Markdown."""
    head = ["requests", "at a time", "per second", "ratio to plain", "floor", "aim", "asked again"]
    head += ["p50", "p90", "p99 (s)"]
    rows: list[list[Cell]] = []
    for record in content["records"]:
        aim = AIMS.get(record["kind"])
        met = "" if aim is None else f"{aim} {'met' if record['ratio'] >= aim else 'missed'}"
        rates = [f"{record['per_second']:.1f}", f"{record['ratio']:.2f}", met]
        latency = [f"{record['latency_s'][name]:.3f}" for name in ("p50", "p90", "p99")]
        again = f"{record['ratio_again']:.2f}"
        floor = (
            content.get("floors", {}).get(record["kind"]) if record["concurrency"] == 1 else None
        )
        rates.insert(2, "" if floor is None else f"{floor:.2f}")
        rows.append([record["kind"], record["concurrency"], *rates, again, *latency])
    mixed, about = content["mixed"], content["machine"]
    start, end = about["load"]
    above = f"""\
`tiny-early` with {content["engine"]} on {about["device"]}, threads of torch: \
{about["server_threads"]}, on {about["cores"]}
cores that other work shared: the load average was {start:.1f} at the start and {end:.1f} at the
end. Ratios are medians over {content["rounds"]} rounds (with one client over its requests), in each
of which every kind had its turn with images that are new to the server; *asked again* is the ratio
when the same requests follow.
*floor*: what one client could get if nothing but the steps of the engine took time."""
    if mixed is None:
        return markdown([Text(above), Table("serving", head, rows)])
    below = f"""\
{mixed["requests"]} mixed requests, 8 at a time, a tenth of them bad, beside slow and broken
clients: {mixed["lost"]} lost, {mixed["wrong"]} answered otherwise than before,
{mixed["refused"]} bad ones refused. The server held {mixed["resident_gib"][0]:.3f} GiB after the \
first twentieth and
{mixed["resident_gib"][-1]:.3f} GiB at the end; the last quarter's median is \
{100 * mixed["growth"]:+.1f} % against the first's."""
    return markdown([Text(above), Table("serving", head, rows), Text(below)])


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    load = os.getloadavg()[0]
    with serving(args.port, args.engine) as pid:
        limits = httpx2.Limits(max_connections=64)
        url = f"http://127.0.0.1:{args.port}"
        async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            for cof in KINDS.values():  # warm up
                await Load(client, [body(q, cof) for q in islice(scene_queries(), 8)]).run(8)
            records = await measure(client, args.requests, args.rounds)
            known = await floors(client, args.requests) if args.engine == "vllm" else {}
            mixed = await endure(client, args.mixed, pid, args.port) if args.mixed else None
    about = {
        **machine("cpu"),
        "cores": os.cpu_count(),
        "server_threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": [load, os.getloadavg()[0]],
    }
    measured = {"rounds": args.rounds, "records": records, "floors": known, "mixed": mixed}
    return {"machine": about, "engine": args.engine, **measured}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("lab.bench.serving", __doc__)
    parser.add_argument("--requests", type=int, default=48, help="of a kind in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed", type=int, default=2000)
    parser.add_argument("--engine", choices=list(OPTIONS), default="transformers")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args(argv)
    if resident() is None:
        parser.error("memory is read from /proc, which this system has not: run it on Linux")
    content = asyncio.run(run(args))
    name = "serving" if args.engine == "transformers" else f"serving-{args.engine}"
    write_atomically(args.out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_atomically(args.out / f"{name}.md", report(content))
    print(report(content))


if __name__ == "__main__":
    main()
