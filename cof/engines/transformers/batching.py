"""Batches within a budget of tokens, and work that is done in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(4, os.cpu_count() or 1)
"""Images that are processed at a time: half of that work holds the interpreter's lock, so that more
would gain little, and each needs memory of its own."""


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results in order; for work that mostly resizes images, which releases the lock.

    >>> map_in_threads(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    todo = list(items)
    threads = min(THREADS, len(todo))
    if threads <= 1:
        return list(map(work, todo))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, todo))


def group_by_size(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """The numbers of rows in groups of similar size, each within a budget with its padding.

    A row that is too large by itself is a group. If all rows fit into one group they keep their
    order.

    >>> group_by_size([10, 30, 10], 90), group_by_size([10, 30, 10], 60)
    ([[0, 1, 2]], [[0, 2], [1]])
    """
    if len(sizes) * max(sizes, default=0) <= budget:
        return [list(range(len(sizes)))] if sizes else []
    groups: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not groups or (len(groups[-1]) + 1) * sizes[row] > budget:
            groups.append([])
        groups[-1].append(row)
    return groups
