"""What a grounder is, and those that ask nothing of the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import EVERYTHING
from cof.options import Options
from cof.types import Grounding, Request


@dataclass(frozen=True)
class Grounder(Options, ABC):
    """Finds, for each request, the region of its image that holds the answer.

    A frozen dataclass; its fields are its options (`cof.options.option`).

    Attributes:
        name: in `cof.grounders.GROUNDERS`.
        help: where it looks, and what it asks of the engine, in a few words for the command line.
        engine_calls: how often it calls the engine for an image in a way that a prefix cache of
            the image makes cheaper; the pipeline caches an image that is used more than once.
    """

    help: ClassVar[str]
    engine_calls: ClassVar[int] = 0

    @abstractmethod
    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        """One grounding per request, in order; a request's prompt is the question."""


@dataclass(frozen=True)
class Given(Grounder):
    """The caller's own regions (`Request.region`)."""

    name: ClassVar[str] = "given"
    help: ClassVar[str] = "your own boxes, polygon or mask"

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        if any(request.region is None for request in requests):
            raise CofError(
                "grounder 'given' needs a region with every question: pass boxes, a polygon or "
                "a mask (command line: --box x1 y1 x2 y2)."
            )
        return [Grounding(request.region) for request in requests]


@dataclass(frozen=True)
class Whole(Grounder):
    """Every image token: Table II's "reweight" without "ground"."""

    name: ClassVar[str] = "whole"
    help: ClassVar[str] = "every image token (the paper's ablation)"

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        return [Grounding(EVERYTHING)] * len(requests)


@dataclass(frozen=True)
class Nowhere(Grounder):
    """Nowhere: the plain model."""

    name: ClassVar[str] = "none"
    help: ClassVar[str] = "nowhere: the plain model"

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        return [Grounding(None, reason="No grounding was asked for.")] * len(requests)
