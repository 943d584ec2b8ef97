"""Successive halving: many settings on few questions, the best of them on more.

The settings are compared on the same questions, and those on which a setting was dropped are
among those that the others go on with (Karnin et al., ICML 2013; Jamieson and Talwalkar, AISTATS
2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from cof.eval.methods import Method

FEWEST = 32
"""Questions of the first rung: on fewer, chance alone would decide."""


def rank(methods: Iterable[Method], accuracy: Mapping[str, float]) -> list[Method]:
    """The most accurate first; of equals the mildest: lambda nearest to 1, then alpha nearest to 1,
    then the paper's scope, layers and heads (all of them), then as they come.

    >>> from cof.settings import Settings
    >>> methods = [Method(Settings(strength=s)) for s in (8, 2, 4)]
    >>> accuracy = {methods[0].key: 0.7, methods[1].key: 0.5, methods[2].key: 0.7}
    >>> [method.settings.option("strength") for method in rank(methods, accuracy)]
    [4.0, 8.0, 2.0]
    """

    def order(method: Method) -> tuple[float | bool, ...]:
        settings = method.settings
        return (
            -accuracy[method.key],
            round(abs(math.log(settings.option("strength") or 1)), 9),
            round(abs(math.log(settings.expand)), 9),
            settings.option("scope") != "all",
            settings.option("layers") is not None,
            settings.option("heads") is not None,
        )

    return sorted(methods, key=order)


def cumulative_sizes(total: int, rungs: int, keep: float) -> list[int]:
    """How many questions have been asked after each rung.

    They grow as the settings become fewer, so that every rung costs about the same; rungs of fewer
    than `FEWEST` questions are left out.

    >>> [cumulative_sizes(total, 3, 1 / 3) for total in (400, 100, 10)]
    [[45, 134, 400], [34, 100], [10]]
    """
    sizes = [math.ceil(total * keep**power) for power in range(rungs - 1, -1, -1)]
    return [size for size in sizes[:-1] if FEWEST <= size < total] + [total]
