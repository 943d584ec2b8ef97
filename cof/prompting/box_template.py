"""Box templates: the fixed text of a box around the four numbers that the model chooses.

A template is compiled once for a tokenizer. Two boxes differ in a few tokens, digits or whole
numbers. The tokens between are known beforehand and need no forward pass of their own: they are
read together with the next token that the model chooses (`box_decoding`). So every box is valid.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile

Limits = tuple[range, range, range, range]
"""For each of a box's four places, which of its template's numbers may stand there."""


@dataclass(frozen=True)
class BoxTemplate:
    """How a model family writes a box.

    Example:
        >>> tenths = BoxTemplate("[{}, {}, {}, {}]", tuple(f"0.{i}" for i in range(10)))
        >>> tenths.text((1, 2, 5, 9))
        '[0.1, 0.2, 0.5, 0.9]'
    """

    pattern: str  # the box with `{}` for each of its four numbers
    numbers: tuple[str, ...]  # all numbers that may stand there, as written, in ascending order

    def text(self, chosen: Iterable[int]) -> str:
        """A box; `chosen` are the places of its four numbers in `numbers`."""
        return self.pattern.format(*(self.numbers[index] for index in chosen))


@dataclass(frozen=True, eq=False)
class Node:
    """All numbers that begin with the same tokens."""

    numbers: tuple[int, ...]  # their places in `BoxTemplate.numbers`, ascending
    follow: Mapping[int, Node]  # the next tokens, and the numbers left after each; empty: complete


@dataclass(frozen=True)
class CompiledBoxTemplate:
    """A box template in the tokens of one tokenizer.

    Attributes:
        template: the box template.
        slots: for each of the four places the tokens of every number, with the fixed tokens before
            it, and the token after it if that ends the number. None of a slot begins another.
    """

    template: BoxTemplate
    slots: tuple[tuple[tuple[int, ...], ...], ...]

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The numbers of each slot as a tree of their tokens."""
        return tuple(_grow_tree(slot, range(len(slot)), 0) for slot in self.slots)

    def start(self, limits: Limits | None = None) -> PartialBox:
        """A box with no number chosen; `limits`: `Dialect.limits` of its image; None: anywhere."""
        n = len(self.template.numbers)
        anywhere = (range(n - 1), range(n - 1), range(1, n), range(1, n))
        return _settle(PartialBox(self, limits or anywhere, (), self.roots[0]))


def compile_box_template(
    template: BoxTemplate, encode: Callable[[list[str]], Sequence[Sequence[int]]], prompt: str
) -> CompiledBoxTemplate | None:
    """The tokens of a box template after a prompt.

    Args:
        template: the box to decode.
        encode: texts -> the token ids of each, without special tokens.
        prompt: any; it ends as all prompts do. A space follows unless it ends in white space.

    Returns:
        None if the tokens do not keep the numbers apart.

    Examples: each character is a token; each pair of characters is one, across the borders.

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
    before = prompt if prompt[-1:].isspace() else prompt + " "
    base = list(encode([prompt])[0])
    count = len(template.numbers)

    def tokens(boxes: Sequence[Sequence[int]]) -> list[list[int]]:
        texts = [before + template.text(chosen) for chosen in boxes]
        return [list(ids) for ids in encode(texts)]

    middle = [count // 2] * 4
    (example,) = tokens([middle])
    after = len(example) - len(base)  # tokens after the slots so far
    slots = []
    for place in range(4):
        boxes = tokens([[*middle[:place], index, *middle[place + 1 :]] for index in range(count)])
        start = len(example) - after
        from_the_end = zip(*map(reversed, boxes), strict=False)
        after = len(list(takewhile(lambda column: len(set(column)) == 1, from_the_end)))
        if not _is_prefix_free([ids[start : len(ids) - after] for ids in boxes]):
            after -= 1  # the next token ends the number
        slot = tuple(tuple(ids[start : len(ids) - after]) for ids in boxes)
        if after < 0 or not _is_prefix_free(slot):
            return None
        slots.append(slot)
    tail = example[len(example) - after :]
    rng = random.Random(0)
    samples = [[rng.randrange(count) for _ in range(4)] for _ in range(64)]
    for chosen, ids in zip(samples, tokens(samples), strict=True):
        joined = [t for slot, index in zip(slots, chosen, strict=True) for t in slot[index]]
        if ids != base + joined + tail:
            return None
    return CompiledBoxTemplate(template, tuple(slots))


@dataclass(frozen=True, eq=False)
class PartialBox:
    """An unfinished box: the model chooses one of its `choices`, and `choose` continues from it.

    A box has an area: its third number is larger than its first, its fourth than its second.
    """

    compiled: CompiledBoxTemplate
    limits: Limits  # the numbers that may stand at each place
    chosen: tuple[int, ...]  # the places of the numbers chosen so far
    node: Node  # the numbers left for the next place
    tokens: tuple[int, ...] = ()  # all tokens that are settled, from the beginning of the box

    @property
    def done(self) -> bool:
        return len(self.chosen) == 4

    @cached_property
    def choices(self) -> list[int]:
        """The tokens among which the model chooses now; at least two, unless done."""
        return [token for token, node in self.node.follow.items() if self.open_numbers(node)]

    @property
    def text(self) -> str:
        """The finished box."""
        return self.compiled.template.text(self.chosen)

    def choose(self, token: int) -> PartialBox:
        """The box with one of `choices`, and with all tokens that follow from it."""
        node = self.node.follow[token]
        chosen, tokens = self.chosen, (*self.tokens, token)
        if not node.follow:
            chosen = (*chosen, node.numbers[0])
            node = self.compiled.roots[len(chosen)] if len(chosen) < 4 else node
        return _settle(replace(self, chosen=chosen, node=node, tokens=tokens))

    def open_numbers(self, node: Node) -> list[int]:
        """The numbers of a node of this slot with which the box has an area within its limits."""
        place = len(self.chosen)
        allowed = self.limits[place]
        if place >= 2:
            allowed = range(max(allowed.start, self.chosen[place - 2] + 1), allowed.stop)
        return [number for number in node.numbers if number in allowed]


def marginals(slot: PartialBox, seen: Mapping[Node, Mapping[int, float]]) -> tuple[float, ...]:
    """The probability of each number as the next one, in the order of `BoxTemplate.numbers`.

    Args:
        slot: a box before the first token of that number.
        seen: the probability of each choice at the nodes where the model was asked. At the others
            all numbers that are left are taken as equally likely.

    Returns:
        As many probabilities as there are numbers; their sum is 1.
    """
    probabilities = [0.0] * len(slot.compiled.template.numbers)

    def spread(node: Node, mass: float) -> None:
        left = {token: next_ for token, next_ in node.follow.items() if slot.open_numbers(next_)}
        shares = dict.fromkeys(left, 1.0) if len(left) == 1 else seen.get(node)
        if not left:
            probabilities[node.numbers[0]] += mass
        elif shares is not None:
            for token, next_ in left.items():
                spread(next_, mass * shares[token])
        else:
            numbers = slot.open_numbers(node)
            for number in numbers:
                probabilities[number] += mass / len(numbers)

    spread(slot.compiled.roots[len(slot.chosen)], 1.0)
    return tuple(probabilities)


def _settle(box: PartialBox) -> PartialBox:
    """The box with all tokens that every number left has in common."""
    alone = not box.done and len(box.choices) == 1
    return box.choose(box.choices[0]) if alone else box


def _grow_tree(slot: Sequence[Sequence[int]], numbers: Iterable[int], read: int) -> Node:
    """The tree of the numbers that share their first `read` tokens."""
    numbers = tuple(numbers)
    groups: dict[int, list[int]] = {}
    for number in numbers:
        if len(slot[number]) > read:
            groups.setdefault(slot[number][read], []).append(number)
    follow = {token: _grow_tree(slot, group, read + 1) for token, group in sorted(groups.items())}
    return Node(numbers, follow)


def _is_prefix_free(sequences: Iterable[Sequence[int]]) -> bool:
    """Whether no sequence is the beginning of another (in sorted order, of the next)."""
    ordered = sorted(tuple(ids) for ids in sequences)
    return all(after[: len(before)] != before for before, after in pairwise(ordered))
