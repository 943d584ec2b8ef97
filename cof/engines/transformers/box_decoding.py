"""Boxes written by a model in a given form, several choices to a forward pass.

What follows each of the next few choices can be read beside all the others (tree attention, as in
SpecInfer, arXiv 2305.09781): a branch sees what came before it and itself, and stands where it
would stand if it were the only one. So when the first digit of a number is known, what the model
says after it is known as well. The choices are those of token-by-token greedy decoding among the
tokens that the form allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cof.attention.bias_mask import Branches
from cof.engines.transformers.prefix_cache import Prompts, extended
from cof.prompting.box_template import CompiledBoxTemplate, Node, PartialBox, marginals
from cof.types import Generation

ROW_BRANCHES, BRANCHES = 16, 256
"""The ten digits that may come next, and what rides along with them. A pass less is worth that many
tokens more: in the passes that follow the first, a box of two digits a number took 0.68 of the time
for one row and 0.75 for sixteen (0.3 B decoder, 620 tokens, bfloat16, one CPU core)."""

NOW = -1  # where a tree begins: behind the tokens that are settled


class Reader(Protocol):
    """What reads: a adapter (`decoder_adapter`) that can be continued."""

    def read(self, prompts: Prompts, branches: Branches, cache: Any) -> tuple[Tensor, Any]:
        """One pass over what `cache` does not hold, and over branches, which it does not keep.

        Returns:
            Logits `(B, 1 + N, V)` after the prompts' last token and after each of the N tokens of
            the branches, and the cache.
        """
        ...


@dataclass(frozen=True)
class Tree:
    """The ways in which a box may go on, as far as one pass reads them.

    Attributes:
        tokens: of the nodes, each after its parent.
        parents: the node before each; `NOW` where it follows what is settled.
        asked: the box at each node behind which a choice is read.
        ends: `(node, choice)` -> the last node of what follows from that choice.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    asked: dict[int, PartialBox] = field(default_factory=dict)
    ends: dict[tuple[int, int], int] = field(default_factory=dict)


def ahead(box: PartialBox, budget: int) -> Tree:
    """The tree of a box's next choices, all choices of a level or none, in `budget` nodes."""
    tree = Tree(asked={NOW: box})
    level = [NOW]
    while level:
        left = budget - len(tree.tokens)
        choices = [(at, token) for at in level for token in tree.asked[at].choices]
        if len(choices) > left:
            break
        after = {(at, token): tree.asked[at].choose(token) for at, token in choices}
        paths = {
            (at, token): of.tokens[len(tree.asked[at].tokens) :]
            for (at, token), of in after.items()
            if not of.done
        }
        if sum(map(len, paths.values())) > left:
            break
        level = []
        for (at, token), path in paths.items():
            node = at
            for each in path:
                tree.tokens.append(each)
                tree.parents.append(node)
                node = len(tree.tokens) - 1
            tree.ends[at, token] = node
            tree.asked[node] = after[at, token]
            level.append(node)
    return tree


def side_by_side(trees: Sequence[Tree], pad_id: int, device: torch.device) -> Branches:
    """Several rows' trees as tensors, the smaller ones padded behind."""
    longest = max(len(tree.tokens) for tree in trees)
    tokens = torch.full((len(trees), longest), pad_id)
    seen = torch.zeros(len(trees), longest, dtype=torch.long)
    visible = torch.zeros(len(trees), longest, longest, dtype=torch.bool)
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size] = torch.tensor(tree.tokens, dtype=torch.long)
        seen[row, :size] = 1
        for node, parent in enumerate(tree.parents):
            if parent != NOW:
                visible[row, node] = visible[row, parent]
            visible[row, node, node] = True
    return Branches(tokens.to(device), seen.to(device), visible.to(device))


@dataclass
class _Row:
    """One box, and what the model said on the way."""

    box: PartialBox
    read: int = 0  # how many of the box's tokens the cache holds
    chosen: list[tuple[int, float]] = field(default_factory=list)
    seen: dict[Node, Mapping[int, float]] = field(default_factory=dict)

    def take(self, tree: Tree, logprobs: Mapping[int, Mapping[int, float]]) -> None:
        """Choose as far as the tree goes."""
        at: int | None = NOW
        while at is not None and not self.box.done:
            best = max(logprobs[at], key=logprobs[at].__getitem__)
            self.chosen.append((best, logprobs[at][best]))
            self.box = self.box.choose(best)
            at = tree.ends.get((at, best))
        for at, asked in tree.asked.items():
            if asked.chosen == self.box.chosen[: len(asked.chosen)]:
                most = max(logprobs[at].values())
                weights = {token: math.exp(of - most) for token, of in logprobs[at].items()}
                total = sum(weights.values())
                self.seen[asked.node] = {token: of / total for token, of in weights.items()}

    def generation(self) -> Generation:
        box = self.box
        starts = [
            replace(box, chosen=box.chosen[:place], node=root)
            for place, root in enumerate(box.compiled.roots)
        ]
        likely = np.array([marginals(start, self.seen) for start in starts], dtype=np.float32)
        ids, logprobs = zip(*self.chosen, strict=True)
        return Generation(box.text, ids, logprobs, likely)


def decode_boxes(
    reader: Reader,
    prompts: Prompts,
    form: CompiledBoxTemplate,
    pad_id: int,
    *,
    row_branches: int = ROW_BRANCHES,
    branches: int = BRANCHES,
) -> tuple[list[Generation], Any]:
    """One box for each prompt; all rows choose at the same time.

    Args:
        row_branches, branches: the most tokens of branches that a pass reads, in a row and in all.

    Returns:
        The boxes, and the cache that they leave.
    """
    budget = min(row_branches, branches // len(prompts.features))
    rows = [_Row(form.start()) for _ in prompts.features]
    device = prompts.inputs["input_ids"].device
    cache = None
    while not all(row.box.done for row in rows):
        # Done rows, and those with less to read than others, are padded.
        pending = [() if row.box.done else row.box.tokens[row.read :] for row in rows]
        prompts = extended(prompts, pending, pad_id)
        trees = [Tree() if row.box.done else ahead(row.box, budget) for row in rows]
        logits, cache = reader.read(prompts, side_by_side(trees, pad_id, device), cache)
        for row, tree, logprobs in zip(rows, trees, _asked(trees, logits), strict=True):
            row.read = len(row.box.tokens)
            row.take(tree, logprobs)
    return [row.generation() for row in rows], cache


def _asked(trees: Sequence[Tree], logits: Tensor) -> list[dict[int, dict[int, float]]]:
    """Of every row and node the log-probability of each choice there."""
    wanted = [
        (row, at, token)
        for row, tree in enumerate(trees)
        for at, box in tree.asked.items()
        for token in box.choices
    ]
    rows, nodes, tokens = torch.tensor(wanted, device=logits.device).T
    logits = logits.float()
    found = logits[rows, nodes - NOW, tokens] - logits.logsumexp(-1)[rows, nodes - NOW]
    logprobs: list[dict[int, dict[int, float]]] = [{} for _ in trees]
    for (row, at, token), value in zip(wanted, found.tolist(), strict=True):
        logprobs[row].setdefault(at, {})[token] = value
    return logprobs
