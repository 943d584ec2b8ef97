"""What a grounder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from cof.engines.base import Engine
from cof.types import Grounding, Request


class Grounder(Protocol):
    """Finds, for each request, the region of its image that holds the answer.

    A frozen dataclass; each field that has the name of a setting (`cof.settings.Settings`) gets
    that setting's value.

    Attributes:
        help: where it looks, and what it asks of the engine, in a few words for the command line.
        engine_calls: how often it calls the engine for an image in a way that a prefix cache of
            the image makes cheaper; the pipeline caches an image that is used more than once.
        reads_states: whether the engine must be a `cof.engines.base.StateReader`.
    """

    help: ClassVar[str]
    engine_calls: ClassVar[int]
    reads_states: ClassVar[bool]

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        """One grounding per request, in order; a request's prompt is the question."""
        ...
