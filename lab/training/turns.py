"""Training sequences of the decoder: the questions about an image, packed into rows.

Many questions share one image: a sequence is `[prefix | rows]`. The prefix holds the image, a row
holds several questions one after another, and every question is a small tree: its first line, then
an answer branch and a box branch. A branch sees the prefix, its question and itself, so the model
sees exactly what it will see at inference, and the image is computed once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cof.geometry.boxes import union
from cof.tiny.questions import KINDS
from cof.tiny.scenes import SIDE, Scene
from lab.training.data import offset
from lab.training.model import GRID, cover
from lab.training.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    LEVELS,
    PAPER,
    REFER,
    USER,
    WHERE,
    coordinate_tokens,
    phrase,
)

ROWS, ROW = 4, 64  # rows of tokens per image
N_IMAGE = GRID * GRID
IMAGE_AT = 2  # the prefix is <s>, "USER: ", the image tokens, "\n"
PREFIX = IMAGE_AT + N_IMAGE + 1
Mix = dict[str, int]
DETAILS: Mix = {  # shares of the question kinds in the first part of training
    "glyph": 5, "color": 3, "shape": 2, "size": 1, "existence": 2, "glyph_existence": 1,
    "count": 1, "verify_count": 1, "position": 2, "verify": 3, "choice": 3,
}  # fmt: skip
LOGIC: Mix = {  # and in the second part, with more questions that compare
    "glyph": 3, "color": 2, "shape": 3, "size": 1, "existence": 4, "glyph_existence": 2,
    "count": 1, "verify_count": 1, "position": 3, "verify": 5, "choice": 5,
}  # fmt: skip
P_PHRASE = 0.2  # share of bare referring expressions among the turns
WIDE = ("existence", "count", "verify_count", "position")
"""Kinds that ask about the scene; all others ask about details of one object."""
SPARSE = 2
"""Questions about details are answered in scenes of at most so many objects, boxes in all scenes:
so grounding gets more data than answering, and looking closer can help."""


class Words:
    """Token ids of the texts that make up training sequences."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        self.bos, self.eos = self(BOS)[0], self(EOS)[0]
        self.prefix = [*self(BOS + USER), *self("<image>") * N_IMAGE, *self("\n")]
        x1, middle, y2 = ([self(t)[0] for t in ts] for ts in coordinate_tokens())
        self.slots = (x1, middle, middle, y2)

    def __call__(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def box(self, levels: tuple[int, ...]) -> list[int]:
        return [slot[v] for slot, v in zip(self.slots, levels, strict=True)]


@dataclass
class Rows:
    """The packed questions of one image, flat over `ROWS * ROW` positions."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]  # -1: no loss
    part: NDArray[np.int64]  # 3 * question + (0 question, 1 answer branch, 2 box branch)
    place: NDArray[np.int64]  # position id, counted from the prefix's end
    role: NDArray[np.int64]  # of the target: 0 none, 1 answer, 2..5 coordinates, 6 end
    kind: NDArray[np.int64]
    look: list[tuple[int, Pixels]]  # position that predicts a box's first token, and the box


KIND_NAMES = (*KINDS, "phrase")
Pixels = tuple[float, float, float, float]


@dataclass(frozen=True)
class Branch:
    """A continuation of a question: the last `len(targets)` positions of `tokens` predict
    `targets`, which have the given `roles`."""

    part: int  # 1 answer, 2 box
    tokens: list[int]
    targets: list[int]
    roles: list[int]


@dataclass(frozen=True)
class Turn:
    """One question as a tree: its first line, then an answer and a box, or a box alone."""

    kind: str
    stem: list[int]
    branches: tuple[Branch, ...]
    xyxy: Pixels | None  # box of the objects, in the padded square; None: no object

    def __len__(self) -> int:
        return len(self.stem) + sum(len(branch.tokens) for branch in self.branches)


def make_turn(
    scene: Scene, rng: random.Random, words: Words, mix: Mix, sparse: int = SPARSE
) -> Turn:
    """A random question about a scene, in one of the prompt styles that the model learns.

    A question about a detail has an answer only if the scene has at most `sparse` objects.
    """
    branches: list[Branch] = []
    things: tuple[int, ...]
    if rng.random() < P_PHRASE:
        kind = "phrase"
        text, index = phrase(scene, rng)
        things = (index,)
        refer = rng.random() < 0.3
        stem = words(REFER + " " + text) if refer else words(text)
        where = [] if refer else words(WHERE)
    else:
        kind = rng.choices(list(mix), list(mix.values()))[0]
        q = KINDS[kind](scene, rng)
        things, answer = q.things, words(" " + q.answer)
        first, *options = q.text.split("\n")
        inline = q.suffix.startswith(" ")  # "Please answer yes or no." is part of the line
        suffix = q.suffix if rng.random() < 0.5 or kind == "choice" else ""
        stem = words(first + (suffix if inline else ""))
        rest = [t for o in options for t in words("\n" + o)]
        rest += words(suffix) if suffix and not inline else []
        where = words(rng.choice((WHERE, PAPER)))
        if kind in WIDE or len(scene.things) <= sparse:
            branches.append(
                Branch(1, [*rest, *words(ASSISTANT), *answer], [*answer, words.eos], [1, 6])
            )
    xyxy = around(scene, things)
    box = words.box(tuple(round(v / SIDE * (LEVELS - 1)) for v in xyxy))
    branches.append(
        Branch(2, [*where, *words(ASSISTANT), *box], [*box, words.eos], [2, 3, 4, 5, 6])
    )
    return Turn(kind, stem, tuple(branches), xyxy if things else None)


def around(scene: Scene, things: tuple[int, ...]) -> Pixels:
    """The box around some objects, without any that of the whole scene, in the padded square."""
    dx, dy = offset(scene.wh)
    if not things:
        return dx, dy, dx + scene.wh[0], dy + scene.wh[1]
    x1, y1, x2, y2 = union(scene.things[i].xyxy for i in things)
    return x1 + dx, y1 + dy, x2 + dx, y2 + dy


def pack(
    scene: Scene, rng: random.Random, words: Words, mix: Mix = DETAILS, sparse: int = SPARSE
) -> Rows:
    """Fill the rows of one image with questions."""

    def empty(value: int = 0) -> NDArray[np.int64]:
        return np.full(ROWS * ROW, value, dtype=np.int64)

    out = Rows(empty(), empty(-1), empty(-3), empty(), empty(), empty(), look=[])
    row, at, n = 0, 0, 0
    while True:
        turn = make_turn(scene, rng, words, mix, sparse)
        if at + len(turn) > ROW:
            row, at = row + 1, 0
            if row == ROWS:
                return out
        start = row * ROW + at
        stem = slice(start, start + len(turn.stem))
        out.tokens[stem] = turn.stem
        out.part[stem] = 3 * n
        out.place[stem] = np.arange(len(turn.stem))
        start = stem.stop
        for branch in turn.branches:
            span = slice(start, start + len(branch.tokens))
            out.tokens[span] = branch.tokens
            out.part[span] = 3 * n + branch.part
            out.place[span] = len(turn.stem) + np.arange(len(branch.tokens))
            out.kind[span] = KIND_NAMES.index(turn.kind)
            to = slice(span.stop - len(branch.targets), span.stop)
            out.targets[to] = branch.targets
            out.role[to] = branch.roles
            if branch.part == 2 and turn.xyxy is not None:
                out.look.append((to.start, turn.xyxy))
            start = span.stop
        at += len(turn)
        n += 1


def object_cells(xyxy: Pixels) -> NDArray[np.float32]:
    """`(GRID * GRID,)`: 1 for patches that the box covers to a quarter or more, or the most."""
    covered = cover(xyxy).ravel()
    return (covered >= min(0.25, covered.max())).astype(np.float32)


def own_mask(part: Tensor) -> Tensor:
    """`(..., ROW)` parts -> `(..., ROW, ROW)` additive mask: who sees whom in the row's trees."""
    same = part[..., :, None] // 3 == part[..., None, :] // 3
    branch = part % 3
    shared = (branch[..., None, :] == 0) | (branch[..., :, None] == branch[..., None, :])
    see = same & shared & torch.ones(ROW, ROW, dtype=torch.bool, device=part.device).tril()
    return torch.where(see, 0.0, float("-inf"))


@dataclass
class Batch:
    """The rows of several images, stacked; see `Rows` for the fields."""

    tokens: Tensor  # (B, ROWS * ROW)
    targets: Tensor
    part: Tensor
    place: Tensor
    role: Tensor
    kind: Tensor
    look_image: Tensor  # (N,): index of the image of a box
    look_at: Tensor  # (N,): position in its rows that predicts the box's first token
    cells: Tensor  # (N, GRID * GRID)

    @classmethod
    def of(cls, rows: list[Rows]) -> Batch:
        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(r, name) for r in rows]))

        look = [(b, at, xyxy) for b, r in enumerate(rows) for at, xyxy in r.look]
        return cls(
            **{name: stack(name) for name in ("tokens", "targets", "part", "place")},
            **{name: stack(name) for name in ("role", "kind")},
            look_image=torch.tensor([x[0] for x in look]),
            look_at=torch.tensor([x[1] for x in look]),
            cells=torch.from_numpy(np.stack([object_cells(x[2]) for x in look])),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))
