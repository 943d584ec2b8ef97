"""The figures of a benchmark, with statistics that know which questions belong together.

Accuracy, acc+, circular accuracy, precision, recall and F1 are each a ratio of counts; MME's score
is a sum of such ratios. Questions about one image succeed and fail together, and so do the
rotations of a question and the pair of an MME image: they are one cluster, in every interval and
in every test. The bootstrap samples clusters, the same ones for every method, so that differences
are paired; the test exchanges the two methods' answers cluster by cluster.

A share of right answers near 0 or 1 has Wilson's interval, for as many independent units as would
vary so much: where all are right the bootstrap would claim certainty.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cof.eval.examples import Example

Z95 = NormalDist().inv_cdf(0.975)
"""Half-width of a normal distribution's middle 95 %, in standard deviations."""

RESAMPLES = 4000

Counts = Mapping[str, tuple[float, float]]
"""Cluster -> what it adds to a ratio's numerator and denominator."""

Clusters = Mapping[str, str]
"""Question, or group of questions -> its cluster."""


@dataclass(frozen=True)
class Figure:
    """A scaled sum of ratios.

    Attributes:
        ratios: the terms; one ratio over all clusters, usually.
        scale: of the sum, such as 100 for percent.
        units: what is right or wrong as one (a question, an image's pair, all rotations of a
            question), by its name; empty for figures that are no share of right ones.
        clusters: of the units.
    """

    ratios: tuple[Counts, ...]
    scale: float = 100.0
    units: Mapping[str, bool] = field(default_factory=dict)
    clusters: Clusters = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The figure; a ratio without a denominator is 0.

        >>> Figure(({"a": (1, 2), "b": (2, 2)},)).value
        75.0
        """
        return self.scale * math.fsum(_ratio(counts) for counts in self.ratios)


def find_clusters(examples: Iterable[Example]) -> dict[str, str]:
    """The cluster of each question and group: all that share an image or group, even indirectly.

    >>> from pathlib import Path
    >>> asked = [Example("1", Path("a"), "", "", group="x"), Example("2", Path("b"), "", "",
    ...          group="x"), Example("3", Path("b"), "", ""), Example("4", Path("c"), "", "")]
    >>> clusters = find_clusters(asked)
    >>> clusters["1"] == clusters["2"] == clusters["3"] == clusters["group x"] != clusters["4"]
    True
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = node = parent[above]
        return node

    images: dict[str, str] = {}
    for example in examples:
        image = f"image {example.image}"
        images[example.id] = image
        if example.group:
            images.setdefault(group_name(example), image)
            parent[root(group_name(example))] = root(image)
    return {name: root(image) for name, image in images.items()}


def group_name(example: Example) -> str:
    """The name of a question's group; of a question alone its id."""
    return f"group {example.group}" if example.group else example.id


def share(units: Mapping[str, bool], clusters: Clusters, scale: float = 100.0) -> Figure:
    """The share of units that are right.

    >>> share({"1": True, "2": False, "3": True}, {"1": "a", "2": "a", "3": "b"}).ratios
    ({'a': (1, 2), 'b': (1, 1)},)
    """
    counts = ((name, int(right), 1) for name, right in units.items())
    return replace(ratio(counts, clusters, scale), units=dict(units), clusters=clusters)


def ratio(
    counts: Iterable[tuple[str, float, float]], clusters: Clusters, scale: float = 100.0
) -> Figure:
    """A ratio of sums, given as `(question, its part, its whole)`."""
    sums: dict[str, tuple[float, float]] = {}
    for name, part, whole in counts:
        parts, wholes = sums.get(clusters[name], (0, 0))
        sums[clusters[name]] = (parts + part, wholes + whole)
    return Figure((sums,), scale)


def total(figures: Sequence[Figure], scale: float = 1.0) -> Figure:
    """The sum of figures, such as MME's score, or their mean with `scale=1 / len(figures)`.

    All have one scale."""
    ratios = tuple(counts for figure in figures for counts in figure.ratios)
    return Figure(ratios, scale * figures[0].scale)


def group_right(examples: Iterable[Example], right: Mapping[str, bool]) -> dict[str, bool]:
    """By group, whether all of its questions are right; a question alone is its own group."""
    together: dict[str, bool] = {}
    for example in examples:
        name = group_name(example)
        together[name] = together.get(name, True) and right[example.id]
    return together


def compare(figures: Mapping[str, Figure], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """One figure of several methods, with 95 % intervals, and against `plain` if it is among them.

    Args:
        figures: by method, of the same questions.
        seed: of the resampling; the same seed, the same intervals.

    Returns:
        `{method: {value, low, high}}`, with units `n`, their number; of all but `plain` also
        `difference` with its bounds, and with units `fixed`, `broken` and `p` (`sign_flip_test`).
    """
    clusters = sorted({name for f in figures.values() for counts in f.ratios for name in counts})
    weights = _resample(len(clusters), seed)
    draws = {name: _draw(figure, clusters, weights) for name, figure in figures.items()}
    table: dict[str, dict[str, float]] = {}
    for name, figure in figures.items():
        row = table[name] = {"n": len(figure.units)} if figure.units else {}
        row |= _rounded(("value", "low", "high"), figure.value, _bounds(figure, draws[name]))
        if name != "plain" and "plain" in figures:
            old = figures["plain"]
            ends = np.quantile(draws[name] - draws["plain"], [0.025, 0.975])
            names = ("difference", "difference_low", "difference_high")
            row |= _rounded(names, figure.value - old.value, ends)
            if figure.units:
                fixed, broken = changed_units(figure.units, old.units)
                changes = Counter(figure.clusters[unit] for unit in fixed)
                changes.subtract(figure.clusters[unit] for unit in broken)
                p = sign_flip_test(changes.values())
                row |= {"fixed": len(fixed), "broken": len(broken), "p": p}
    return table


def changed_units(new: Mapping[str, bool], old: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Which units only the new method gets right, and which only the old one."""
    fixed = [name for name, right in new.items() if right and not old[name]]
    broken = [name for name, right in new.items() if not right and old[name]]
    return fixed, broken


def wilson(right: float, total: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion, which holds up for few questions and near 0 or 1.

    Args:
        right: how many are right.
        total: of how many; where questions depend on each other, of how many independent ones.

    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    """
    p, square = right / total, Z95**2
    middle = (p + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * math.sqrt(p * (1 - p) / total + square / (4 * total**2))
    # at the ends the bounds are exactly 0 and 1
    return 0.0 if right == 0 else middle - half, 1.0 if right == total else middle + half


def sign_flip_test(changes: Iterable[int]) -> float:
    """Two-sided p-value of the exact sign-flip test on paired clusters.

    If the methods were alike, each cluster's change could as well have the other sign. With
    clusters of one question each it is McNemar's exact test.

    Args:
        changes: of each cluster, units fixed minus units broken.

    >>> sign_flip_test([1] * 9 + [-1])
    0.021484375
    >>> sign_flip_test([4, 4, -4]) == sign_flip_test([1, 1, -1])
    True
    >>> sign_flip_test([])
    1.0
    """
    changes = [change for change in changes if change]
    sizes = [abs(change) for change in changes]
    observed, reach = abs(sum(changes)), sum(sizes)
    if not sizes:
        return 1.0
    mass = np.zeros(2 * reach + 1)  # the distribution of the sum, -reach..reach
    mass[reach] = 1.0
    for size in sizes:
        mass = (np.roll(mass, size) + np.roll(mass, -size)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(mass[sums >= observed].sum()))


def _ratio(counts: Counts) -> float:
    whole = math.fsum(whole for _, whole in counts.values())
    return math.fsum(part for part, _ in counts.values()) / whole if whole else 0.0


@functools.lru_cache(maxsize=2)
def _resample(clusters: int, seed: int) -> NDArray[np.float64]:
    """`(RESAMPLES, clusters)`: how often each cluster is drawn."""
    shares = np.full(clusters, 1 / clusters)
    counts = np.random.default_rng(seed).multinomial(clusters, shares, size=RESAMPLES)
    return counts.astype(np.float64)


def _draw(
    figure: Figure, clusters: Sequence[str], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`(RESAMPLES,)`: the figure over the clusters drawn. A ratio none of whose clusters is drawn
    keeps its value; with few clusters that is not rare, in one of MME's fourteen tasks."""
    sums = np.zeros(len(weights))
    for counts in figure.ratios:
        table = np.array([counts.get(name, (0, 0)) for name in clusters], dtype=np.float64)
        part, whole = (weights @ table.reshape(-1, 2)).T
        sums += np.divide(part, whole, out=np.full(len(weights), _ratio(counts)), where=whole > 0)
    return figure.scale * sums


def _bounds(figure: Figure, draws: NDArray[np.float64]) -> Iterable[float]:
    """Wilson's for a share, else the bootstrap's.

    The number of independent units is that of a binomial with the bootstrap's variance, and at
    most the number there are; where nothing varies, that of the clusters.
    """
    if not figure.units:
        return np.quantile(draws, [0.025, 0.975])
    value = figure.value / figure.scale
    variance = float(draws.var()) / figure.scale**2
    n: float = len(figure.ratios[0])
    if 0 < value < 1 and variance > 1e-12:
        n = min(value * (1 - value) / variance, len(figure.units))
    return [figure.scale * bound for bound in wilson(value * n, n)]


def _rounded(names: Sequence[str], value: float, bounds: Iterable[float]) -> dict[str, float]:
    return {n: round(float(v), 6) for n, v in zip(names, (value, *bounds), strict=True)}
