"""What a grounder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cof.engines.base import Engine
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
