"""Does memory grow? Thousands of questions to the embedded model, in one process.

    python -m lab.bench.endurance --questions 2000

All scenes and questions are different, and each batch is dropped after its answers. If anything
were kept, the last quarter of the questions would need more memory than the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from cof import CoF, Decoding
from cof.eval.store import write_atomically
from cof.pipeline import Query
from cof.tiny import checkpoint_path
from cof.tiny.benchmark import NUM_OBJECTS, questions, scene_seed
from cof.tiny.scenes import make_scene, render
from lab.bench.machine import machine
from lab.bench.meter import peak, reset_peak, resident

BATCH = 16
QUARTERS = 4


def scene_queries() -> Iterator[Query]:
    """Questions about one scene after another, of all levels of num_objects, without end."""
    for index in count():
        for num_objects in NUM_OBJECTS:
            scene = make_scene(
                scene_seed("test", num_objects, index), num_objects, square=index % 4 != 3
            )
            image = render(scene)
            yield from (Query(image, question.text) for question in questions(scene))


def endure(cof: CoF, total: int, *, gpu: bool = False) -> dict[str, Any]:
    """Answer `total` questions, a multiple of 64, and measure the memory of each quarter.

    Returns:
        `peak_gib`: the peak memory of each quarter, of the GPU or the process; `resident_gib`: the
        process's memory after each batch; `found`: for how many questions stage 1 found a box;
        `seconds`.
    """
    stream, peaks, samples = scene_queries(), [], []
    found = 0
    start = time.perf_counter()
    for quarter in range(QUARTERS):
        reset_peak(gpu)
        for _ in range(total // BATCH // QUARTERS):
            answers = cof.batch(islice(stream, BATCH), decoding=Decoding(max_new_tokens=8))
            found += sum(answer.found for answer in answers)
            samples.append(resident())
        peaks.append(peak(gpu))
        print(f"{(quarter + 1) * total // QUARTERS:6d} questions: {peaks[-1]} GiB", flush=True)
    return {
        "questions": total,
        "found": found,
        "seconds": time.perf_counter() - start,
        "peak_gib": peaks,
        "resident_gib": samples,
    }


def summary(peaks: Sequence[float], samples: Sequence[float]) -> str:
    """The last quarter against the first: their peaks, and their medians after batches.

    >>> summary([0.5, 0.5, 0.5, 0.51], [0.4, 0.4, 0.4, 0.4])
    'First quarter: peak 0.500 GiB, median 0.400 GiB; last quarter: 0.510 (+2.0 %), 0.400 (+0.0 %).'
    """
    size = len(samples) // QUARTERS
    first, last = statistics.median(samples[:size]), statistics.median(samples[-size:])
    return (
        f"First quarter: peak {peaks[0]:.3f} GiB, median {first:.3f} GiB; last quarter: "
        f"{peaks[-1]:.3f} ({peaks[-1] / peaks[0] - 1:+.1%}), {last:.3f} ({last / first - 1:+.1%})."
    ).replace("%", " %")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lab.bench.endurance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("results/bench/endurance.json"))
    args = parser.parse_args(argv)
    each = BATCH * QUARTERS
    total = -(-args.questions // each) * each
    cof = CoF.from_pretrained(checkpoint_path(), device_map=args.device, boxes="template")
    if resident() is None:
        parser.error("memory is read from /proc, which this system does not have: run it on Linux")
    gpu = args.device.startswith("cuda")
    content = {"machine": machine(args.device), "batch": BATCH, **endure(cof, total, gpu=gpu)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, json.dumps(content, indent=1) + "\n")
    print(summary(content["peak_gib"], content["resident_gib"]))


if __name__ == "__main__":
    main()
