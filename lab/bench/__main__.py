"""Measure what CoF costs, as ratios to the plain answer of the same run.

    python -m lab.bench --growth                       # everything this machine is good for
    python -m lab.bench --growth --budget-s 480        # the most important of it, in eight minutes
    python -m lab.bench --shape 0.3b --batch 1 --way naive --way "CoF, text"
    python -m lab.bench --gpu                          # what needs a GPU, in eight minutes

Models of LLaVA-1.5's shape have random weights and never end by themselves, so lengths are fixed: 3
tokens for an answer, 30 for a box without a template. Every measurement is written to disk at once:
an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cof.engines.transformers.engine import TransformersEngine
from lab.bench import gpu
from lab.bench.calibrate import calibrate
from lab.bench.limits import Sizes
from lab.bench.machine import folder_name, machine, make_parser, sources
from lab.bench.meter import Meter, gpu_seconds
from lab.bench.records import Records, rounds
from lab.bench.report import growth, measured_setups, report
from lab.bench.setups import IMAGE_TOKENS, Setup, make_plan, ways_of
from lab.bench.shapes import SHAPES, engine_of
from lab.bench.ways import WAYS

GPU_S = 480.0
"""Seconds for all that is done on a GPU."""

Built = tuple[TransformersEngine, Meter, Sizes]


class Bench:
    """Measures one setup after another until the time is up."""

    def __init__(self, records: Records, args: argparse.Namespace) -> None:
        self.records, self.args = records, args
        self._ends = time.monotonic() + args.budget_s
        self._built: tuple[tuple[str, int], Built] | None = None

    def run(self, setup: Setup, names: tuple[str, ...]) -> bool:
        """Measure all ways in turn, several times over; False: the time is up."""
        if self._over(0.0):
            return False
        if all(self._wanted(setup, name, names) == 0 for name in names):
            return True
        engine, meter, sizes = self._engine(setup)
        ways = ways_of(setup, engine)
        words = len(ways.questions[0][0].split())
        warm: set[str] = set()
        for number in range(self.args.most):
            for name in names if number % 2 == 0 else names[::-1]:
                known = self.records.seconds(setup, name)
                if len(known) != number or not self._wanted(setup, name, names):
                    continue
                if self._over(min(known) if known else self._likely(setup, names)):
                    return False

                work = partial(WAYS[name], ways)
                if name not in warm:  # libraries choose kernels and allocate memory
                    for _ in range(self.args.warm_up):
                        work()
                    warm.add(name)
                busy = None if known else gpu_seconds(work)
                cost = meter.measure(work)
                self.records.add(setup, name, words, cost, sizes, busy)
                print(
                    f"{setup.shape:5s} {setup.image_tokens:4d} tokens, {setup.batch:2d} images, "
                    f"{setup.questions:2d} questions of {words:3d} words, {name:24s} "
                    f"{cost.seconds:8.3f} s",
                    flush=True,
                )
        return True

    def _over(self, needed: float) -> bool:
        """Whether work of so many seconds would end too late."""
        return bool(time.monotonic() + needed > self._ends)

    def _likely(self, setup: Setup, names: tuple[str, ...]) -> float:
        """Seconds of a way that has not run yet, warm-up included: as the slowest one so far."""
        seconds = (max(self.records.seconds(setup, name), default=0.0) for name in names)
        return float((1 + self.args.warm_up) * max(seconds))

    def _wanted(self, setup: Setup, name: str, names: tuple[str, ...]) -> int:
        """How many more runs; plain answers are run as often as anything beside them."""
        args, among = self.args, names if name == "plain" else (name,)
        total = 0
        for way in among:
            known = self.records.seconds(setup, way)
            times = rounds(known[0], args.seconds, args.least, args.most) if known else args.least
            total = max(total, times)
        return max(0, total - len(self.records.seconds(setup, name)))

    def _engine(self, setup: Setup) -> Built:
        key = (setup.shape, setup.image_tokens)
        if self._built is None or self._built[0] != key:
            self._built = None  # two models would both count as memory
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            engine = engine_of(*key, self.args.dtype, self.args.device, self.args.cuda_graphs)
            self._built = (key, (engine, Meter(engine.model), Sizes.of(engine.model)))
            if setup.shape not in self.records.limits:
                self.records.limits[setup.shape] = calibrate(engine.model)
        return self._built[1]


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.render:
        _write(Records.read(args.render / "bench.json"), args.render)
        return
    there = torch.cuda.is_available()
    if args.gpu and not there and args.device is None:
        parser.error("--gpu measures on a GPU, and torch sees none here.")
    args.device = args.device or ("cuda" if there else "cpu")
    if args.gpu:
        _measure_gpu(args, sys.argv[1:] if argv is None else argv)
        return
    on_gpu = args.device.startswith("cuda")
    if args.warm_up is None:
        args.warm_up = 2 if on_gpu else 1
    shapes = args.shape or (["1b", "7b", "tiny", "0.3b"] if on_gpu else ["1b", "0.3b", "tiny"])
    grown = ("1b" if on_gpu else "0.3b") if args.growth else None
    tokens = args.image_tokens or [IMAGE_TOKENS]
    plan = make_plan(shapes, args.batch or [1, 16], args.questions, grown, tokens)
    if not on_gpu:  # batches take minutes there
        plan.sort(key=lambda planned: planned[0].batch)
    if args.way:  # ratios are relative to it
        chosen = ("plain", *args.way)
        plan = [(setup, chosen) for setup, _ in plan]
    about = _about(args)
    folder = args.out / folder_name(about, args.device)
    records = Records.open(folder / "bench.json", about)
    if records.path.exists() and not records.rows:
        print(f"{records.path} is of other sources or another machine: it is begun anew.")
    bench = Bench(records, args)
    for setup, ways in plan:
        if not bench.run(setup, ways):
            print("The time is up: the same command goes on from here.")
            break
    _write(records, folder)


def _about(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, the sources and what was chosen."""
    about = {**machine(args.device), "dtype": args.dtype, "sources": sources()}
    return {**about, "cuda_graphs": True} if args.cuda_graphs else about


def _measure_gpu(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """The steps of `lab.bench.gpu`; the given options hold in each."""
    about = _about(args)
    folder = args.out / folder_name(about, args.device)
    options = [word for word in argv if word != "--gpu"]
    if not args.shape:
        options += ["--shape", "7b"]
    steps = list(gpu.make_plan(folder, options, gpu.python_of_vllm()))
    if not gpu.run(steps, folder / "gpu.json", about, min(args.budget_s, GPU_S)):
        print(f"{gpu.UNFINISHED}: the same command goes on from here.")


def _write(records: Records, folder: Path) -> None:
    if not records.rows:
        return
    print("\n" + report(records, folder))
    for shape in dict.fromkeys(setup.shape for setup, _ in records.rows):
        if len(measured_setups(records, shape, "image_tokens")) > 1:
            print("\n" + growth(records, shape, folder))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("lab.bench", __doc__)
    parser.add_argument("--shape", choices=["tiny", *SHAPES], action="append", help="of the model")
    parser.add_argument("--batch", type=int, help="images at a time", action="append")
    parser.add_argument("--image-tokens", type=int, action="append", help="of an image")
    parser.add_argument("--way", choices=list(WAYS), action="append", help="beside plain answers")
    parser.add_argument("--questions", type=int, default=10, help="about one image; 1: no such row")
    parser.add_argument("--growth", action="store_true", help="how ratios grow with each size")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="stop after that")
    parser.add_argument("--seconds", type=float, default=2.0, help="to spend on one way")
    parser.add_argument("--least", type=int, default=3, help="runs of a way, however slow")
    parser.add_argument("--most", type=int, default=20, help="runs of a way, however fast")
    parser.add_argument("--warm-up", type=int, help="runs before those that count; 1, on a GPU 2")
    parser.add_argument("--dtype", default="bfloat16", help="not of the embedded model")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--cuda-graphs", action="store_true", help="of the engine")
    parser.add_argument("--gpu", action="store_true", help="all that is worth doing on a GPU")
    parser.add_argument("--render", type=Path, help="a folder of results to be shown anew")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    return parser


if __name__ == "__main__":
    main()
