"""What a focus is, and those that raise the attention: the paper's, and variations of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

from cof.geometry.regions import Region
from cof.options import Options, flag, indices, option, positive
from cof.types import Highlight, Request, Scope


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
class Attention(Focus):
    """log(strength) on the attention scores of the region's image tokens (paper, equation 3).

    The attributes are those of `cof.types.Highlight`; `released` marks image tokens as the released
    code does (`cells`).
    """

    name: ClassVar[str] = "attention"
    help: ClassVar[str] = "raise the attention to its image tokens (the paper)"
    strength: float = option(
        2.0, "lambda: how much more attention (equation 3); 1 leaves the model as it is", positive
    )
    scope: Scope = option(
        "all",
        "Which tokens attend with the bias: all (the paper), or only the text after the image",
        get_args(Scope),
    )
    layers: tuple[int, ...] | None = option(
        None, "Decoder layers with the bias, such as 0-15,20; default: all (the paper)", indices
    )
    heads: tuple[int, ...] | None = option(
        None, "Attention heads with the bias, such as 0-7; default: all (the paper)", indices
    )
    released: bool = option(False, "Choose image tokens as the released code does", flag)

    @property
    def changes_nothing(self) -> str:
        alike = self.strength == 1
        return "Strength (lambda) is 1, which changes nothing." if alike else ""

    def apply(self, request: Request, region: Region) -> Request:
        highlight = Highlight(
            region,
            self.strength,
            self.scope,
            self.layers,
            self.heads,
            "corners" if self.released else "coverage",
            graded=self.uses_heat_map,
            guidance=getattr(self, "guidance", 1.0),
        )
        return replace(request, highlight=highlight)


@dataclass(frozen=True)
class Soft(Attention):
    """`Attention` with weights: log(1 + m (strength - 1)) for a token with weight m in 0..1.

    m comes from the heat map that a grounder found, or from the probability that each point is
    inside a box whose coordinates are distributions (`boxes="template"`); alpha changes neither.
    For any other region m is the part of what the token shows that lies inside.

    For m = 0 and m = 1 this is equation 3. Otherwise the attention weight (before softmax
    normalisation) is multiplied by 1 + m (strength - 1): the mean of the factors of equation 3 if
    the token is inside with probability m. (strength ** m would be the mean of the scores, and
    smaller: at strength 8 and m = 1/2 the factors are 4.5 and 2.8.)
    """

    name: ClassVar[str] = "soft"
    help: ClassVar[str] = "the same, weighted by a heat map or by the box's probabilities"
    uses_heat_map: ClassVar[bool] = True


@dataclass(frozen=True)
class Contrast(Attention):
    """`Attention` with guidance (Prompt Highlighter, arXiv 2312.04302).

    Two branches are decoded together, at twice the cost: one attends to the region with
    log(strength), the other with -log(strength). Each token is chosen greedily by
    log p = log p2 + g (log p1 - log p2).

    Departures: the paper's second branch scales the embeddings of the highlighted tokens down. Its
    code (dvlab-research/Prompt-Highlighter) does that by 0.01 and also attends to them with
    -(2 + log(strength)); its evaluations of LLaVA mix p, not log p. With -log(strength), no scaling
    and log p its tokens are those of `Contrast`.

    Attributes:
        guidance: g; 1 is `Attention`.
    """

    name: ClassVar[str] = "contrast"
    help: ClassVar[str] = "the same, with guidance away from not looking there (twice the cost)"
    guidance: float = option(1.3, "How far to guide away from not looking; 1: not at all", positive)


@dataclass(frozen=True)
class Unchanged(Focus):
    """Leaves the request unchanged: the plain model."""

    name: ClassVar[str] = "none"
    help: ClassVar[str] = "nothing: the plain model"

    changes_nothing = "Focus is 'none'."

    def apply(self, request: Request, region: Region) -> Request:
        return request
