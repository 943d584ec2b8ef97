"""Queries as users write them, checked samples, and the region that stage 2 looks at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import PIL.Image
from numpy.typing import ArrayLike
from PIL.Image import Image

from cof.errors import CofError
from cof.geometry.regions import (
    EVERYTHING,
    Region,
    check_region,
    region_from_boxes,
    region_from_mask,
    region_from_polygon,
)
from cof.images import ImageSource, load_image
from cof.messages import ChatText, read_messages
from cof.options import check_text
from cof.settings import Settings
from cof.types import EncodedImage, Request

NO_IMAGE = PIL.Image.new("RGB", (1, 1))
"""In the place of the image where a chat has none, or none could be loaded."""


@dataclass(frozen=True, eq=False)
class Query:
    """One question about one image, or a chat, with what may differ between those of a batch.

    Attributes:
        image: anything that `cof.images.load_image` takes, or the result of `CoF.encode`. With
            `messages` the number of the one looked at, from 0 or, below 0, the end; None: the last.
        question: the question, with its options and answer instruction if any; it is stripped.
        boxes: the caller's own boxes, `(x1, y1, x2, y2)` in 0..1 of the image. A query with
            boxes, a polygon, a mask or a region uses the grounder `given`.
        polygon: instead, the points `(x, y)` of a polygon, in 0..1 of the image.
        mask: instead, an `(H, W)` mask of any resolution over the whole image.
        region: instead, a `cof.Region`.
        strength: lambda of this query; None: that of the settings.
        grounding_question: the question that stage 1 gets, such as one without options and answer
            instruction; None: `question`, or the last text of the chat.
        settings: the settings of this query; None: the pipeline's.
        options: the answer is the most probable of these replies; empty: the model writes one.
        system: the system message; None: that of the settings.
        messages: instead of `question`, a whole chat (`cof.messages.read_messages`).
    """

    image: ImageSource | EncodedImage | int | None = None
    question: str = ""
    boxes: Sequence[Sequence[float]] | None = None
    polygon: Sequence[tuple[float, float]] | None = None
    mask: ArrayLike | None = None
    region: Region | None = None
    strength: float | None = None
    grounding_question: str | None = None
    settings: Settings | None = None
    options: Sequence[str] = ()
    system: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None

    def read(self, system: str = "") -> ChatText:
        """The chat, its images not loaded yet; `system` is its system message if it has none.

        Raises:
            CofError: it cannot be used.
        """
        system = check_text("The system message", system if self.system is None else self.system)
        if self.messages is None:
            if self.image is None:
                raise CofError("The query has no image: give one, or a chat as messages.")
            image = {"type": "image", "image": self.image}
            text = {"type": "text", "text": check_question(self.question)}
            return read_messages([{"role": "user", "content": [image, text]}], None, system)
        if self.question or not isinstance(self.image, int | None):
            raise CofError(
                "A chat holds its question and images itself: give messages, and image only as "
                "the number of the one to look at."
            )
        return read_messages(self.messages, self.image, system)


QueryLike: TypeAlias = "Query | Mapping[str, Any] | tuple[ImageSource | EncodedImage, str]"


@dataclass(frozen=True, eq=False)
class Sample:
    """A checked query: its images loaded, its region built, its own settings."""

    request: Request  # with the caller's own region if there is one
    settings: Settings  # the query's or else the pipeline's, with this query's changes
    grounding_question: str  # that stage 1 gets
    options: tuple[str, ...] = ()  # the replies to choose among; empty: the model writes its own

    @classmethod
    def from_query(
        cls, query: Query, settings: Settings, allow_url: bool, images: dict[object, Image]
    ) -> Sample:
        """Check a query.

        Args:
            settings: the pipeline's.
            images: those loaded so far, by source: each is loaded once; it is added to.

        Raises:
            CofError: the chat, an image or the region cannot be used.
        """
        settings = settings if query.settings is None else query.settings
        if not isinstance(settings, Settings):
            raise CofError(f"settings takes cof.Settings, not {type(settings).__name__}.")

        def load(source: ImageSource | EncodedImage) -> Image | EncodedImage:
            if isinstance(source, EncodedImage):
                return source
            key = str(source) if isinstance(source, (str, os.PathLike)) else id(source)
            if key not in images:
                images[key] = load_image(source, allow_url=allow_url)
            return images[key]

        chat = query.read(settings.system)
        if chat.image is None:
            settings = settings.changed(grounder="none", focus="none")
        image = NO_IMAGE if chat.image is None else load(chat.image)
        others = tuple(map(load, chat.others))
        region = own_region(query, image.size)
        if region is not None:
            if chat.image is None:
                raise CofError("The chat has no image to look at: leave the region out.")
            settings = settings.changed(grounder="given")
        if query.strength is not None:
            settings = settings.changed(strength=query.strength)
        about = query.grounding_question
        about = (chat.prompt if about is None else check_question(about)).strip()
        request = Request(image, chat.prompt, region=region, chat=chat.turns, others=others)
        if not isinstance(query.options, (list, tuple)):
            raise CofError(f"options takes a list of replies, not {query.options!r}.")
        options = tuple(check_text("An option", each) for each in query.options)
        return cls(request, settings, about, options)

    @property
    def engine_calls(self) -> int:
        """How many times the engine is called for this image, at most."""
        if self.settings.changes_nothing:
            return 1
        looks = self.settings.grounders
        return sum(each.engine_calls for each in looks) + len(looks) + self.drafts

    @property
    def drafts(self) -> bool:
        """Whether the plain answer is generated first, to see whether it is sure enough."""
        settings = self.settings
        limited = settings.max_plain_confidence < 1 and not settings.changes_nothing
        return limited and settings.grounder_name not in ("given", "none")

    def target(self, region: Region | None) -> Region | None:
        """The region of stage 2, from a grounder's or None; None: the plain model answers."""
        settings = self.settings
        whole = settings.released and settings.grounder_name != "none"
        if settings.changes_nothing or (region is None and not whole):
            return None
        if region is None:
            return EVERYTHING
        return settings.post_process(region, self.request.pil_image.size)


def check_question(question: str) -> str:
    """The question, as it is.

    Raises:
        CofError: it is empty, or no text that a tokenizer takes.
    """
    if not isinstance(question, str) or not question.strip():
        raise CofError("The question is empty: ask something about the image.")
    return check_text("The question", question)


def as_query(item: QueryLike) -> Query:
    """A query from a `Query`, a dict with its fields, or an `(image, question)` pair.

    Raises:
        CofError: it is none of these.
    """
    if isinstance(item, Query):
        return item
    if isinstance(item, Mapping):
        known = [field.name for field in fields(Query)]
        whole = {"image", "question"} <= item.keys() or "messages" in item
        if not whole or not item.keys() <= set(known):
            raise CofError(
                "A query has image and question, or messages, and may have "
                f"{', '.join(known[2:-1])}; this one has {', '.join(map(str, item))}."
            )
        return Query(**item)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return Query(*item)
    raise CofError("A batch holds (image, question) pairs, dicts or Query values.")


def own_region(query: Query, image_wh: tuple[int, int]) -> Region | None:
    """The caller's own region, in 0..1 of the image; None: the query has none.

    Raises:
        CofError: it cannot be used, or there are several.
    """
    makers: dict[str, Callable[[Any], Region]] = {
        "boxes": region_from_boxes,
        "polygon": lambda corners: region_from_polygon(corners, image_wh),
        "mask": region_from_mask,
        "region": check_region,
    }
    given = [name for name in makers if getattr(query, name) is not None]
    if len(given) > 1:
        raise CofError(f"Give one of {', '.join(given)}, not several.")
    return makers[given[0]](getattr(query, given[0])) if given else None
