"""All that is worth doing on a GPU, the most important first, each result on disk at once.

Every step is a process of its own, so that none takes the others with it. `gpu.json` says what
became of each; those that have ended well are not repeated.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cof.eval.json_files import write_atomically

ROOT = Path(__file__).parents[2]
UNFINISHED = "The time is up"
"""What `lab.bench` prints then."""

WAYS = ("CoF, text", "CoF, all", "text, one-pass box", "naive")
LEAST_S = 20.0
"""No step is worth beginning with less."""

TAIL = 2000
"""Characters of a step's output that are kept."""


@dataclass(frozen=True)
class Step:
    """A process to be run.

    Attributes:
        name: in the results.
        command: its words.
        seconds: it may take.
    """

    name: str
    command: tuple[str, ...]
    seconds: float


def make_plan(out: Path, options: Sequence[str], vllm: str | None) -> Iterator[Step]:
    """The steps, the most important first.

    Args:
        out: where results go, a folder for each step.
        options: what `lab.bench` gets in each.
        vllm: the Python that has vLLM; None: there is none.
    """

    def bench(name: str, seconds: float, *more: str) -> Step:
        words = ("-m", "lab.bench", *options, *more, "--budget-s", str(seconds - 10))
        return Step(name, (sys.executable, *words, "--out", str(out / name)), seconds)

    ways = [word for way in WAYS for word in ("--way", way)]
    batches = ("--batch", "1", "--batch", "16", "--questions", "1")
    kernel = ("-m", "pytest", "-q", "tests/vllm/test_vllm_kernel.py")
    yield Step("kernel", (vllm or sys.executable, *kernel), 90)
    replay = ("-m", "pytest", "-q", "tests/test_graphs.py", "-k", "a_gpu_replays")
    yield Step("replay", (sys.executable, *replay), 60)
    yield bench("graphs", 120, *batches, *ways, "--cuda-graphs")
    yield bench("launches", 120, *batches, *ways)
    again = ("--way", "CoF, text", "--way", "CoF, text, four batches")
    yield bench("images", 60, "--batch", "16", "--questions", "1", *again)
    if vllm is not None:
        few = ("--engine", "vllm", "--requests", "16", "--rounds", "2", "--mixed", "0")
        words = (vllm, "-m", "lab.bench.serving", *few, "--out", str(out / "serving"))
        yield Step("serving", words, 120)


def python_of_vllm() -> str | None:
    """This one, or that of `make test-vllm`; None: vLLM is nowhere."""
    own = ROOT / ".venv-vllm/bin/python"
    if find_spec("vllm") is not None:
        return sys.executable
    return str(own) if own.exists() else None


def run(steps: Sequence[Step], path: Path, about: Mapping[str, Any], budget_s: float) -> bool:
    """Run what an earlier run has not, and write down each step; False: the time is up.

    Args:
        steps: in their order.
        path: of the results.
        about: the machine and the sources; the results of others are begun anew.
        budget_s: seconds for all of them.
    """
    ends = time.monotonic() + budget_s
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    done = known["steps"] if known.get("machine") == about else {}
    for step in steps:
        if done.get(step.name, {}).get("outcome") == "done":
            continue
        left = ends - time.monotonic()
        if left < LEAST_S:
            return False
        done[step.name] = _run(step, min(step.seconds, left))
        write_atomically(path, json.dumps({"machine": dict(about), "steps": done}, indent=1) + "\n")
        print(f"{step.name}: {done[step.name]['outcome']}", flush=True)
    return True


def _run(step: Step, seconds: float) -> dict[str, Any]:
    start, pipes = time.monotonic(), {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(step.command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    try:
        output, _ = process.communicate(timeout=seconds)
        outcome = f"failed with {process.returncode}" if process.returncode else "done"
        outcome = "unfinished" if UNFINISHED in output else outcome
    except subprocess.TimeoutExpired:
        output, outcome = _stop(process), "unfinished"
    spent = time.monotonic() - start
    return {"outcome": outcome, "seconds": spent, "command": step.command, "output": output[-TAIL:]}


def _stop(process: subprocess.Popen[str]) -> str:
    """End it as Ctrl-C does, so that it ends what it has started; its output."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=20)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]
