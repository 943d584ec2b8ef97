"""Phase 2 of training: the decoder learns to answer and to ground.

The losses are those of plain answers and of grounding; the bias of CoF is never applied. An
auxiliary loss belongs to grounding: in one middle layer, half of the heads learn to attend to the
object at the position that predicts the first token of the box, and only there. The vision tower
is frozen in the first part, and then learns slowly with the decoder.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from cof.tiny import checkpoint_path
from lab.training.data import Pool, batches, log, options, pool_scene
from lab.training.export import HUB_NAMES, hub_name
from lab.training.model import image_features, is_used, make_model, normalize
from lab.training.optim import MixedOptimizer, schedule
from lab.training.tokenizer import LEVELS, make_tokenizer
from lab.training.turns import (
    DETAILS,
    IMAGE_AT,
    KIND_NAMES,
    LOGIC,
    N_IMAGE,
    PREFIX,
    ROW,
    ROWS,
    SPARSE,
    Batch,
    Words,
    own_mask,
    pack,
)

LOOK_LAYER, LOOK_HEADS = 3, 4
READ, TUNE = 0.25, 0.5  # shares of the steps: with the mix DETAILS; with a frozen vision tower
MOST = 16  # objects in a scene
TUNE_RATE = 0.1  # learning rate of the vision tower over that of the decoder


def soft_targets(words: Words, vocab: int, spread: float = 0.7) -> Tensor:
    """`(V, V)`: the target distribution of each token; that of a coordinate covers near ones."""
    table = torch.eye(vocab)
    at = torch.arange(LEVELS)
    near = torch.exp(-((at[:, None] - at[None]) ** 2) / (2 * spread**2))
    near = near / near.sum(1, keepdim=True)
    for ids in words.slots:
        i = torch.tensor(ids)
        table[i[:, None], i[None]] = near
    return table


def block(
    layer: LlamaDecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """One decoder layer over `[prefix | rows]`: the prefix is causal, a row sees it and itself.

    The weights and the arithmetic are those of transformers' layer, with two block products in
    place of one masked square.

    Args:
        x: `(B, PREFIX + ROWS * ROW, dim)`.
        cos, sin: `(B, T, D)` rotary tables.
        causal: `(PREFIX, PREFIX)` additive mask.
        own: `(B, 1, ROWS, ROW, ROW)` additive mask within each row.

    Returns:
        The layer's output, and its attention weights `(B, H, ROWS, ROW, PREFIX + ROW)`.
    """
    attention = layer.self_attn
    b, t, _ = x.shape
    d = attention.head_dim
    y = layer.input_layernorm(x)
    made = [project(y) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
    q, k, v = (each.view(b, t, -1, d).transpose(1, 2) for each in made)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    q, h = q * d**-0.5, q.shape[1]
    kp, vp = k[:, :, :PREFIX], v[:, :, :PREFIX]
    prefix = (q[:, :, :PREFIX] @ kp.transpose(-1, -2) + causal).softmax(-1) @ vp
    qr, kr, vr = (z[:, :, PREFIX:] for z in (q, k, v))
    to_prefix = (qr @ kp.transpose(-1, -2)).view(b, h, ROWS, ROW, PREFIX)
    split = (b, h, ROWS, ROW, d)
    to_row = qr.reshape(split) @ kr.reshape(split).transpose(-1, -2) + own
    weights = torch.cat([to_prefix, to_row], dim=-1).softmax(-1)
    rows = weights[..., :PREFIX].reshape(b, h, ROWS * ROW, PREFIX) @ vp
    rows = rows + (weights[..., PREFIX:] @ vr.reshape(split)).view(b, h, ROWS * ROW, d)
    mixed = torch.cat([prefix, rows], dim=2).transpose(1, 2).reshape(b, t, h * d)
    x = x + attention.o_proj(mixed)
    return x + layer.mlp(layer.post_attention_layernorm(x)), weights


def look_loss(weights: Tensor, queries: tuple[Tensor, Tensor], cells: Tensor) -> Tensor:
    """Negative log of the attention to the object where the first token of a box is predicted.

    Args:
        weights: attention weights of the look layer, `(B, H, ROWS, ROW, PREFIX + ROW)`.
        queries: `(batch index, row position)`, `(N,)` each.
        cells: `(N, GRID * GRID)`, 1 on the object.
    """
    seen = weights.flatten(2, 3)[queries[0], :LOOK_HEADS, queries[1]]  # (N, heads, keys)
    mass = (seen[..., IMAGE_AT : IMAGE_AT + N_IMAGE].float() * cells[:, None]).sum(-1)
    return -(mass + 1e-4).log().mean()


def load_tower(model: Any, path: Path) -> None:
    """Put the weights of phase 1 into the model's vision tower; without the file, those of
    `tiny-early`, which has them as they were."""
    if path.exists():
        weights = torch.load(path, weights_only=True)["optimizer"]["high"]
        tower = {n: w for n, w in weights.items() if not n.startswith("probe.")}
    else:
        weights = load_file(checkpoint_path("tiny-early") / "model.safetensors")
        prefix = HUB_NAMES["model.vision_tower."]
        tower = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    _, unexpected = model.model.vision_tower.load_state_dict(tower, strict=False)
    if unexpected:
        raise ValueError(f"{path} is not a vision tower: {unexpected}")


def load_checkpoint(model: Any, folder: Path) -> None:
    """Put the weights of an exported checkpoint into the model."""
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: weights[hub_name(name)] for name in model.state_dict()})


def curriculum(step: int, total: int) -> int:
    """The largest number of objects at this step: from 3 to 16 over the first fifth."""
    return 3 + int(13 * min(1.0, step / (0.2 * total)))


class Trainer:
    """The model with its constant tensors; `loss` is all that training minimises."""

    def __init__(self, words: Words, *, device: str = "cpu", compiled: bool = False) -> None:
        model: Any = make_model(words.tokenizer)
        self.model = model.to(device)
        self.soft = soft_targets(words, len(words.tokenizer)).to(device)
        self.prefix = torch.tensor(words.prefix, device=device)
        self.causal = torch.full((PREFIX, PREFIX), float("-inf"), device=device).triu(1)
        self.block = torch.compile(block, dynamic=False) if compiled else block

    def forward(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states of the rows `(B, ROWS * ROW, dim)`, and the look layer's weights."""
        decoder, size = self.model.model.language_model, len(features)
        ids = torch.cat([self.prefix.expand(size, -1), batch.tokens], 1)
        image = self.model.model.multi_modal_projector(features)
        x = decoder.embed_tokens(ids)
        x = torch.cat([x[:, :IMAGE_AT], image, x[:, IMAGE_AT + N_IMAGE :]], 1)
        first = torch.arange(PREFIX, device=x.device).expand(size, -1)
        positions = torch.cat([first, PREFIX + batch.place], 1)
        cos, sin = decoder.rotary_emb(x, positions)
        own = own_mask(batch.part.view(-1, 1, ROWS, ROW)).to(x.dtype)
        causal = self.causal.to(x.dtype)
        looking = x
        for i, layer in enumerate(decoder.layers):
            x, weights = self.block(layer, x, cos, sin, causal, own)
            looking = weights if i == LOOK_LAYER else looking
        return decoder.norm(x[:, PREFIX:]), looking

    def loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over answers, boxes, ends and attention, and the values to log.

        A logged value is NaN if no question of its kind was in the batch.
        """
        hidden, weights = self.forward(features, batch)
        looked = look_loss(weights, (batch.look_image, batch.look_at), batch.cells)
        chosen = batch.targets >= 0
        goal, role, kind = batch.targets[chosen], batch.role[chosen], batch.kind[chosen]
        logits = self.model.lm_head(hidden[chosen]).float()
        each = -(self.soft[goal] * logits.log_softmax(-1)).sum(-1)
        answer, end, box = role == 1, role == 6, (role >= 2) & (role <= 5)
        answers = torch.where(answer, each, 0.0).sum() / answer.sum().clamp(min=1)
        loss = answers + 2 * mean(each, box) + 0.1 * mean(each, end)
        stats = {
            "answer_loss": mean(each, answer),
            "box_loss": mean(each, box),
            "look": torch.exp(-looked),
        }
        right = (logits.argmax(-1) == goal).float()
        off = (logits.argmax(-1) - goal).abs()  # neighbouring coordinates have neighbouring ids
        for i, name in enumerate(KIND_NAMES):
            stats[name] = mean(right, answer & (kind == i))
        for i, name in enumerate(("x1", "y1", "x2", "y2")):
            stats[name] = mean((off <= 2).float(), role == 2 + i)
        return loss + 0.3 * looked, {name: value.detach() for name, value in stats.items()}


def mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values, NaN without any; it does not wait for the device."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum()


class QuestionBatches(torch.utils.data.Dataset[tuple[Tensor, Batch]]):
    """The batch of each step, `(indices into the pool, rows)`; the step determines it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.words = Words(make_tokenizer())
        things = [len(pool_scene(i).things) for i in range(args.pool)]
        self.order = np.argsort(things, kind="stable")
        self.num_objects = np.sort(things)

    def __getitem__(self, step: int) -> tuple[Tensor, Batch]:
        rng = random.Random(f"speak-{step}")
        # a checkpoint that is trained further has had its curriculum
        most = MOST if self.args.start else curriculum(step, self.args.steps)
        reach = int(np.searchsorted(self.num_objects, most, "right"))
        index = [int(self.order[rng.randrange(reach)]) for _ in range(self.args.batch)]
        mix = DETAILS if step < READ * self.args.steps else LOGIC
        rows = [pack(pool_scene(i), rng, self.words, mix, self.args.sparse) for i in index]
        return torch.tensor(index), Batch.of(rows)


def train(args: argparse.Namespace) -> None:
    """Train; resumes from `speak.pt` if there is one."""
    torch.manual_seed(0)
    dataset = QuestionBatches(args)
    trainer = Trainer(dataset.words, device=args.device, compiled=True)
    model = trainer.model
    load_tower(model, args.out / "see.pt")
    if args.start is not None:
        load_checkpoint(model, args.start)
    pool = Pool.open(args.out, args.pool).to(args.device)
    named = list(model.named_parameters())
    decoder = MixedOptimizer([(n, p) for n, p in named if "vision_tower" not in n], 0.02, 2e-3)
    seeing = [(n, p) for n, p in named if "vision_tower" in n and is_used(n)]
    tower = MixedOptimizer(seeing, 0.02, 2e-3)
    checkpoint, start = args.out / "speak.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=args.device)
        decoder.load_state_dict(state["speaks"])
        tower.load_state_dict(state["sees"])
        start = state["step"]
    began = time.time()
    running: list[dict[str, Tensor]] = []
    stop = min(args.stop or args.steps, args.steps)
    for step, (index, batch) in batches(dataset, range(start, stop), args.workers):
        tuned = step >= TUNE * args.steps
        with torch.set_grad_enabled(tuned):
            features = image_features(model, normalize(pool.pixels(index)))
        loss, stats = trainer.loss(features, batch.to(args.device))
        loss.backward()
        rate = schedule(step, args.steps, 100 if args.start else 200)
        decoder.step(rate)
        if tuned:
            tower.step(TUNE_RATE * rate)

        running.append(stats)
        if step % 50 == 49:
            line: dict[str, float] = {"step": step + 1, "most": curriculum(step, args.steps)}
            line |= {k: float(torch.stack([s[k] for s in running]).nanmean()) for k in stats}
            line["images_s"] = args.batch * (step + 1 - start) / (time.time() - began)
            log(args.out / "speak.jsonl", line)
            running = []
        if step + 1 in args.keep:
            weights = {n: p.detach().cpu() for n, p in (decoder.low | tower.low).items()}
            torch.save({"weights": weights, "step": step + 1}, args.out / f"speak-{step + 1}.pt")
        if step % 500 == 499 or step + 1 == stop:
            state = {"speaks": decoder.state_dict(), "sees": tower.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)


def main() -> None:
    parser = options(__doc__, steps=4_200, batch=128)
    parser.add_argument(
        "--sparse",
        type=int,
        default=SPARSE,
        help="scenes with more objects get no questions about details",
    )
    parser.add_argument(
        "--keep", type=int, nargs="*", default=[], help="steps whose weights are saved separately"
    )
    parser.add_argument("--start", type=Path, help="a checkpoint whose weights it goes on from")
    parser.add_argument("--stop", type=int, help="stop at this step of the same schedule")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
