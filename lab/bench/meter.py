"""Time, passes and peak memory of a piece of work."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cof.engines.transformers.prefix_cache import CACHE
from lab.bench.limits import Pass


@dataclass(frozen=True)
class Cost:
    """The cost of one run.

    Attributes:
        seconds: wall clock.
        passes: through vision tower and decoder, in order.
        peak_gib: peak memory, weights included, of the GPU, else of the process; None where it
            cannot be measured.
    """

    seconds: float
    passes: tuple[Pass, ...]
    peak_gib: float | None


class Meter:
    """Counts the passes of the vision tower, the decoder and the head of a LLaVA model."""

    def __init__(self, model: Any) -> None:
        self._passes: list[Pass] = []
        self._gpu = model.device.type == "cuda"
        model.model.vision_tower.register_forward_pre_hook(self._vision, with_kwargs=True)
        model.model.language_model.register_forward_pre_hook(self._decoder, with_kwargs=True)
        model.lm_head.register_forward_pre_hook(self._head)

    def measure(self, work: Callable[[], object]) -> Cost:
        """Run `work` once, and wait for the GPU before and after."""
        self._passes = []
        reset_peak(self._gpu)
        start = time.perf_counter()
        work()
        if self._gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Cost(seconds, tuple(self._passes), peak(self._gpu))

    def _vision(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        patches = (pixels.shape[-1] // module.config.patch_size) ** 2
        self._passes.append(Pass("vision", len(pixels), 1 + patches))

    def _decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rows, new, _ = kwargs["inputs_embeds"].shape
        cache = kwargs.get(CACHE)
        before = int(cache.get_seq_length()) if cache is not None else 0
        self._passes.append(Pass("decoder", rows, new, before))

    def _head(self, module: nn.Module, args: Any) -> None:
        hidden = args[0]  # (B, tokens, width), of the decoder's last pass
        made = hidden.shape[:-1].numel()
        self._passes[-1] = replace(self._passes[-1], logits=self._passes[-1].logits + made)


def gpu_seconds(work: Callable[[], object]) -> float | None:
    """How long kernels run during `work`, one after another; None without a GPU.

    What is left of the wall clock is Python, launches and the CPU's own work.
    """
    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return sum(float(event.self_device_time_total) for event in seen.key_averages()) / 1e6


_CLEAR = Path("/proc/self/clear_refs")


def reset_peak(gpu: bool) -> None:
    """Begin a new high-water mark of memory."""
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def peak(gpu: bool) -> float | None:
    """Peak memory in GiB since `reset_peak`: allocated on the GPU, or resident (Linux)."""
    return torch.cuda.max_memory_allocated() / 2**30 if gpu else resident(what="VmHWM")


def resident(pid: int | str = "self", what: str = "VmRSS") -> float | None:
    """GiB of memory that a process holds now, or at most held (`VmHWM`); None: no Linux."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(rf"{what}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 2**20 if found else None


def resident_with_children(pid: int) -> float:
    """GiB that a process and those that it has started hold now (Linux)."""
    held = resident(pid) or 0.0
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        held += sum(resident_with_children(int(child)) for child in file.read_text().split())
    return held
