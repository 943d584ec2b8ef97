"""What the pipeline works on: questions as they are asked, checked rows, and what each aims at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from cof.adaptive import Rule
from cof.boxes import (
    area,
    at_least,
    clip,
    expand_region,
    expand_snapped,
    region_from_boxes,
    region_from_mask,
    region_from_polygon,
    squared,
    union,
)
from cof.errors import CofError
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS, confidence
from cof.images import load_image
from cof.settings import Settings
from cof.types import EVERYTHING, EncodedImage, Generation, Grounding, Region, Request

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL.Image import Image

    from cof.images import ImageSource


@dataclass(frozen=True, eq=False)
class Query:
    """One question about one image, with what may differ from row to row of a batch.

    Attributes:
        image: anything `cof.images.load_image` takes, or what `CoF.encode` made of it.
        question: what to ask, with options and answer instruction if any; blanks around it go.
        boxes: the caller's own boxes, `(x1, y1, x2, y2)` in 0..1 of the image.
        polygon: or the points `(x, y)` of a polygon, in 0..1 of the image.
        mask: or an `(H, W)` mask of any resolution over the whole image.
        region: or a region made beforehand.
        strength: lambda of this row; None: the settings'.
    """

    image: ImageSource | EncodedImage
    question: str
    boxes: Sequence[Sequence[float]] | None = None
    polygon: Sequence[tuple[float, float]] | None = None
    mask: ArrayLike | None = None
    region: Region | None = None
    strength: float | None = None


QueryLike: TypeAlias = "Query | Mapping[str, Any] | tuple[ImageSource | EncodedImage, str]"


@dataclass(frozen=True, eq=False)
class Row:
    """A checked query: its picture loaded, its region built, its own settings."""

    image: Image
    question: str
    region: Region | None
    settings: Settings
    encoded: EncodedImage | None = None

    @classmethod
    def of(
        cls, query: Query, settings: Settings, allow_url: bool, pictures: dict[object, Image]
    ) -> Row:
        """Check a query; `pictures` remembers what was loaded, so that it is encoded once."""
        question = checked_question(query.question)
        source = query.image
        encoded = source if isinstance(source, EncodedImage) else None
        key = str(source) if isinstance(source, (str, os.PathLike)) else id(source)
        if key not in pictures:
            pictures[key] = (
                source.image
                if isinstance(source, EncodedImage)
                else load_image(source, allow_url=allow_url)
            )
        image = pictures[key]
        region = _own_region(query, image.size)
        if region is not None:
            settings = settings.changed(grounder="given")
        if query.strength is not None:
            settings = settings.changed(strength=query.strength)
            if settings.adaptive is not None:  # the caller's lambda stands above the rule's
                settings = settings.changed(adaptive=replace(settings.adaptive, strengths=()))
        return cls(image, question, region, settings, encoded)

    @property
    def calls(self) -> int:
        """How many times the engine is asked about the image."""
        if self.idle:
            return 1
        asks = GROUNDERS[self.settings.grounder].asks
        return 1 + asks + (self.rule is not None)

    @property
    def rule(self) -> Rule | None:
        """What decides whether to look; None: always. The caller's own region is never in doubt."""
        return None if self.settings.grounder in ("given", "none") else self.settings.adaptive

    @property
    def idle(self) -> str:
        """Why no region is needed, so that stage 1 is spared; empty if one is."""
        settings = self.settings
        if settings.focus == "none":
            return "Nothing was looked for: focus is 'none'."
        chosen_later = self.rule is not None and self.rule.strengths
        scaled = settings.focus in ("attention", "soft", "contrast")
        if scaled and settings.strength == 1 and not chosen_later:
            return "Nothing was looked for: strength (lambda) is 1, which changes nothing."
        return ""

    def spared(self, draft: Generation | None) -> str:
        """Why the rule runs no stage 1, given the plain answer; empty if it does, or is none."""
        if self.rule is None or draft is None:
            return ""
        sure = confidence(draft)
        if self.rule.looks(sure):
            return ""
        most = self.rule.plain_at_most
        return (
            f"Nothing was looked for: the plain answer's confidence, {sure:.2f}, is above {most:g}."
        )

    def takes(self, draft: Generation, looked: Generation) -> bool:
        """Whether the rule prefers the answer after looking."""
        return self.rule is None or self.rule.takes(confidence(draft), confidence(looked))


@dataclass(frozen=True, eq=False)
class Aim:
    """What stage 2 does for one row.

    Attributes:
        region: to look at; None: the plain model answers.
        settings: the row's, lambda as the rule chose it.
        reason: why a region that was found is not looked at; empty otherwise.
    """

    region: Region | None
    settings: Settings
    reason: str = ""

    def focused(self, request: Request) -> Request:
        """The request that looks there."""
        if self.region is None:
            return request
        return FOCUSES[self.settings.focus].build(self.settings).apply(request, self.region)


def aim_of(row: Row, grounding: Grounding) -> Aim:
    """What stage 2 does with what stage 1 found."""
    settings, rule, found = row.settings, row.rule, grounding.region
    if row.idle:
        return Aim(None, settings)
    if found is None:
        missing_is_whole = settings.on_missing == "whole" and settings.grounder != "none"
        return Aim(EVERYTHING if missing_is_whole and not rule else None, settings)
    if rule is not None:
        if not rule.trusts(grounding.confidence, area(union(found.boxes))):
            return Aim(None, settings, "The box is too unsure or too large to be looked at.")
        settings = settings.changed(strength=rule.strength(grounding.confidence, settings.strength))
    return Aim(processed(found, settings, row.image.size), settings)


def checked_question(question: str) -> str:
    """The question without blanks around it.

    Raises:
        CofError: nothing is left.
    """
    if not isinstance(question, str) or not question.strip():
        raise CofError("The question is empty: ask something about the image.")
    return question.strip()


def processed(region: Region, settings: Settings, image_wh: tuple[int, int]) -> Region:
    """A found region ready for stage 2: widened, squared, expanded (paper, section II-B).

    With `edge="snap"` boxes follow the released code and may leave 0..1 (into the padding).

    Example: alpha = 2 about the centre, moved inside.

        >>> found = Region(boxes=((0.0, 0.75, 0.25, 1.0),))
        >>> processed(found, Settings(expand=2.0), (100, 100)).boxes
        ((0.0, 0.5, 0.5, 1.0),)
    """
    if region.whole:
        return region
    if region.mask is not None:
        return expand_region(region, settings.expand)
    boxes = region.boxes
    if settings.min_box > 0:
        boxes = tuple(at_least(box, settings.min_box) for box in boxes)
    if settings.edge == "snap":
        boxes = tuple(
            expand_snapped(box, settings.expand, image_wh, square=settings.square) for box in boxes
        )
        return replace(region, boxes=boxes)
    if settings.square:
        boxes = tuple(squared(box, image_wh) for box in boxes)
    return expand_region(replace(region, boxes=boxes), settings.expand)


def as_query(item: QueryLike) -> Query:
    """A query out of any of the forms it may come in.

    Raises:
        CofError: it has none of them.
    """
    if isinstance(item, Query):
        return item
    if isinstance(item, Mapping):
        known = [field.name for field in fields(Query)]
        unknown = [key for key in item if key not in known]
        if unknown or not {"image", "question"} <= item.keys():
            raise CofError(
                f"A query has image and question, and may have {', '.join(known[2:])}; "
                f"this one has {', '.join(map(str, item))}."
            )
        return Query(**item)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return Query(*item)
    raise CofError("A batch holds (image, question) pairs, dicts or Query values.")


def _own_region(query: Query, image_wh: tuple[int, int]) -> Region | None:
    given = [
        name for name in ("boxes", "polygon", "mask", "region") if getattr(query, name) is not None
    ]
    if len(given) > 1:
        raise CofError(f"Give one of {', '.join(given)}, not several.")
    if query.boxes is not None:
        return region_from_boxes(query.boxes)
    if query.polygon is not None:
        return region_from_polygon(query.polygon, image_wh)
    if query.mask is not None:
        return region_from_mask(query.mask)
    return query.region and _checked(query.region)


def _checked(region: Region) -> Region:
    """A region made by hand: its boxes are a mask's, or reach into the image."""
    if not isinstance(region, Region):
        raise CofError(
            f"region takes a cof.Region, not {type(region).__name__}; boxes, polygon and mask take "
            "what one is made of."
        )
    if region.whole:
        return region
    if region.mask is not None:
        return replace(region_from_mask(region.mask), heat=region.heat)
    if not region.boxes or any(area(box) * area(clip(box)) == 0 for box in region.boxes):
        raise CofError(
            "A region needs boxes (x1, y1, x2, y2) with an area inside the image, in 0..1 of its "
            f"width and height, or a mask, or whole=True; this one has the boxes {region.boxes}."
        )
    return region
