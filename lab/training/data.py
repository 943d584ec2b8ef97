"""What both phases of training share: a pool of rendered scenes, batches, options, the log."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cof.tiny.scenes import SIDE, Scene, make_scene, render

PAD = (122, 116, 104)  # CLIP's mean colour, with which LlavaImageProcessor(do_pad=True) pads
NUM_OBJECTS = (1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16)  # sampled uniformly
WORKERS = max(1, (os.cpu_count() or 2) - 2)  # processes that prefetch batches
TRAIN_SEEDS = 10_000_000  # the first seed of training scenes; held-out splits lie below


def pad_to_square(image: Image.Image) -> NDArray[np.uint8]:
    """`(SIDE, SIDE, 3)` uint8: the image padded to a square and resized, as by the processor."""
    if image.size != (image.width, image.width):
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), PAD)
        canvas.paste(image, offset(image.size))
        image = canvas
    if image.width != SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def offset(wh: tuple[int, int]) -> tuple[int, int]:
    """The top left corner `(x, y)` of an image of size `wh` inside its padded square, pixels."""
    side = max(wh)
    return (side - wh[0]) // 2, (side - wh[1]) // 2


def pool_scene(index: int) -> Scene:
    """The scene of one pool entry; one in four is not square."""
    seed = TRAIN_SEEDS + index
    n = NUM_OBJECTS[index * 7919 % len(NUM_OBJECTS)]
    return make_scene(seed, n, square=index % 4 != 0)


def _render_range(args: tuple[str, int, int]) -> None:
    path, start, stop = args
    pool = np.load(path, mmap_mode="r+")
    for i in range(start, stop):
        pool[i] = pad_to_square(render(pool_scene(i), scale=2 if i % 8 == 5 else 1))
    pool.flush()


@dataclass(frozen=True)
class Pool:
    """`(size, SIDE, SIDE, 3)` uint8 pixels of scenes, memory-mapped or on a device."""

    data: Tensor

    @classmethod
    def open(cls, folder: Path, size: int) -> Pool:
        """The pool in `folder`, memory-mapped; it is rendered on all processors the first time."""
        folder.mkdir(parents=True, exist_ok=True)
        path, part = folder / f"pool-{size}.npy", folder / f"pool-{size}.part"
        if not path.exists():
            shape = (size, SIDE, SIDE, 3)
            np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape).flush()
            step = 500
            jobs = [(str(part), i, min(i + step, size)) for i in range(0, size, step)]
            with ProcessPoolExecutor() as executor:
                list(executor.map(_render_range, jobs))
            part.replace(path)
        return cls(torch.from_numpy(np.load(path, mmap_mode="c")))

    def to(self, device: str) -> Pool:
        """A copy on an accelerator; unchanged for the CPU."""
        return self if device == "cpu" else Pool(self.data.to(device))

    def pixels(self, index: Tensor) -> Tensor:
        """`(B, SIDE, SIDE, 3)` uint8 of the scenes with these numbers."""
        return self.data[index.to(self.data.device)]


def options(description: str | None, *, steps: int, batch: int) -> argparse.ArgumentParser:
    """The options of both phases."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--pool", type=int, default=120_000, help="scenes that are drawn once")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=WORKERS, help="that prefetch batches")
    return parser


def log(path: Path, row: dict[str, float]) -> None:
    """Append a line to a JSON-lines log, without what is NaN."""
    kept = {name: round(value, 4) for name, value in row.items() if not math.isnan(value)}
    with path.open("a") as file:
        print(json.dumps(kept), file=file)


T = TypeVar("T")


def batches(dataset: Dataset[T], steps: range, workers: int) -> Iterator[tuple[int, T]]:
    """`(step, dataset[step])` for every step, in order, prefetched by `workers` processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return zip(steps, loader, strict=True)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
