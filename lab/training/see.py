"""Phase 1 of training: the vision tower learns to name the object that each patch shows.

Each patch has labels: shape, colour, size, glyph and the object's box. The decoder gets the
features alone; the probe that predicts the labels is discarded.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from cof.tiny.scenes import COLORS, DIGITS, LETTERS, SHAPES, SIDE, Scene
from lab.training.data import Pool, batches, log, offset, options, pool_scene
from lab.training.model import (
    GRID,
    VISION_DIM,
    cover,
    image_features,
    is_used,
    make_model,
    normalize,
)
from lab.training.optim import MixedOptimizer, schedule
from lab.training.tokenizer import LEVELS, make_tokenizer

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
    shift = 2 * offset(scene.wh)
    for t in scene.things:
        xyxy = [side + by for side, by in zip(t.xyxy, shift, strict=True)]
        covered = cover(xyxy)
        shows = (covered > best) & (covered >= 0.1)
        best = np.where(shows, covered, best)
        labels[shows] = (
            1 + SHAPES.index(t.shape),
            1 + COLOR_NAMES.index(t.color),
            1 + (t.size == "large"),
            1 + GLYPHS.index(t.glyph),
            *(round(v / SIDE * (LEVELS - 1)) for v in xyxy),
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
    model: Any = make_model(make_tokenizer())
    model.to(args.device)
    probe = Probe().to(torch.bfloat16).to(args.device)
    used = [(n, p) for n, p in model.model.vision_tower.named_parameters() if is_used(n)]
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
        optimizer.step(schedule(step, args.steps, 100))
        if step % 50 == 49:
            row = {"step": step + 1, "loss": float(loss.detach())}
            row |= {name: float(value) for name, value in stats.items()}
            row["images_s"] = args.batch * (step + 1 - start) / (time.time() - began)
            log(args.out / "see.jsonl", row)
        if step % 500 == 499 or step + 1 == args.steps:
            torch.save({"optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)


def main() -> None:
    train(options(__doc__, steps=1_600, batch=256).parse_args())


if __name__ == "__main__":
    main()
