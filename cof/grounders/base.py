"""What a grounder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from cof.engines.base import Engine
from cof.types import Grounding, Request


class Grounder(Protocol):
    """Finds, for each request, the region of its image that holds the answer.

    A frozen dataclass; its fields that are named as settings (`cof.settings.Settings`) are filled
    from them.

    Attributes:
        help: where it looks, in a few words, for the command line.
        engine_calls: engine calls per image; an image that is used more than once, the answer
            included, is worth caching.
        reads_states: whether the engine must be a `cof.engines.base.StateReader`.
    """

    help: ClassVar[str]
    engine_calls: ClassVar[int]
    reads_states: ClassVar[bool]

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        """One grounding per request, in order; a request's prompt is the question."""
        ...
