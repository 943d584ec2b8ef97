"""The benchmarks by name."""

from __future__ import annotations

from cof.eval.data.base import Benchmark
from cof.eval.data.hrbench import HRBench
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.scenes import Scenes
from cof.eval.data.textvqa import TextVQA
from cof.eval.data.vstar import VStar

BENCHMARKS: dict[str, type[Benchmark]] = {
    each.name: each for each in (MME, MMBench, POPE, TextVQA, VStar, HRBench, RefCOCO, Scenes)
}
