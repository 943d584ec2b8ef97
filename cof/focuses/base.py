"""What a focus is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from cof.geometry.regions import Region
from cof.types import Request


class Focus(Protocol):
    """Makes a request look at a region (stage 2 of the paper).

    A frozen dataclass; each field that has the name of a setting (`cof.settings.Settings`) gets
    that setting's value.

    Attributes:
        help: what it does, in a few words, for the command line.
        uses_strength: whether lambda changes anything.
        uses_heat_map: whether it reads `Region.heat_map`, where a grounder gives one.
    """

    help: ClassVar[str]
    uses_strength: ClassVar[bool]
    uses_heat_map: ClassVar[bool]

    def apply(self, request: Request, region: Region) -> Request:
        """The request that looks at the region, which is already expanded."""
        ...
