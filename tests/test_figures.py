"""Figures with intervals and tests that know which questions belong together."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import formats
import numpy as np
import pytest
from scipy import stats

from cof.eval.data.base import Answers
from cof.eval.data.mmbench import MMBench
from cof.eval.examples import Example
from cof.eval.figures import (
    Figure,
    changed_units,
    compare,
    find_clusters,
    group_right,
    ratio,
    share,
    sign_flip_test,
    total,
    wilson,
)


def draw(n: int, p: float, seed: int, copies: int = 1) -> tuple[dict[str, bool], dict[str, str]]:
    """Answers to `copies` identical questions about each of n images, and their clusters."""
    rng = random.Random(seed)
    right = {f"{i}": rng.random() < p for i in range(n)}
    names = [(f"{i}-{c}", f"{i}") for i in right for c in range(copies)]
    return {name: right[image] for name, image in names}, dict(names)


# Tests


@pytest.mark.parametrize(
    ("fixed", "broken"), [(0, 0), (1, 0), (5, 0), (1, 9), (10, 15), (400, 330)]
)
def test_for_clusters_of_one_the_sign_flip_test_is_mcnemars(fixed: int, broken: int) -> None:
    p = sign_flip_test([1] * fixed + [-1] * broken + [0] * 7)
    total = max(1, fixed + broken)
    expected = stats.binomtest(fixed, total).pvalue if fixed + broken else 1.0
    assert p == pytest.approx(expected, rel=1e-9)
    assert p == sign_flip_test([-1] * fixed + [1] * broken)


def test_the_sign_flip_test_counts_all_signs() -> None:
    rng = random.Random(0)
    for _ in range(20):
        changes = [rng.randint(-4, 4) for _ in range(9)]
        flips = [
            abs(sum(s * c for s, c in zip(signs, changes, strict=True)))
            for signs in product((1, -1), repeat=9)
        ]
        expected = sum(flip >= abs(sum(changes)) for flip in flips) / len(flips)
        assert sign_flip_test(changes) == pytest.approx(expected)


# Intervals


@pytest.mark.parametrize("total", [1, 10, 400])
def test_wilson_is_scipys_at_95_percent(total: int) -> None:
    for right in {0, 1, total // 3, total - 1, total}:
        expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert wilson(right, total) == pytest.approx((expected.low, expected.high))


def test_differences_and_ratios_have_95_percent_intervals() -> None:
    """Of many independent questions: the mean and 1.96 standard errors, not 1.64."""
    rng = np.random.default_rng(0)
    new, old = ({f"{i}": bool(r < p) for i, r in enumerate(rng.random(900))} for p in (0.7, 0.6))
    clusters = {name: name for name in new}
    figures = {"plain": share(old, clusters, 1.0), "cof": share(new, clusters, 1.0)}
    numbers = compare(figures)["cof"]
    gains = np.array([new[name] - old[name] for name in new], dtype=float)
    half = stats.norm.ppf(0.975) * gains.std() / math.sqrt(900)
    assert numbers["difference"] == pytest.approx(gains.mean(), abs=1e-6)
    assert numbers["difference_high"] - numbers["difference"] == pytest.approx(half, rel=0.06)
    assert numbers["difference"] - numbers["difference_low"] == pytest.approx(half, rel=0.06)
    values = rng.exponential(size=900)
    mean = compare({"": ratio(((f"{i}", v, 1) for i, v in enumerate(values)), clusters, 1.0)})[""]
    half = stats.norm.ppf(0.975) * values.std() / math.sqrt(900)
    assert (mean["high"] - mean["low"]) / 2 == pytest.approx(half, rel=0.06)
    assert "p" not in mean
    assert compare(figures)["cof"] == numbers != compare(figures, seed=1)["cof"]


def test_a_question_asked_four_times_is_no_more_evidence() -> None:
    once, often = (
        compare(
            {
                name: share(*draw(60, p, seed, copies), scale=1.0)
                for name, p, seed in (("plain", 0.6, 1), ("cof", 0.8, 2))
            }
        )
        for copies in (1, 4)
    )
    for method in ("plain", "cof"):
        for name in ("value", "low", "high"):
            assert often[method][name] == pytest.approx(once[method][name], abs=2e-3)
        assert often[method]["n"] == 4 * once[method]["n"]
    for name in ("difference", "difference_low", "difference_high", "p"):
        assert often["cof"][name] == pytest.approx(once["cof"][name])
    assert often["cof"]["fixed"] == 4 * once["cof"]["fixed"]


def test_all_right_is_not_certain() -> None:
    numbers = compare({"plain": share(*draw(12, 1.1, 4, copies=10), scale=1.0)})["plain"]
    assert numbers["high"] == 1
    assert numbers["low"] == pytest.approx(wilson(12, 12)[0], abs=1e-6)
    one_image = compare({"plain": share({"1": True, "2": False}, {"1": "a", "2": "a"}, 1.0)})[
        "plain"
    ]
    assert (one_image["low"], one_image["high"]) == pytest.approx(wilson(0.5, 1), abs=1e-6)


def test_against_the_baseline() -> None:
    images = {"1": "a", "2": "a", "3": "b"}
    old = share({"1": True, "2": False, "3": False}, images, 1.0)
    new = share({"1": False, "2": True, "3": True}, images, 1.0)
    table = compare({"plain": old, "cof": new})
    assert changed_units(new.units, old.units) == (["2", "3"], ["1"])
    assert (table["cof"]["fixed"], table["cof"]["broken"]) == (2, 1)
    assert table["cof"]["p"] == 1.0  # the first image's questions cancel out
    assert table["cof"]["difference"] == pytest.approx(1 / 3, abs=1e-6)
    assert "difference" not in table["plain"]
    same = compare({"plain": old, "cof": old})["cof"]
    assert same["difference_low"] == same["difference_high"] == 0


def test_sums_of_ratios() -> None:
    one = Figure(({"a": (1, 2), "b": (2, 2)},), 100.0)
    two = Figure(({"a": (0, 1), "b": (1, 1), "c": (1, 1)},), 100.0)
    both, mean = total([one, two]), total([one, two], 1 / 2)
    assert both.value == pytest.approx(100 * (3 / 4 + 2 / 3))
    assert mean.value == pytest.approx(both.value / 2)
    numbers = compare({"plain": both})["plain"]
    assert "n" not in numbers
    assert 0 <= numbers["low"] < numbers["value"] < numbers["high"] <= 200


def test_a_ratio_that_a_resample_misses_is_no_nan() -> None:
    """MME with one image for each of its fourteen tasks."""
    tasks = [share({f"{n}": n % 2 == 0}, {f"{n}": f"{n}"}) for n in range(14)]
    numbers = compare({"plain": total(tasks), "cof": total(tasks[::-1])})
    assert all(map(math.isfinite, (*numbers["plain"].values(), *numbers["cof"].values())))
    empty = compare({"plain": ratio([("1", 0, 0)], {"1": "a"})})["plain"]
    assert (empty["value"], empty["low"], empty["high"]) == (0, 0, 0)


# Clusters and groups


def test_groups_and_questions_of_the_same_name_are_apart() -> None:
    examples = [
        Example("a/1-1", Path("1"), "?", "yes", group="a/1"),
        Example("a/1-1-1", Path("1-1"), "?", "yes", group="a/1-1"),
    ]
    clusters = find_clusters(examples)
    assert clusters["a/1-1"] == clusters["group a/1"] != clusters["group a/1-1"]
    assert set(group_right(examples, {"a/1-1": True, "a/1-1-1": False})) <= set(clusters)


# The benchmarks' own


def numbers_of(
    task: MMBench, metric: str, replies: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, float]]:
    figures = {
        name: task.figures(
            task.examples, {e.id: of.get(e.id, e.answer) for e in task.examples}, "official"
        )[metric]
        for name, of in replies.items()
    }
    return compare(figures)


def test_rotations_are_one_question_in_every_number(tmp_path: Path) -> None:
    """The plain model gets 9 of 10 questions wrong in all rotations, and CoF one other."""
    options = {letter: f"it is {letter}" for letter in "ABCD"}
    rows = [
        {**formats.mmbench_rows()[0], "index": n, "question": f"Which {n}?", **options}
        for n in range(10)
    ]
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", rows))
    wrong = {
        "plain": {e.id: "?" for e in task.examples if e.group in "012345678"},
        "cof": {e.id: "?" for e in task.examples if e.group == "9"},
    }
    circular = numbers_of(task, "circular", wrong)
    assert circular["cof"]["p"] == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert (circular["cof"]["fixed"], circular["cof"]["broken"], circular["cof"]["n"]) == (9, 1, 10)
    # counted by themselves the forty rotations are no more evidence
    examples = task.examples
    choices = {
        name: Answers(examples, {}, read, "official").share(examples)
        for name, of in wrong.items()
        for read in ({e.id: of.get(e.id, e.answer) for e in examples},)
    }
    every = compare(choices)
    assert every["cof"]["n"] == 40
    for name in ("p", "value", "low", "high", "difference_low", "difference_high"):
        assert every["cof"][name] == pytest.approx(circular["cof"][name], abs=0.2)
    for metric, first, value in (("circular", 0, 0), ("asked once", 1, 100)):
        one = {"plain": {e.id: "?" for e in task.examples[first::4]}}  # one rotation of each
        assert numbers_of(task, metric, one)["plain"]["value"] == value
