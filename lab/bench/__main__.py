"""Measure what CoF costs, as ratios to the plain answer of the same run.

    python -m lab.bench --growth                       # everything this machine is good for
    python -m lab.bench --growth --budget-s 480        # the most important of it, in eight minutes
    python -m lab.bench --shape 0.3b --batch 1 --way naive --way "CoF, text"

Models of LLaVA-1.5's shape have random weights and never end by themselves, so lengths are fixed: 3
tokens for an answer, 30 for a box without a template. Every measurement is written to disk at once:
an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import time
from functools import partial
from pathlib import Path

import torch

from cof.engines.transformers.engine import TransformersEngine
from lab.bench.calibrate import calibrate
from lab.bench.limits import Sizes
from lab.bench.machine import folder_name, machine, make_parser, sources
from lab.bench.meter import Meter
from lab.bench.records import Records, rounds
from lab.bench.report import growth, measured_setups, report
from lab.bench.setups import IMAGE_TOKENS, Setup, make_plan, ways_of
from lab.bench.shapes import SHAPES, engine_of
from lab.bench.ways import WAYS

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
                cost = meter.measure(work)
                self.records.add(setup, name, words, cost, sizes)
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
            engine = engine_of(*key, self.args.dtype, self.args.device)
            self._built = (key, (engine, Meter(engine.model), Sizes.of(engine.model)))
            if setup.shape not in self.records.limits:
                self.records.limits[setup.shape] = calibrate(engine.model)
        return self._built[1]


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.render:
        _write(Records.read(args.render / "bench.json"), args.render)
        return
    gpu = args.device.startswith("cuda")
    if args.warm_up is None:
        args.warm_up = 2 if gpu else 1
    shapes = args.shape or (["1b", "7b", "tiny", "0.3b"] if gpu else ["1b", "0.3b", "tiny"])
    grown = ("1b" if gpu else "0.3b") if args.growth else None
    tokens = args.image_tokens or [IMAGE_TOKENS]
    plan = make_plan(shapes, args.batch or [1, 16], args.questions, grown, tokens)
    if not gpu:  # batches take minutes there
        plan.sort(key=lambda planned: planned[0].batch)
    if args.way:  # ratios are relative to it
        chosen = ("plain", *args.way)
        plan = [(setup, tuple(way for way in ways if way in chosen)) for setup, ways in plan]
    about = {**machine(args.device), "dtype": args.dtype, "sources": sources()}
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--render", type=Path, help="a folder of results to be shown anew")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    return parser


if __name__ == "__main__":
    main()
