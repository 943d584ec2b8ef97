"""The machine, the versions and the sources behind a number."""

from __future__ import annotations

import argparse
import hashlib
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cof

BESIDE = ("cli", "eval", "tiny", "viz")  # parts of the package that answers do not use
MEASURING = ("limits", "meter", "setups", "shapes", "ways")


def make_parser(module: str, about: str | None) -> argparse.ArgumentParser:
    """The arguments of a module, whose docstring is shown as it is."""
    shown = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m {module}", description=about, formatter_class=shown)


def machine(device: str) -> dict[str, Any]:
    """The machine and the versions of a measurement."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"model name\s*:\s*(.+)", info.read_text())
        model = names[0] if names else model
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else model,
        "processor": model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cof": cof.__version__,
        **{name: version(name) for name in ("torch", "transformers")},
    }


def folder_name(about: Mapping[str, Any], device: str) -> str:
    """The name of a folder for each device, and for each number of threads of a processor.

    >>> folder_name({"device": "NVIDIA H100 80GB HBM3", "threads": 16}, "cuda")
    'nvidia-h100-80gb-hbm3'
    >>> folder_name({"device": "AMD EPYC", "threads": 2}, "cpu")
    'amd-epyc-2-threads'
    """
    name = str(about["device"])
    if not device.startswith("cuda"):
        name += f" {about['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def sources() -> str:
    """A short digest of the files that measurements depend on."""
    package, here = Path(cof.__file__).parent, Path(__file__).parent
    answering = (
        path
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] not in BESIDE
    )
    digest = hashlib.sha256()
    for path in (*answering, *(here / f"{name}.py" for name in MEASURING)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
