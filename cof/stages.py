"""The two stages for a batch of samples: where to look, and the answer while looking there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cof.engines.base import Engine
from cof.geometry.regions import Region
from cof.query import Sample, focus_request
from cof.types import Generation, Grounding, Request

Generate = Callable[[Sequence[Request], Sequence[int]], list[Generation]]
"""Requests, and the number of the sample that each belongs to -> the reply to each."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one grounder found for one sample.

    Attributes:
        grounder: its name.
        grounding: what it found.
        region: what stage 2 looks at; None: the plain model answers.
    """

    grounder: str
    grounding: Grounding
    region: Region | None

    @classmethod
    def of(cls, sample: Sample, grounder: str, grounding: Grounding) -> Look:
        """With the region post-processed by the sample's settings."""
        return cls(grounder, grounding, sample.target(grounding.region))


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answer to one sample, and the look that it came from."""

    reply: Generation
    look: Look


def locate(
    engine: Engine,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    drafts: Sequence[Generation | None],
) -> list[list[Look]]:
    """Stage 1: one engine call for each grounder in use; samples that need no region are skipped.

    Args:
        samples: the batch.
        requests: the plain request of each.
        drafts: the plain answer of each; None where the settings do not ask for one first.

    Returns:
        The looks of each sample, one for each of its grounders.
    """
    skipped = [sample.skips(draft) for sample, draft in zip(samples, drafts, strict=True)]
    found: dict[tuple[int, str], Grounding] = {}
    calls: dict[tuple[str, object], list[int]] = {}
    for number, sample in enumerate(samples):
        for name in sample.settings.grounders:
            if skipped[number]:
                found[number, name] = Grounding(None, reason=skipped[number])
            else:
                calls.setdefault((name, sample.settings.make_grounder(name)), []).append(number)
    for (name, grounder), numbers in calls.items():
        asked = [stage_one_request(samples[n], requests[n]) for n in numbers]
        groundings = grounder.locate(engine, asked)  # type: ignore[attr-defined]
        found |= {(n, name): of for n, of in zip(numbers, groundings, strict=True)}
    return [
        [Look.of(sample, name, found[number, name]) for name in sample.settings.grounders]
        for number, sample in enumerate(samples)
    ]


def stage_one_request(sample: Sample, request: Request) -> Request:
    """What a grounder is asked about a sample whose plain request this is."""
    return Request(request.image, sample.grounding_question, region=sample.region)


def answer(
    generate: Generate,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    looks: Sequence[Sequence[Look]],
    drafts: Sequence[Generation | None],
) -> list[Outcome]:
    """Stage 2: all looks of all samples in one call; of several answers the surer one is kept.

    A look without a region is the plain answer, which is asked once, and not at all where a draft
    of it is there. The surer answer is that whose first token is more probable.
    """
    asked: dict[tuple[int, int], Request] = {}  # (sample, look) -> request; look -1: plain
    for number, sample in enumerate(samples):
        for place, look in enumerate(looks[number]):
            if look.region is not None:
                focused = focus_request(requests[number], look.region, sample.settings)
                asked[number, place] = focused
            elif drafts[number] is None:
                asked[number, -1] = requests[number]
    numbers = [number for number, _ in asked]
    replies = generate(list(asked.values()), numbers) if asked else []
    said = dict(zip(asked, replies, strict=True))
    return [
        _surest([Outcome(_reply(said, drafts[n], n, place, look), look) for place, look in of])
        for n, of in enumerate(map(list, map(enumerate, looks)))
    ]


def _surest(outcomes: Sequence[Outcome]) -> Outcome:
    """Of looks that found a region, if any did, that whose first token is most probable."""
    found = [outcome for outcome in outcomes if outcome.look.region is not None] or outcomes
    return max(found, key=lambda outcome: _first_logprob(outcome.reply))


def _reply(
    said: dict[tuple[int, int], Generation],
    draft: Generation | None,
    number: int,
    place: int,
    look: Look,
) -> Generation:
    if look.region is not None:
        return said[number, place]
    return said[number, -1] if draft is None else draft


def _first_logprob(reply: Generation) -> float:
    return reply.logprobs[0] if reply.logprobs else float("-inf")
