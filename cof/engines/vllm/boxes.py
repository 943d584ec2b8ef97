"""Boxes decoded by a template with vLLM, which takes one set of allowed tokens for a whole request.

So the first request may write any of the template's tokens. As long as these follow the template,
each is also the likeliest of the fewer that it allows there. A model that knows the format writes
the whole box so, in as many steps as it has tokens. What is left is asked for choice by choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cof.prompting.box_template import CompiledBoxTemplate, PartialBox
from cof.types import Generation


@dataclass(frozen=True)
class Part:
    """What is asked for next.

    Attributes:
        box: so far; its tokens follow the prompt.
        most: how many tokens may be written.
        allowed: which.
        ends: those of them after which the box is whole.
    """

    box: PartialBox
    most: int
    allowed: list[int]
    ends: list[int]


Ask = Callable[[Mapping[int, Part]], Sequence[Any]]
"""Parts by row -> vLLM's `CompletionOutput` of each, decoded greedily."""


def decode_boxes(starts: Sequence[PartialBox], ask: Ask) -> list[Generation]:
    """The greedy box of each row, given before its first number."""
    rows = [_Row(start) for start in starts]
    while left := {number: row for number, row in enumerate(rows) if not row.box.done}:
        outputs = ask({number: row.next_part() for number, row in left.items()})
        for row, output in zip(left.values(), outputs, strict=True):
            row.take(output)
    return [row.generation() for row in rows]


@dataclass
class _Row:
    """One box, and the choices on the way to it."""

    box: PartialBox
    asked: bool = False
    chosen: list[tuple[int, float]] = field(default_factory=list)

    def next_part(self) -> Part:
        """All of the box at first, and then a choice."""
        box = self.box
        return Part(box, 1, box.choices, []) if self.asked else Part(box, *_whole(box.compiled))

    def take(self, output: Any) -> None:
        """Choose as far as the output follows the template."""
        self.asked, place = True, len(self.box.tokens)
        for token, logprobs in zip(output.token_ids, output.logprobs, strict=True):
            settled = self.box.tokens[place : place + 1]
            if self.box.done or token not in (settled or self.box.choices):
                return
            if not settled:
                self.chosen.append((token, logprobs[token].logprob))
                self.box = self.box.choose(token)
            place += 1

    def generation(self) -> Generation:
        ids, logprobs = zip(*self.chosen, strict=True)
        return Generation(self.box.text, ids, logprobs)


@lru_cache
def _whole(template: CompiledBoxTemplate) -> tuple[int, list[int], list[int]]:
    """The most tokens of a box, all tokens of boxes, and those at the end of boxes alone."""
    *before, last = template.slots
    ends = {ids[-1] for ids in last}
    others = {token for slot in before for ids in slot for token in ids}
    others.update(token for ids in last for token in ids[:-1])
    most = sum(max(map(len, slot)) for slot in template.slots)
    return most, sorted(ends | others), sorted(ends - others)
