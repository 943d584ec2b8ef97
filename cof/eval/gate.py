"""A threshold on the plain answer's confidence, with a promise: hardly any right answer is broken.

Looking closer may break an answer that was right. The method looks only where the plain answer is
at most so sure. The more it looks, the more it breaks, so the largest threshold that is shown to
break at most a given share does so on other questions like these, with the confidence `SURE`
(risk-controlling prediction sets, arXiv 2101.02703).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cof.errors import CofError
from cof.eval.examples import Example
from cof.eval.figures import find_clusters
from cof.eval.store import Record

SURE = 0.95
"""How sure the promise is: of twenty choices on other data one may not keep it."""


@dataclass(frozen=True)
class RightAnswer:
    """A right answer of the plain model."""

    cluster: str  # the questions that succeed and fail together, those about one image
    confidence: float  # of the plain answer, 0..1
    broken: bool  # whether it is wrong after looking closer


def right_answers(
    examples: Sequence[Example], plain: Mapping[str, Record], looked: Mapping[str, Record]
) -> list[RightAnswer]:
    """The right ones of the plain answers, beside those of a method that always looks, by id."""
    clusters = find_clusters(examples)
    return [
        RightAnswer(clusters[e.id], plain[e.id].confidence or 0.0, not looked[e.id].right)
        for e in examples
        if plain[e.id].right
    ]


def choose_threshold(answers: Iterable[RightAnswer], at_most: float) -> float:
    """The largest threshold at which at most such a share of right answers is broken, 0..1.

    One answer of each cluster counts, drawn at random, so that the exact binomial test holds; the
    share is the mean over clusters. (A bound on all answers of the clusters promised less.)

    Args:
        answers: right plain answers that chose nothing else.
        at_most: the share, above 0 and below 1.

    Raises:
        CofError: no such share, or too little is known to promise it.

    >>> sure = [RightAnswer(str(n), n / 1000, n >= 900) for n in range(1000)]
    >>> choose_threshold(sure, 0.01)
    0.903
    """
    if not 0 < at_most < 1:
        raise CofError(f"The share of broken answers is above 0 and below 1, not {at_most:g}.")
    shuffled = sorted(answers, key=repr)
    random.Random(0).shuffle(shuffled)
    drawn = list({answer.cluster: answer for answer in shuffled}.values())

    def chance(threshold: float) -> float:
        """The probability of so few broken answers if their share were `at_most`."""
        broken = sum(each.broken and each.confidence <= threshold for each in drawn)
        return _binomial(broken, len(drawn), at_most)

    # rounded down, as confidences are the same in other batches to about four decimals
    steps = sorted({math.floor(answer.confidence * 1e4) / 1e4 for answer in drawn} | {1.0})
    number = bisect_right(steps, 1 - SURE, key=chance)
    if not number:
        fewest = math.ceil(math.log(1 - SURE) / math.log1p(-at_most))
        raise CofError(
            f"It cannot be promised that at most {at_most:.1%} of right answers are broken: there "
            f"are right answers about {len(drawn)} images, and {fewest} are needed even if none is "
            "broken. Give more data, or a larger --break-at-most."
        )
    return steps[number - 1]


def _binomial(most: int, n: int, p: float) -> float:
    """The probability of at most so many successes in n trials."""
    log_p, log_q, all_ways = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    ways = (all_ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(most + 1))
    return math.fsum(math.exp(w + k * log_p + (n - k) * log_q) for k, w in enumerate(ways))
