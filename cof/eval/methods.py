"""What is compared: where to look, taken from one of five sources, and with which settings."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from cof.eval.tasks import Example
from cof.geometry.boxes import FULL, XYXY, intersection
from cof.geometry.regions import EVERYTHING, Region
from cof.pipeline import processed
from cof.settings import Settings
from cof.types import Scope

Where = Literal["plain", "whole", "cof", "oracle", "random"]

_OF_FOCUS = ("layers", "heads")
_OF_BOXES = ("cells", "on_missing", "min_box", "min_confidence", "square", "edge", "parser")
"""Settings besides lambda, alpha and scope on which an answer depends."""


@dataclass(frozen=True)
class Method:
    """One way of answering.

    Attributes:
        where: `plain`: nowhere, the model as it is; `whole`: every image token (the paper's
            Table II, "reweight" alone); `cof`: the model's own boxes; `oracle`: the true region;
            `random`: a box of the true region's size elsewhere, the control.
        strength: lambda.
        expand: alpha.
        scope: of the bias.
        base: all other settings, such as those of the preset `paper-parity`.
    """

    where: Where
    strength: float = 1.0
    expand: float = 1.0
    scope: Scope = "all"
    base: Settings = field(default_factory=Settings)

    @classmethod
    def of(cls, where: Where, settings: Settings) -> Method:
        """With everything as in the pipeline's settings."""
        return cls(where, settings.strength, settings.expand, settings.scope, settings)

    @property
    def key(self) -> str:
        """Names the method in records; equal only where the answers must be.

        >>> Method("cof", 4.0, 1.3, "text").key, Method("whole", 4.0, 1.3).key
        ('cof lambda=4 alpha=1.3 scope=text', 'whole lambda=4 scope=all')
        """
        if self.where == "plain":
            return "plain"
        alpha = "" if self.where == "whole" else f" alpha={self.expand:g}"
        usual = Settings()
        read = _OF_FOCUS if self.where == "whole" else (*_OF_FOCUS, *_OF_BOXES)
        rest = "".join(
            f" {name}={getattr(self.base, name)}"
            for name in read
            if getattr(self.base, name) != getattr(usual, name)
        )
        return f"{self.where} lambda={self.strength:g}{alpha} scope={self.scope}{rest}"

    @property
    def settings(self) -> Settings:
        """For the pipeline's own post-processing and focus."""
        return self.base.changed(expand=self.expand, strength=self.strength, scope=self.scope)

    def region(
        self, example: Example, found: Region | None, image_wh: tuple[int, int], seed: int
    ) -> Region | None:
        """Where to look, after post-processing; None: the plain model answers.

        A question whose true region is the whole image has that as oracle and control too.

        Args:
            example: the question.
            found: what stage 1 found for it.
            image_wh: size of its picture, pixels.
            seed: of the control's boxes.
        """
        if self.where == "plain":
            return None
        if self.where == "whole":
            return EVERYTHING
        true = example.region or FULL
        region = {
            "cof": found,
            "oracle": Region(boxes=(true,)),
            "random": Region(boxes=(elsewhere(true, f"{seed}-{example.id}"),)),
        }[self.where]
        if region is None:
            return EVERYTHING if self.base.on_missing == "whole" else None
        return processed(region, self.settings, image_wh)


PLAIN = Method("plain")


def elsewhere(xyxy: XYXY, seed: str, tries: int = 64) -> XYXY:
    """A box of the same size at random: the first of `tries` that does not touch the given one,
    else the one that overlaps it least.

    >>> box = elsewhere((0.0, 0.0, 0.25, 0.5), "any")
    >>> round(box[2] - box[0], 6), round(box[3] - box[1], 6), box[0] >= 0.25 or box[1] >= 0.5
    (0.25, 0.5, True)
    """
    rng = random.Random(seed)
    width, height = xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]
    best, least = xyxy, float("inf")
    for _ in range(tries):
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = (x, y, x + width, y + height)
        overlap = intersection(box, xyxy)
        if overlap < least:
            best, least = box, overlap
        if least == 0:
            break
    return best
