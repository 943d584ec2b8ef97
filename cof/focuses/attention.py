"""Raise the attention to the region's image tokens: the paper's focus, and variations of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from cof.geometry.regions import Region
from cof.types import CellRule, Highlight, Request, Scope


@dataclass(frozen=True)
class AttentionFocus:
    """log(strength) on the attention scores of the region's image tokens (paper, equation 3).

    The attributes are those of `cof.types.Highlight`.
    """

    help: ClassVar[str] = "raise the attention to its image tokens (the paper)"
    uses_strength: ClassVar[bool] = True
    uses_heat_map: ClassVar[bool] = False
    strength: float
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    cells: CellRule = "coverage"

    def apply(self, request: Request, region: Region) -> Request:
        return replace(request, highlight=Highlight(region, **self._variation()))

    def _variation(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class SoftFocus(AttentionFocus):
    """`AttentionFocus` with weights: log(1 + m (strength - 1)) for a token with weight m in 0..1.

    m comes from the heat map that a grounder found, or from the probability that each point is
    inside a box whose coordinates are distributions (`boxes="template"`); alpha changes neither.
    For any other region m is the part of what the token shows that lies inside.

    For m = 0 and m = 1 this is equation 3. Otherwise the attention weight (before softmax
    normalisation) is multiplied by 1 + m (strength - 1): the mean of the factors of equation 3 if
    the token is inside with probability m. (strength ** m would be the mean of the scores, and
    smaller: at strength 8 and m = 1/2 the factors are 4.5 and 2.8.)
    """

    help: ClassVar[str] = "the same, weighted by a heat map or by the box's probabilities"
    uses_heat_map: ClassVar[bool] = True

    def _variation(self) -> dict[str, Any]:
        return {**super()._variation(), "graded": True}


@dataclass(frozen=True)
class ContrastFocus(AttentionFocus):
    """`AttentionFocus` with guidance (Prompt Highlighter, arXiv 2312.04302).

    Two branches are decoded together, at twice the cost: one attends to the region with
    log(strength), the other with -log(strength). Each token is chosen greedily by
    log p = log p2 + g (log p1 - log p2). Departure: the paper's second branch scales the
    embeddings of the highlighted tokens down, and attends as usual.

    Attributes:
        guidance: g; 1 is `AttentionFocus`.
    """

    help: ClassVar[str] = "the same, with guidance away from not looking there (twice the cost)"
    guidance: float = 1.3


@dataclass(frozen=True)
class NoFocus:
    """Leaves the request unchanged: the plain model."""

    help: ClassVar[str] = "nothing: the plain model"
    uses_strength: ClassVar[bool] = False
    uses_heat_map: ClassVar[bool] = False

    def apply(self, request: Request, region: Region) -> Request:
        return request
