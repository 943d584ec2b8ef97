"""What pictures need to know of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from cof.geometry.boxes import XYXY
    from cof.geometry.regions import Region


class Drawable:
    """The part of a `cof.Answer`, which is one, that is drawn; its attributes are explained
    there."""

    text: str
    raw_boxes: tuple[XYXY, ...]
    grounder: str
    confidence: float | None
    reason: str
    region: Region | None
    settings: Any
    image: Image
    question: str
    error: str
