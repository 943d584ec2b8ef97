"""Grounders that ask nothing of the engine: the caller's regions, every image token, nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import EVERYTHING
from cof.grounders.base import Grounder
from cof.types import Grounding, Request


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
