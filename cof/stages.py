"""The two stages for a batch of samples: where to look, and the answer while looking there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.grounders import Grounder
from cof.query import NO_IMAGE, Sample
from cof.types import Generation, Grounding, Request, confidence

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")
Generate = Callable[[Sequence[Request], Sequence[int]], list[Generation]]
"""Requests, and the number of the sample that each belongs to -> the reply to each."""


@dataclass(frozen=True, eq=False)
class Look:
    """One grounder's outcome for one sample."""

    grounder: str  # its name
    grounding: Grounding
    region: Region | None  # that stage 2 looks at, after expansion; None: the plain model answers


def locate(
    engine: Engine,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    drafts: Sequence[Generation | None],
) -> list[list[Look]]:
    """Stage 1. Each grounder in use is called once; samples that need no region are skipped.

    Args:
        requests: the plain request of each sample.
        drafts: its plain answer; None where the settings do not ask for one first.

    Returns:
        The looks of each sample, one for each of its grounders, in the order of the settings; a
        skipped sample has a single look without a region.
    """
    looks: list[list[Look]] = [[] for _ in samples]
    calls: dict[Grounder, list[int]] = {}
    for number, (sample, draft) in enumerate(zip(samples, drafts, strict=True)):
        grounders = sample.settings.grounders
        if reason := _why_skipped(sample, draft):
            looks[number] = [Look(grounders[0].name, Grounding(None, reason=reason), None)]
            continue
        for grounder in grounders:
            calls.setdefault(grounder, []).append(number)
    for grounder, numbers in calls.items():
        asked = [requests[number].asking(samples[number].grounding_question) for number in numbers]
        for number, found in zip(numbers, grounder.locate(engine, asked), strict=True):
            looks[number].append(Look(grounder.name, found, samples[number].target(found.region)))
    return [
        [look for each in sample.settings.grounders for look in own if look.grounder == each.name]
        for sample, own in zip(samples, looks, strict=True)
    ]


def _why_skipped(sample: Sample, draft: Generation | None) -> str:
    """Why stage 1 is skipped, one sentence; empty: it is not skipped."""
    if sample.request.image is NO_IMAGE:
        return "The chat has no image."
    if sample.settings.changes_nothing or draft is None:
        return sample.settings.changes_nothing
    plain, limit = confidence(draft), sample.settings.max_plain_confidence
    if plain is None or plain <= limit:
        return ""
    return f"The plain answer was kept: its confidence of {plain:.2f} is above {limit:g}."


def answer(
    generate: Generate,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    looks: Sequence[Sequence[Look]],
    drafts: Sequence[Generation | None],
) -> list[tuple[Generation, Look]]:
    """Stage 2. All looks of all samples are asked in one call, and the surest answer is kept.

    Keep the looks that found a region. If none did, ask the plain question once. The surest answer
    is the one whose first token is most probable; of equal ones the first. A draft is the reply to
    the plain request, which is not asked again.

    Returns:
        The reply to each sample, and the look that it came from.
    """
    planned: list[list[tuple[Generation | None, Look]]] = []
    asked: list[Request] = []
    numbers: list[int] = []
    for number, (sample, request) in enumerate(zip(samples, requests, strict=True)):
        kept = [look for look in looks[number] if look.grounding.region] or looks[number][:1]
        planned.append([(None if look.region else drafts[number], look) for look in kept])
        for draft, look in planned[-1]:
            if draft is None:
                focus, region = sample.settings.focus, look.region
                asked.append(focus.apply(request, region) if region else request)
                numbers.append(number)
    replies = iter(generate(asked, numbers) if asked else ())
    outcomes = [[(draft or next(replies), look) for draft, look in each] for each in planned]
    # an empty reply's () is below all others
    return [
        max(each, key=lambda outcome: outcome[0].logprobs[outcome[0].start :][:1])
        for each in outcomes
    ]


def isolate(
    items: Iterable[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> dict[Item, Result | CofError]:
    """The results of items that are worked on together; one that is refused gets its error.

    Where the work on several items is refused, it is tried on either half of them.
    """
    part = list(items)
    try:
        return dict(zip(part, work(part), strict=True)) if part else {}
    except CofError as error:
        if len(part) == 1:
            return {part[0]: error}
    middle = len(part) // 2
    return isolate(part[:middle], work) | isolate(part[middle:], work)
