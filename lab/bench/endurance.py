"""Does memory grow? Thousands of questions to the embedded model, in one process.

    python -m lab.bench.endurance --questions 2000

All scenes and questions are different, and each batch is dropped after its answers. If anything
were kept, the last quarter of the questions would need more memory than the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from cof import CoF, Decoding
from cof.eval.json_files import write_atomically
from cof.pipeline import Query
from cof.tiny import checkpoint_path
from cof.tiny.benchmark import NUM_OBJECTS, questions, scene_seed
from cof.tiny.scenes import make_scene, render
from lab.bench.machine import machine, make_parser
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


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("lab.bench.endurance", __doc__)
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
    write_atomically(args.out, json.dumps(content, indent=1) + "\n")
    first, *_, last = content["peak_gib"]
    print(f"The last quarter's peak is {100 * (last / first - 1):+.1f} % against the first's.")


if __name__ == "__main__":
    main()
