"""`cof serve` as a process of its own, to be asked, killed and started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cof as package

ROOT = Path(package.__file__).parents[1]
KEY = "s3cret"


@dataclass
class Server:
    """A `cof serve` process."""

    port: int
    options: Sequence[str] = ()
    model: str = "tiny-early"

    def start(self) -> None:
        command = [sys.executable, "-m", "cof.cli", "serve", self.model]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *self.options],
            cwd=ROOT,
            env={**os.environ, "COF_API_KEY": KEY, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self, longest_s: float = 60) -> None:
        ends = time.monotonic() + longest_s
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=5) as reply:
            return str(reply.read().decode())

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (.+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self) -> None:
        """Kill it, and the processes that vLLM has started, which would go on without it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
