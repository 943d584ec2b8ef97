"""What a focus is, and the one that does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from cof.geometry.regions import Region
from cof.options import Options
from cof.types import Request


@dataclass(frozen=True)
class Focus(Options, ABC):
    """Makes a request look at a region (stage 2 of the paper).

    A frozen dataclass; its fields are its options (`cof.options.option`).

    Attributes:
        name: in `cof.focuses.FOCUSES`.
        help: what it does, in a few words, for the command line.
        uses_heat_map: whether it reads `Region.heat_map`, where a grounder gives one.
    """

    help: ClassVar[str]
    uses_heat_map: ClassVar[bool] = False

    @property
    def changes_nothing(self) -> str:
        """Why no region is needed, so that stage 1 is skipped; empty if one is."""
        return ""

    @abstractmethod
    def apply(self, request: Request, region: Region) -> Request:
        """The request that looks at the region, which is already expanded."""


@dataclass(frozen=True)
class Unchanged(Focus):
    """Leaves the request unchanged: the plain model."""

    name: ClassVar[str] = "none"
    help: ClassVar[str] = "nothing: the plain model"

    @property
    def changes_nothing(self) -> str:
        return "Focus is 'none'."

    def apply(self, request: Request, region: Region) -> Request:
        return request
