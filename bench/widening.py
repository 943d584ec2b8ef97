"""Measure what `cof.attention.widening` saves of a whole answer on a CPU.

    python -m bench.widening

Two figures for each way to answer: in how many layers it is used (counted on a small decoder), and
the time of the whole answer, from pixels to text, relative to the same answer with the mask. Both
answers take turns in one process, on one thread. Times are seconds of the process, which do not
count other programs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.machine import machine
from bench.setups import Setup, ways_of
from bench.shapes import SHAPES, engine_of
from bench.ways import ANSWER, COF, Ways
from cof.attention.widening import widened
from cof.eval.store import write_atomically
from cof.pipeline import CoF, Query

BOX = (0.4, 0.4, 0.6, 0.6)
Answer = Callable[[Ways], None]


def own_box(ways: Ways, **settings: Any) -> None:
    """One answer about a box that the caller gives: nothing is computed before it."""
    cof = CoF(ways.engine, COF.changed(boxes="free", **settings))
    cof.batch([Query(ways.images[0], ways.questions[0][0], boxes=[BOX])], decoding=ANSWER)


ANSWERS: Mapping[str, Answer] = {
    "own box, all": lambda ways: own_box(ways, scope="all"),
    "own box, text": lambda ways: own_box(ways, scope="text"),
    "CoF, all": lambda ways: ways.cof(scope="all"),
    "CoF, text": lambda ways: ways.cof(scope="text"),
}


def count_layers(answer: Answer, ways: Ways) -> int:
    """In how many layers an answer widens queries and keys."""
    with patch("cof.attention.registry.widened", wraps=widened) as spy:
        answer(ways)
    return spy.call_count


def measure(answer: Answer, ways: Ways, *, mask: bool) -> float:
    """Seconds of the process for one answer."""
    with patch("cof.attention.bias_mask.pays", lambda *_: False) if mask else nullcontext():
        start = time.process_time()
        answer(ways)
        return time.process_time() - start


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each way to answer."""
    lines = [
        "| answer | layers that widen | time relative to the mask | rounds |",
        "|---|--:|--:|--:|",
    ]
    for name, record in records.items():
        ratios = [
            wide / mask for wide, mask in zip(record["widened_s"], record["mask_s"], strict=True)
        ]
        times = "1 (not used)"
        if ratios:
            times = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append(f"| {name} | {record['layers']} | {times} | {len(ratios)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.widening",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="0.3b")
    parser.add_argument("--image-tokens", type=int, default=3136)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--answer", choices=list(ANSWERS), action="append", help="to be timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    small = Setup("smoke", args.image_tokens)
    ways = ways_of(small, engine_of(small.shape, args.image_tokens, args.dtype, "cpu"))
    records: dict[str, dict[str, Any]] = {
        name: {"layers": count_layers(answer, ways), "widened_s": [], "mask_s": []}
        for name, answer in ANSWERS.items()
    }
    setup = Setup(args.shape, args.image_tokens)
    ways = ways_of(setup, engine_of(args.shape, args.image_tokens, args.dtype, "cpu"))
    timed = [name for name in args.answer or ANSWERS if records[name]["layers"]]
    for number in range(args.rounds + 1):
        for name in timed:
            for mask in (True, False) if number % 2 else (False, True):
                seconds = measure(ANSWERS[name], ways, mask=mask)
                print(number, name, "mask" if mask else "widened", f"{seconds:.2f}", flush=True)
                if number:  # the first round warms up
                    records[name]["mask_s" if mask else "widened_s"].append(seconds)
    about = {**machine("cpu"), **setup.as_dict(), "dtype": args.dtype}
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "records": records}
    write_atomically(args.out / "widening.json", json.dumps(content, indent=1) + "\n")
    write_atomically(args.out / "widening.md", table(records))
    print("\n" + table(records))


if __name__ == "__main__":
    main()
