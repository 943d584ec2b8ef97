"""Measurements, written to disk one by one, so that a run can be stopped at any time."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cof.eval.json_files import write_atomically
from lab.bench.limits import Limits, Sizes, floor, operations, traffic
from lab.bench.meter import Cost
from lab.bench.setups import Setup


@dataclass
class Records:
    """One file of measurements, of one machine and one state of the sources.

    Attributes:
        path: of the JSON file.
        machine: the machine and the sources (`machine`); a file of others is begun anew.
        limits: of each shape.
        rows: by setup and way, in the order in which they were measured.
    """

    path: Path
    machine: Mapping[str, Any]
    limits: dict[str, Limits] = field(default_factory=dict)
    rows: dict[tuple[Setup, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, machine: Mapping[str, Any]) -> Records:
        """Those of an earlier run, if it was on the same machine with the same sources."""
        if path.exists():
            records = cls.read(path)
            if records.machine == machine:
                return records
        return cls(path, machine)

    @classmethod
    def read(cls, path: Path) -> Records:
        """Those of any run."""
        content = json.loads(path.read_text("utf-8"))
        records = cls(path, content["machine"])
        records.limits = {name: Limits(**limits) for name, limits in content["limits"].items()}
        for row in content["records"]:
            setup = Setup(**{name: row[name] for name in Setup.__dataclass_fields__})
            records.rows[setup, row["way"]] = row
        return records

    def seconds(self, setup: Setup, way: str) -> list[float]:
        """Of every run of a way so far."""
        row = self.rows.get((setup, way))
        return row["all_seconds"] if row else []

    def add(
        self,
        setup: Setup,
        way: str,
        words: int,
        cost: Cost,
        sizes: Sizes,
        gpu_s: float | None = None,
    ) -> None:
        """Write down one run; the file's content is replaced. `gpu_s`: see `gpu_seconds`."""
        seconds = [*self.seconds(setup, way), cost.seconds]
        limits = self.limits[setup.shape]
        known = self.rows.get((setup, way), {})
        peaks = (known.get("peak_gib"), cost.peak_gib)
        self.rows[setup, way] = {
            **asdict(setup),
            "words": words,
            "way": way,
            "value_bytes": sizes.value_bytes,
            "seconds": statistics.median(seconds),
            "forwards": sum(run.part == "decoder" for run in cost.passes),
            "vision_passes": sum(run.part == "vision" for run in cost.passes),
            "tokens": sum(run.rows * run.new for run in cost.passes if run.part == "decoder"),
            "tflops": sum(operations(run, sizes) for run in cost.passes) / 1e12,
            "gib_moved": sum(traffic(run, sizes) for run in cost.passes) / 2**30,
            "floor_s": floor(cost.passes, sizes, limits),
            "launched_floor_s": floor(cost.passes, sizes, limits, launches=True),
            "peak_gib": max((gib for gib in peaks if gib is not None), default=None),
            "gpu_s": known.get("gpu_s") if gpu_s is None else gpu_s,
            "all_seconds": seconds,
        }
        content = {
            "machine": dict(self.machine),
            "limits": {name: asdict(limits) for name, limits in self.limits.items()},
            "records": list(self.rows.values()),
        }
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def ratios(row: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, float]:
    """A way relative to the plain answers of the same setup.

    Times are compared round by round, so that a slow minute affects both.

    >>> plain = {"all_seconds": [1.0, 2.0, 1.0], "tflops": 1.0, "floor_s": 0.5,
    ...          "launched_floor_s": 0.5}
    >>> way = {"all_seconds": [2.0, 4.0], "tflops": 1.5, "floor_s": 0.6, "launched_floor_s": 0.7}
    >>> {name: round(value, 2) for name, value in ratios(way, plain).items()}
    {'time': 2.0, 'time_low': 2.0, 'time_high': 2.0, 'tflops': 1.5, 'floor_s': 1.2, \
'launched_floor_s': 1.4}
    """
    pairs = zip(row["all_seconds"], plain["all_seconds"], strict=False)
    times = sorted(own / other for own, other in pairs)
    quarter = len(times) // 4
    return {
        "time": statistics.median(times),
        "time_low": times[quarter],
        "time_high": times[len(times) - 1 - quarter],
        **{name: row[name] / plain[name] for name in ("tflops", "floor_s", "launched_floor_s")},
    }


def rounds(first: float, seconds: float, least: int, most: int) -> int:
    """How many runs of `first` seconds each fill the time given to one way.

    >>> rounds(0.5, 2.0, 3, 20), rounds(10.0, 2.0, 3, 20), rounds(0.001, 2.0, 3, 20)
    (4, 3, 20)
    """
    return min(most, max(least, math.ceil(seconds / first)))
