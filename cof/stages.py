"""The two stages for a batch of samples: where to look, and the answer while looking there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.grounders import Grounder
from cof.query import Sample
from cof.types import Generation, Grounding, Request

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")
Generate = Callable[[Sequence[Request], Sequence[int]], list[Generation]]
"""Requests, and the number of the sample that each belongs to -> the reply to each."""


@dataclass(frozen=True, eq=False)
class Look:
    """One grounder's outcome for one sample.

    Attributes:
        grounder: the grounder's name.
        grounding: what it returned.
        region: the region that stage 2 looks at, after expansion; None: the plain model answers.
    """

    grounder: str
    grounding: Grounding
    region: Region | None

    @classmethod
    def of(cls, sample: Sample, grounder: str, grounding: Grounding) -> Look:
        """The look with its region post-processed by the sample's settings."""
        return cls(grounder, grounding, sample.target(grounding.region))


@dataclass(frozen=True, eq=False)
class Outcome:
    """The reply to one sample, and the look that it came from."""

    reply: Generation
    look: Look


def locate(
    engine: Engine,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    drafts: Sequence[Generation | None],
) -> list[list[Look]]:
    """Stage 1. Each grounder in use is called once; samples that need no region are skipped.

    Args:
        samples: the batch.
        requests: the plain request of each.
        drafts: the plain answer of each; None where the settings do not ask for one first.

    Returns:
        The looks of each sample, one for each of its grounders, in the order of the settings; a
        skipped sample has a single look without a region.
    """
    looks: list[dict[str, Look]] = [{} for _ in samples]
    calls: dict[Grounder, list[int]] = {}
    for number, (sample, draft) in enumerate(zip(samples, drafts, strict=True)):
        grounders = sample.settings.grounders
        if reason := sample.skips(draft):
            name = grounders[0].name
            looks[number][name] = Look(name, Grounding(None, reason=reason), None)
            continue
        for grounder in grounders:
            calls.setdefault(grounder, []).append(number)
    for grounder, numbers in calls.items():
        asked = [stage_one_request(samples[number], requests[number]) for number in numbers]
        for number, grounding in zip(numbers, grounder.locate(engine, asked), strict=True):
            name = grounder.name
            looks[number][name] = Look.of(samples[number], name, grounding)
    return [
        [by_name[each.name] for each in sample.settings.grounders if each.name in by_name]
        for sample, by_name in zip(samples, looks, strict=True)
    ]


def stage_one_request(sample: Sample, request: Request) -> Request:
    """What a grounder is asked about a sample whose plain request this is."""
    return request.asking(sample.grounding_question)


def answer(
    generate: Generate,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    looks: Sequence[Sequence[Look]],
    drafts: Sequence[Generation | None],
) -> list[Outcome]:
    """Stage 2. All looks of all samples are asked in one call, and the surest answer is kept.

    Keep the looks that found a region. If none did, ask the plain question once. The surest answer
    is the one whose first token is most probable; of equal ones the first. A draft is the reply to
    the plain request, which is not asked again.
    """
    asked: list[tuple[int, Look]] = []
    replies: dict[int, Generation] = {}  # by position in `asked`
    focused: dict[int, Request] = {}
    for number, (sample, request) in enumerate(zip(samples, requests, strict=True)):
        for look in [look for look in looks[number] if look.grounding.region] or looks[number][:1]:
            draft = drafts[number]
            if look.region is None and draft is not None:
                replies[len(asked)] = draft
            else:
                focus, region = sample.settings.focus, look.region
                focused[len(asked)] = focus.apply(request, region) if region else request
            asked.append((number, look))
    if focused:
        numbers = [asked[position][0] for position in focused]
        replies |= zip(focused, generate(list(focused.values()), numbers), strict=True)
    outcomes: list[list[Outcome]] = [[] for _ in samples]
    for position, (number, look) in enumerate(asked):
        outcomes[number].append(Outcome(replies[position], look))
    # an empty reply's () is below all others
    return [
        max(each, key=lambda outcome: outcome.reply.logprobs[outcome.reply.start :][:1])
        for each in outcomes
    ]


def isolate(
    items: Iterable[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> dict[Item, Result | CofError]:
    """The results of items that are worked on together; one that is refused gets its error.

    Where the work on several items is refused, it is tried on either half of them.
    """
    part = list(items)
    if not part:
        return {}
    try:
        return dict(zip(part, work(part), strict=True))
    except CofError as error:
        if len(part) == 1:
            return {part[0]: error}
    middle = len(part) // 2
    return isolate(part[:middle], work) | isolate(part[middle:], work)
