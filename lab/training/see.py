"""Phase 1 of training: the vision tower learns to name the object that each patch shows.

Each patch has labels: shape, colour, size, glyph and the object's box. The decoder gets the
features alone; the probe that predicts the labels is discarded.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from cof.tiny.scenes import COLORS, DIGITS, LETTERS, SHAPES, SIDE, Scene
from lab.training.data import WORKERS, Pool, batches, offset, pool_scene
from lab.training.model import (
    GRID,
    PATCH,
    VISION_DIM,
    image_features,
    make_config,
    make_model,
    normalize,
)
from lab.training.optim import MixedOptimizer

LEVELS = 51  # coordinates in steps of 0.02
COLOR_NAMES = tuple(COLORS)
GLYPHS = DIGITS + LETTERS
HEADS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLOR_NAMES) + 1,
    "size": 3,
    "glyph": len(GLYPHS) + 1,
}


def patch_labels(scene: Scene) -> NDArray[np.int16]:
    """`(GRID * GRID, 8)`: shape, colour, size, glyph (0: background) and the box's four levels.

    A patch shows the object that covers most of it, if it covers at least a tenth.
    """
    labels = np.zeros((GRID, GRID, 8), dtype=np.int16)
    best = np.zeros((GRID, GRID))
    dx, dy = offset(scene.wh)
    edges = np.arange(GRID + 1) * PATCH
    for t in scene.things:
        x1, y1, x2, y2 = t.xyxy[0] + dx, t.xyxy[1] + dy, t.xyxy[2] + dx, t.xyxy[3] + dy
        across = np.clip(np.minimum(edges[1:], x2) - np.maximum(edges[:-1], x1), 0, None)
        down = np.clip(np.minimum(edges[1:], y2) - np.maximum(edges[:-1], y1), 0, None)
        cover = down[:, None] * across[None, :] / PATCH**2
        shows = (cover > best) & (cover >= 0.1)
        best = np.where(shows, cover, best)
        labels[shows] = (
            1 + SHAPES.index(t.shape),
            1 + COLOR_NAMES.index(t.color),
            1 + (t.size == "large"),
            1 + GLYPHS.index(t.glyph),
            *(round(v / SIDE * (LEVELS - 1)) for v in (x1, y1, x2, y2)),
        )
    return labels.reshape(-1, 8)


class Probe(nn.Module):
    """Linear classifiers on the features, one for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({k: nn.Linear(VISION_DIM, n) for k, n in HEADS.items()})
        self.box = nn.Linear(VISION_DIM, 4 * LEVELS)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = F.layer_norm(features, (VISION_DIM,))
        loss = x.new_zeros((), dtype=torch.float32)
        stats: dict[str, Tensor] = {}
        shown = labels[..., 0] > 0
        for i, (name, head) in enumerate(self.heads.items()):
            logits = head(x).float()
            each = F.cross_entropy(logits.flatten(0, 1), labels[..., i].flatten(), reduction="none")
            weight = torch.where(shown.flatten(), 1.0, 0.15)
            loss = loss + (each * weight).sum() / weight.sum()
            right = logits.argmax(-1) == labels[..., i]
            stats[name] = right[shown].float().mean()
        box = self.box(x[shown]).float().unflatten(-1, (4, LEVELS))
        target = labels[shown][:, 4:]
        loss = loss + 0.5 * F.cross_entropy(box.flatten(0, 1), target.flatten())
        stats["box_err"] = (box.argmax(-1) - target).abs().float().mean() / (LEVELS - 1)
        return loss, stats


class PatchBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batch of each step, `(indices into the pool, labels)`; the step determines it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"see-{step}")
        index = [rng.randrange(self.args.pool) for _ in range(self.args.batch)]
        labels = np.stack([patch_labels(pool_scene(i)) for i in index])
        return torch.tensor(index), torch.from_numpy(labels)


def train(args: argparse.Namespace) -> None:
    """Train; resumes from `see.pt` if there is one."""
    torch.manual_seed(0)
    pool = Pool.open(args.out, args.pool).to(args.device)
    model = make_model(make_config(64, 3, 0, 1, 2)).to(args.device)
    tower = model.model.vision_tower.to(torch.bfloat16)
    probe = Probe().to(torch.bfloat16).to(args.device)
    used = [
        (n, p)
        for n, p in tower.named_parameters()
        if "layers.6." not in n and "post_layernorm" not in n
    ]
    named = [*used, *((f"probe.{n}", p) for n, p in probe.named_parameters())]
    optimizer = MixedOptimizer(named, lr_matrix=0.02, lr_rest=2e-3)
    checkpoint, start = args.out / "see.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=args.device)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began = time.time()
    for step, (index, labels) in batches(
        PatchBatches(args), range(start, args.steps), args.workers
    ):
        pixels = normalize(pool.pixels(index)).to(torch.bfloat16)
        loss, stats = probe(image_features(model, pixels), labels.long().to(args.device))
        loss.backward()
        warm, left = min(1.0, (step + 1) / 100), 1 - step / args.steps
        optimizer.step(warm * min(1.0, left / 0.5))
        if step % 50 == 49:
            row = {"step": step + 1, "loss": float(loss.detach())}
            row |= {name: float(value) for name, value in stats.items()}
            row["images_s"] = args.batch * (step + 1 - start) / (time.time() - began)
            with (args.out / "see.jsonl").open("a") as log:
                print(json.dumps({k: round(v, 4) for k, v in row.items()}), file=log)
        if step % 500 == 499 or step + 1 == args.steps:
            torch.save({"optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--pool", type=int, default=120_000)
    parser.add_argument("--steps", type=int, default=1_600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="processes that prefetch batches"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
