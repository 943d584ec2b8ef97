"""Does an adaptive rule do no harm? What it keeps and breaks, against looking always."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cof.adaptive import Rule
from cof.eval.about import digest
from cof.eval.adaptive.fitting import LIMITS, Fit, Validated
from cof.eval.adaptive.signs import Decision, Signs, changes, decision
from cof.eval.methods import PLAIN
from cof.eval.saved import Replies
from cof.eval.stats import Interval, mcnemar, paired_difference
from cof.eval.store import GROUNDING, Record
from cof.eval.tasks import Example
from cof.tiny.benchmark import FINE

MOST_BROKEN, LEAST_KEPT = 0.5, 0.8
"""A rule does no harm where it breaks at most half of what looking always breaks, and keeps at
least four fifths of what that fixes."""

SWEPT = 40
"""Thresholds on each sign alone that the curves show."""

RESAMPLES = 4000


@dataclass(frozen=True)
class Asked:
    """Questions with all that a rule weighs.

    Attributes:
        examples: the questions.
        plain: the plain answers.
        found: stage 1's replies.
        looked: the answers after looking, by lambda.
        seconds: a question, of `plain`, `grounding` and answers while looking (`looked`).
    """

    examples: Sequence[Example]
    plain: Mapping[str, Record]
    found: Mapping[str, Record]
    looked: Mapping[float, Mapping[str, Record]]
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, replies: Replies, looking: Mapping[float, str]) -> Asked:
        """From a run's replies; `looking`: the method's key for each lambda."""
        said = replies.of({"plain": PLAIN.key, "found": GROUNDING, **_named(looking)})
        total, n = replies.seconds(), max(1, len(replies.examples))
        spent = {key: seconds / n for key, seconds in total.items()}
        mean = sum(spent.get(key, 0.0) for key in looking.values()) / len(looking)
        return cls(
            replies.examples,
            said["plain"],
            said["found"],
            {strength: said[str(strength)] for strength in looking},
            {
                "plain": spent.get(PLAIN.key, 0.0),
                "grounding": spent.get(GROUNDING, 0.0),
                "looked": mean,
            },
        )

    @property
    def signs(self) -> Signs:
        return Signs.of(self.examples, self.plain, self.found, self.looked)

    def those(self, belongs: Callable[[Example], bool]) -> Asked:
        """Some of the questions."""
        chosen = [example for example in self.examples if belongs(example)]
        return Asked(chosen, self.plain, self.found, self.looked, self.seconds)

    def right(self, said: Mapping[str, Record]) -> list[bool]:
        """Whether each question is answered rightly."""
        return [bool(said[example.id].right) for example in self.examples]

    def under(self, rule: Rule, usual: float) -> list[Decision]:
        """What the pipeline would do with each question under a rule; `usual`: lambda where the
        rule names none."""
        ids = [example.id for example in self.examples]
        return [
            decision(
                rule,
                self.plain[id],
                self.found[id],
                {strength: said[id] for strength, said in self.looked.items()},
                usual=usual,
            )
            for id in ids
        ]


def gathered(
    found: Fit, splits: Mapping[str, Asked], about: Mapping[str, Any], *, seed: int
) -> dict[str, Any]:
    """The fit, and what it does on the split `test`: all numbers of a report."""
    test = splits["test"]
    kinds = {"all": test, "fine": test.those(lambda example: example.kind in FINE)}
    groups = {
        name: measured(asked, found.rule, found.strength, seed=seed)
        for name, asked in kinds.items()
        if asked.examples
    }
    return {
        "about": dict(about),
        "criterion": {"most_broken": MOST_BROKEN, "least_kept": LEAST_KEPT},
        "rule": _rule(found.rule),
        "fitted": fitted(found, splits["validation"], about),
        "families": [_validated(row) for row in found.families],
        "test": groups,
        "cost": _cost(test, groups["all"]),
        "frontier": [
            {
                **_validated(row),
                **_rule(rule),
                "test": measured(test, rule, found.strength, seed=seed),
            }
            for row, rule in zip(found.frontier, found.rules, strict=True)
        ],
        "sweeps": {name: _sweep(test, name, found.strength) for name in LIMITS},
    }


def fitted(found: Fit, asked: Asked, about: Mapping[str, Any]) -> dict[str, Any]:
    """On what a rule was chosen, and how it did there when it was cross-validated."""
    fixed, broken = found.always
    return {
        "questions": len(asked.examples),
        "ids": digest("".join(f"{example.id}\n" for example in asked.examples)),
        "always": {"strength": found.strength, "fixed": fixed, "broken": broken},
        "cross_validated": _validated(found.chosen),
        **{name: about.get(name) for name in ("model", "weights", "dtype", "settings", "versions")},
    }


def measured(asked: Asked, rule: Rule, usual: float, *, seed: int) -> dict[str, Any]:
    """A rule against the plain model and against looking always.

    Args:
        asked: questions that it was not fitted on.
        rule: the rule.
        usual: lambda of looking always.
        seed: of the bootstrap, which draws images.
    """
    was, always = asked.right(asked.plain), asked.right(asked.looked[usual])
    done = asked.under(rule, usual)
    new = [bool(each.final.right) for each in done]
    images = [str(example.image) for example in asked.examples]
    against = {
        "always": _compared(always, was, images, seed),
        "rule": _compared(new, was, images, seed),
    }
    counts = _per_image(images, [*_changes(was, always), *_changes(was, new)])
    n = len(counts)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    always_fixed, always_broken, fixed, broken = (draws @ counts).T  # (resamples,) each
    few = broken <= MOST_BROKEN * always_broken
    many = fixed >= LEAST_KEPT * always_fixed
    rows, total = against["rule"], against["always"]
    return {
        "n": len(was),
        "plain": {"right": sum(was), "accuracy": sum(was) / len(was)},
        **against,
        "over_always": _rounded(paired_difference(new, always, images, seed=seed)),
        "kept": _ratio(rows["fixed"], total["fixed"], fixed, always_fixed),
        "broken": _ratio(rows["broken"], total["broken"], broken, always_broken),
        "met": bool(
            rows["broken"] <= MOST_BROKEN * total["broken"]
            and rows["fixed"] >= LEAST_KEPT * total["fixed"]
        ),
        "met_share": round(float(np.mean(few & many)), 4),
        "grounded": sum(each.grounded for each in done) / len(done),
        "looked": sum(each.looked for each in done) / len(done),
    }


def _cost(asked: Asked, test: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a question, and in plain answers, the encoding of its picture left out."""
    plain, ground, look = (asked.seconds[name] for name in ("plain", "grounding", "looked"))
    ways = {
        "plain": plain,
        "always": ground + look,
        "rule": plain + test["grounded"] * ground + test["looked"] * look,
    }
    return {
        name: {"seconds": round(s, 5), "over_plain": round(s / plain, 3) if plain else None}
        for name, s in ways.items()
    }


def _sweep(asked: Asked, name: str, usual: float) -> list[dict[str, Any]]:
    """What every threshold on one sign alone would have kept, from the strictest on."""
    signs = asked.signs
    known = getattr(signs, name)
    values = known[:, signs.strengths.index(usual)] if known.ndim > 1 else known
    limits = sorted({float(f"{v:.3g}") for v in np.quantile(values, np.linspace(0, 1, SWEPT))})
    rows = []
    for limit in limits if LIMITS[name].endswith("most") else limits[::-1]:
        alone: dict[str, Any] = {LIMITS[name]: limit}
        rule = replace(Rule(strengths=((0.0, usual),)), **alone)
        fixed, broken = changes(signs, rule)
        rows.append({"limit": limit, "fixed": int(fixed.sum()), "broken": int(broken.sum())})
    return rows


def _compared(
    new: Sequence[bool], was: Sequence[bool], images: Sequence[str], seed: int
) -> dict[str, Any]:
    fixed, broken = (sum(each) for each in _changes(was, new))
    return {
        "right": sum(new),
        "accuracy": sum(new) / len(new),
        "fixed": fixed,
        "broken": broken,
        "p": mcnemar(fixed, broken),
        "difference": _rounded(paired_difference(new, was, images, seed=seed)),
    }


def _changes(was: Sequence[bool], new: Sequence[bool]) -> tuple[list[bool], list[bool]]:
    """Which questions are fixed, and which broken."""
    pairs = list(zip(was, new, strict=True))
    return [n and not w for w, n in pairs], [w and not n for w, n in pairs]


def _per_image(images: Sequence[str], flags: Sequence[Sequence[bool]]) -> NDArray[np.int64]:
    """`(images, flags)` how many questions of each image have each flag."""
    _, number = np.unique(np.asarray(images), return_inverse=True)
    return np.stack([np.bincount(number, weights=flag) for flag in flags], 1).astype(np.int64)


def _ratio(
    part: int, whole: int, parts: NDArray[np.int64], wholes: NDArray[np.int64]
) -> dict[str, float | None]:
    """A ratio of counts with its interval; None where there is nothing to divide by."""
    known = wholes > 0
    if not whole or not known.any():
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(parts[known] / wholes[known], [0.025, 0.975])
    return _rounded(Interval(part / whole, float(low), float(high)))


def _rounded(interval: Interval) -> dict[str, float | None]:
    return {name: round(value, 4) for name, value in asdict(interval).items()}


def _rule(rule: Rule) -> dict[str, Any]:
    return {"rule": asdict(rule), "sentence": rule.sentence()}


def _validated(row: Validated) -> dict[str, Any]:
    return {
        "family": row.family.name,
        "harm": row.harm,
        "fixed": round(row.fixed, 2),
        "broken": round(row.broken, 2),
        "worth": round(row.worth, 2),
    }


def _named(looking: Mapping[float, str]) -> dict[str, str]:
    return {str(strength): key for strength, key in looking.items()}
