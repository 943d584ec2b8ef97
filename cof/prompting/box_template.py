"""Boxes written in one fixed form, so that only their numbers are left to the model.

A form is compiled once for a tokenizer. What varies between two boxes are a few tokens, digits or
whole numbers; all others are known beforehand and need no forward pass of their own: they ride
along with the next token that the model chooses (`box_decoding`). The box cannot go wrong.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise


@dataclass(frozen=True)
class BoxTemplate:
    """How a model family writes a box.

    Attributes:
        pattern: the box with `{}` for each of its four numbers.
        numbers: all that may stand there, as written, in ascending order.

    Example:
        >>> tenths = BoxTemplate("[{}, {}, {}, {}]", tuple(f"0.{i}" for i in range(10)))
        >>> tenths.text((1, 2, 5, 9))
        '[0.1, 0.2, 0.5, 0.9]'
    """

    pattern: str
    numbers: tuple[str, ...]

    def text(self, chosen: Iterable[int]) -> str:
        """A box, given the place of each of its numbers in `numbers`."""
        return self.pattern.format(*(self.numbers[index] for index in chosen))


@dataclass(frozen=True, eq=False)
class Node:
    """All numbers that begin with the same tokens.

    Attributes:
        numbers: their places in `BoxTemplate.numbers`, ascending.
        follow: the tokens that may come next, and what is left after each; empty: the number is
            written.
    """

    numbers: tuple[int, ...]
    follow: Mapping[int, Node]


@dataclass(frozen=True)
class CompiledBoxTemplate:
    """A form in the tokens of one tokenizer.

    Attributes:
        form: as it was.
        slots: for each of the four places the tokens of every number, with the fixed ones before
            it, or those after that say it is over; none of them is the beginning of another.
    """

    form: BoxTemplate
    slots: tuple[tuple[tuple[int, ...], ...], ...]

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The numbers of each slot as a tree of their tokens."""
        return tuple(_grown(slot, range(len(slot)), 0) for slot in self.slots)

    def start(self) -> PartialBox:
        """A box of which nothing is written yet."""
        return _settled(PartialBox(self, (), self.roots[0]))


def compile_box_template(
    form: BoxTemplate, encode: Callable[[list[str]], Sequence[Sequence[int]]], prompt: str
) -> CompiledBoxTemplate | None:
    """The tokens of a form after a prompt; None where tokens do not follow its numbers.

    Args:
        form: what to write.
        encode: texts -> the token ids of each, without special tokens.
        prompt: ends as all prompts do; a blank follows unless it ends in white space.

    Examples: a token is a character; tokens are pairs of characters, across the borders.

        >>> tenths = BoxTemplate("[{}, {}, {}, {}]", tuple(f"0.{i}" for i in range(10)))
        >>> def encode(texts):
        ...     return [[ord(character) for character in text] for text in texts]
        >>> compiled = compile_box_template(tenths, encode, "Where?")
        >>> [len(slot[0]) for slot in compiled.slots]
        [5, 5, 5, 5]
        >>> def pairs(texts):
        ...     return [[hash(t[i:i+2]) for i in range(0, len(t), 2)] for t in texts]
        >>> integers = BoxTemplate("({},{},{},{})", tuple(map(str, range(100))))
        >>> compile_box_template(integers, pairs, "Where?")
    """
    lead = prompt if prompt[-1:].isspace() else prompt + " "
    base = list(encode([prompt])[0])
    count = len(form.numbers)

    def tokens(boxes: Sequence[Sequence[int]]) -> list[list[int]]:
        return [list(of) for of in encode([lead + form.text(chosen) for chosen in boxes])]

    middle = [count // 2] * 4
    (example,) = tokens([middle])
    after = len(example) - len(base)  # how many tokens follow what is settled so far
    slots = []
    for place in range(4):
        written = tokens([[*middle[:place], index, *middle[place + 1 :]] for index in range(count)])
        start = len(example) - after
        after = _common_suffix(written)
        if not _prefix_free([of[start : len(of) - after] for of in written]):
            after -= 1  # the next token says that the number is over
        slot = tuple(tuple(of[start : len(of) - after]) for of in written)
        if after < 0 or not _prefix_free(slot):
            return None
        slots.append(slot)
    tail = example[len(example) - after :]
    rng = random.Random(0)
    some = [[rng.randrange(count) for _ in range(4)] for _ in range(64)]
    for chosen, found in zip(some, tokens(some), strict=True):
        joined = [t for slot, index in zip(slots, chosen, strict=True) for t in slot[index]]
        if found != base + joined + tail:
            return None
    return CompiledBoxTemplate(form, tuple(slots))


@dataclass(frozen=True, eq=False)
class PartialBox:
    """One box on its way: of its `choices` the model chooses one, and `choose` goes on from it.

    A box has an area: its third number comes after its first, and its fourth after its second.

    Attributes:
        chosen: the places of the numbers written so far.
        node: what is written of the next one.
        tokens: all that is settled, from the beginning of the box.
    """

    compiled: CompiledBoxTemplate
    chosen: tuple[int, ...]
    node: Node
    tokens: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        return len(self.chosen) == 4

    @cached_property
    def choices(self) -> list[int]:
        """The tokens between which the model has to choose now; at least two, unless done."""
        return [token for token, node in self.node.follow.items() if self.open(node)]

    @property
    def text(self) -> str:
        """The finished box."""
        return self.compiled.form.text(self.chosen)

    def choose(self, token: int) -> PartialBox:
        """With one of `choices`, and whatever follows from it."""
        return _settled(self._with(token))

    def open(self, node: Node) -> list[int]:
        """The numbers of a node of this slot that leave the box an area."""
        place, last = len(self.chosen), len(self.compiled.form.numbers) - 1
        first = self.chosen[place - 2] + 1 if place >= 2 else 0
        last = last if place >= 2 else last - 1
        return list(
            node.numbers[bisect_left(node.numbers, first) : bisect_right(node.numbers, last)]
        )

    def _with(self, token: int) -> PartialBox:
        node = self.node.follow[token]
        chosen, tokens = self.chosen, (*self.tokens, token)
        if not node.follow:
            chosen = (*chosen, node.numbers[0])
            node = self.compiled.roots[len(chosen)] if len(chosen) < 4 else node
        return PartialBox(self.compiled, chosen, node, tokens)


def marginals(slot: PartialBox, seen: Mapping[Node, Mapping[int, float]]) -> tuple[float, ...]:
    """How likely each number is where `slot` writes its next, as ordered in `BoxTemplate.numbers`.

    Args:
        slot: where nothing of that number is chosen yet.
        seen: the probability of each choice at the nodes where the model was asked. Where it was
            not, all numbers that are left are taken as equally likely.

    Returns:
        As many probabilities as there are numbers; their sum is 1.
    """
    found = [0.0] * len(slot.compiled.form.numbers)

    def spread(node: Node, mass: float) -> None:
        left = {token: of for token, of in node.follow.items() if slot.open(of)}
        if not left:
            found[node.numbers[0]] += mass
        elif len(left) == 1:
            spread(next(iter(left.values())), mass)
        elif node in seen:
            for token, of in left.items():
                spread(of, mass * seen[node][token])
        else:
            numbers = slot.open(node)
            for number in numbers:
                found[number] += mass / len(numbers)

    spread(slot.compiled.roots[len(slot.chosen)], 1.0)
    return tuple(found)


def _settled(writing: PartialBox) -> PartialBox:
    """Take over all tokens that are the same for every number left."""
    while not writing.done and len(choices := writing.choices) == 1:
        writing = writing._with(choices[0])
    return writing


def _grown(slot: Sequence[Sequence[int]], numbers: Iterable[int], read: int) -> Node:
    """The tree of the numbers that share their first `read` tokens."""
    numbers = tuple(numbers)
    groups: dict[int, list[int]] = {}
    for number in numbers:
        if len(slot[number]) > read:
            groups.setdefault(slot[number][read], []).append(number)
    follow = {token: _grown(slot, of, read + 1) for token, of in sorted(groups.items())}
    return Node(numbers, follow)


def _common_suffix(sequences: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, sequences))
    for n in range(shortest):
        if len({of[len(of) - 1 - n] for of in sequences}) > 1:
            return n
    return shortest


def _prefix_free(sequences: Iterable[Sequence[int]]) -> bool:
    """Whether no sequence is the beginning of another (in sorted order, of the next)."""
    ordered = sorted(tuple(of) for of in sequences)
    return all(after[: len(before)] != before for before, after in pairwise(ordered))
