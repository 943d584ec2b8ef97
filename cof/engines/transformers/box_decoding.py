"""Boxes decoded by a template, several choices per forward pass.

One pass reads the continuations of all of the next few choices side by side (tree attention, as in
SpecInfer, arXiv 2305.09781): a branch attends to the tokens before it and to itself, at the
positions that it would have alone. So once the first digit of a number is chosen, the model's
prediction of the second is already there. The choices equal those of token-by-token greedy decoding
among the tokens that the template allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from cof.attention.bias_mask import Branches
from cof.engines.transformers.decoder_adapter import DecoderAdapter
from cof.engines.transformers.prefix_cache import Prompts, extend_prompts
from cof.prompting.box_template import Node, PartialBox, marginals
from cof.types import Generation

ROW_BRANCHES, BRANCHES = 16, 256
"""The most branch tokens of one pass, in a row and in the batch: room for the ten digits that may
come next, and for the fixed tokens after them. Saving a pass is worth so many tokens: after the
first pass, a box of two digits a number took 0.68 of the time for one row and 0.75 for sixteen
(0.3 B decoder, 620 tokens, bfloat16, one CPU core)."""

ROOT = -1  # where a tree begins: after the tokens that are settled


@dataclass(frozen=True)
class Tree:
    """The continuations of a box that one pass reads.

    Attributes:
        tokens: one for each node, each node after its parent.
        parents: the node before each; `ROOT` for the first ones.
        asked: node -> the box there, where a choice is read.
        ends: `(node, choice)` -> the last node of the tokens that follow from that choice.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    asked: dict[int, PartialBox] = field(default_factory=dict)
    ends: dict[tuple[int, int], int] = field(default_factory=dict)


def build_tree(box: PartialBox, budget: int) -> Tree:
    """The tree of a box's next choices: whole levels only, and at most `budget` nodes."""
    tree = Tree(asked={ROOT: box})
    level = [ROOT]
    while level:
        left = budget - len(tree.tokens)
        choices = [(at, token) for at in level for token in tree.asked[at].choices]
        if len(choices) > left:
            break
        after = {(at, token): tree.asked[at].choose(token) for at, token in choices}
        longer = {choice: box for choice, box in after.items() if not box.done}
        paths = [box.tokens[len(tree.asked[at].tokens) :] for (at, _), box in longer.items()]
        if sum(map(len, paths)) > left:
            break
        level = []
        for ((at, token), box), path in zip(longer.items(), paths, strict=True):
            node = at
            for token_on_path in path:
                tree.tokens.append(token_on_path)
                tree.parents.append(node)
                node = len(tree.tokens) - 1
            tree.ends[at, token] = node
            tree.asked[node] = box
            level.append(node)
    return tree


def stack_trees(
    trees: Sequence[Tree], pad_id: int, device: torch.device, spare: int = 0
) -> Branches:
    """The trees of B rows as tensors, padded on the right, by `spare` nodes more than needed."""
    rows = [torch.tensor(tree.tokens, dtype=torch.long) for tree in trees]
    tokens = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    tokens = pad(tokens, (0, spare), value=pad_id)
    longest, sizes = tokens.shape[1], torch.tensor(list(map(len, rows)))
    seen = (torch.arange(longest) < sizes[:, None]).long()
    visible = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)
    for row, tree in enumerate(trees):
        for node, parent in enumerate(tree.parents):
            if parent != ROOT:
                visible[row, node] |= visible[row, parent]
    return Branches(tokens.to(device), seen.to(device), visible.to(device))


@dataclass
class _Row:
    """One box, and the choices on the way to it."""

    box: PartialBox
    num_cached: int = 0  # how many of the box's tokens the cache holds
    chosen: list[tuple[int, float]] = field(default_factory=list)
    seen: dict[Node, Mapping[int, float]] = field(default_factory=dict)

    def take(self, tree: Tree, logprobs: Mapping[int, Mapping[int, float]]) -> None:
        """Choose as far as the tree reaches."""
        at: int | None = ROOT
        while at is not None and not self.box.done:
            best = max(logprobs[at], key=logprobs[at].__getitem__)
            self.chosen.append((best, logprobs[at][best]))
            self.box = self.box.choose(best)
            at = tree.ends.get((at, best))
        for at, asked in tree.asked.items():
            if asked.chosen == self.box.chosen[: len(asked.chosen)]:
                values = torch.tensor([*logprobs[at].values()], dtype=torch.float64)
                self.seen[asked.node] = dict(
                    zip(logprobs[at], values.softmax(0).tolist(), strict=True)
                )

    def generation(self) -> Generation:
        box = self.box
        starts = [
            replace(box, chosen=box.chosen[:place], node=root)
            for place, root in enumerate(box.compiled.roots)
        ]
        likely = np.array([marginals(start, self.seen) for start in starts], dtype=np.float32)
        ids, logprobs = zip(*self.chosen, strict=True)
        return Generation(box.text, ids, logprobs, likely=likely)


def decode_boxes(
    adapter: DecoderAdapter, prompts: Prompts, starts: Sequence[PartialBox], pad_id: int
) -> tuple[list[Generation], Any]:
    """One box for each of B prompts; all rows choose at the same time.

    Args:
        adapter: of the model.
        prompts: what to read before the boxes.
        starts: the boxes without any number chosen (`CompiledBoxTemplate.start`).
        pad_id: the padding token.

    Returns:
        The boxes, and the KV cache after them.
    """
    budget = min(ROW_BRANCHES, BRANCHES // len(starts))
    rows = [_Row(start) for start in starts]
    device = prompts.inputs["input_ids"].device
    prompts = adapter.with_cache(prompts)
    while not all(row.box.done for row in rows):
        # Rows that are done, or have fewer tokens to read than others, are padded.
        pending = [() if row.box.done else row.box.tokens[row.num_cached :] for row in rows]
        prompts = extend_prompts(prompts, pending, pad_id)
        trees = [Tree() if row.box.done else build_tree(row.box, budget) for row in rows]
        spare = adapter.spare(prompts, max(len(tree.tokens) for tree in trees))
        logits = adapter.read(prompts, stack_trees(trees, pad_id, device, spare))
        for row, tree, logprobs in zip(rows, trees, _read_choices(trees, logits), strict=True):
            row.num_cached = len(row.box.tokens)
            row.take(tree, logprobs)
    return [row.generation() for row in rows], prompts.cache


def _read_choices(trees: Sequence[Tree], logits: Tensor) -> list[dict[int, dict[int, float]]]:
    """For each row: node -> choice -> its log-probability."""
    wanted = [
        (row, at, token)
        for row, tree in enumerate(trees)
        for at, box in tree.asked.items()
        for token in box.choices
    ]
    rows, nodes, tokens = torch.tensor(wanted, device=logits.device).T
    logits = logits.float()
    values = logits[rows, nodes - ROOT, tokens] - logits.logsumexp(-1)[rows, nodes - ROOT]
    logprobs: list[dict[int, dict[int, float]]] = [{} for _ in trees]
    for (row, at, token), value in zip(wanted, values.tolist(), strict=True):
        logprobs[row].setdefault(at, {})[token] = value
    return logprobs
