"""What comes out of one query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cof.errors import CofError
from cof.geometry.boxes import XYXY
from cof.geometry.regions import Region
from cof.settings import Settings
from cof.types import Request, Timings

if TYPE_CHECKING:
    from PIL.Image import Image

    from cof.engines.base import Engine


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """The answer to one query, and how it came about.

    Attributes:
        text: the answer.
        reasoning: what a reasoning model thought before it, as its chat template marks it.
        boxes: the boxes that the model was made to look at, in 0..1 of the image, after
            expansion; empty: the answer is the plain model's.
        raw_boxes: the boxes as the grounder found them, before post-processing.
        found: whether the grounder found a region.
        grounder: the name of the grounder whose look was kept, of several in the settings.
        grounding_text: the model's reply to the grounding prompt, verbatim.
        confidence: of the box, 0..1 (`cof.types.Grounding.confidence`); None if unknown.
        reason: why no region was found or needed, one sentence; empty otherwise.
        region: the region that the model was made to look at, after expansion; None: the plain
            model answered.
        settings: the settings of this query.
        timings: seconds of the two stages, for the whole batch that the query was part of.
        image: the image, upright RGB; `NO_IMAGE` if the query was refused before it was loaded.
        question: the question, or the last text of the chat.
        request: the whole chat, which an engine answers plainly; None: a server has answered, or
            the query was refused.
        num_tokens: of the answer, without the end token.
        token_ids, logprobs: of the answer's tokens, its thoughts' included.
        num_prompt_tokens: of the chat that was answered, its images included.
        answer_confidence: geometric mean probability of the answer's tokens, 0..1; None if unknown.
        error: why the query was refused (`batch` with `on_error="return"`); empty otherwise.
    """

    text: str = ""
    reasoning: str = ""
    boxes: tuple[XYXY, ...] = ()
    raw_boxes: tuple[XYXY, ...] = ()
    found: bool = False
    grounder: str = ""
    grounding_text: str = ""
    confidence: float | None = None
    reason: str = ""
    region: Region | None = None
    settings: Settings
    timings: Timings = Timings()  # noqa: RUF009 (frozen)
    image: Image = field(repr=False)
    question: str = field(repr=False)
    request: Request | None = field(default=None, repr=False)
    _plain: Callable[[], str] = field(default=str, repr=False)
    num_tokens: int = 0
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[float, ...] = field(default=(), repr=False)
    num_prompt_tokens: int = 0
    answer_confidence: float | None = None
    error: str = ""

    def plain(self) -> str:
        """The same model's answer without CoF, computed when first asked for."""
        return self._plain_text

    @cached_property
    def _plain_text(self) -> str:
        return self._plain()

    def as_dict(self) -> dict[str, Any]:
        """How it came about, ready for JSON; boxes are `[x1, y1, x2, y2]` in 0..1 of the image."""
        plain = "boxes raw_boxes found grounder grounding_text confidence reason num_tokens"
        return {
            **{name: getattr(self, name) for name in plain.split()},
            **({"reasoning": self.reasoning} if self.reasoning else {}),
            "answer_confidence": self.answer_confidence,
            "whole": self.region is not None and self.region.whole,
            "timings": self.timings.as_dict(),
            "settings": self.settings.as_dict(),
        }

    def _repr_html_(self) -> str:
        """What a notebook shows; with the plain answer if it was asked for before."""
        from cof.viz.notebook import write_html

        return write_html(self, vars(self).get("_plain_text"))

    def plot(self, engine: Engine | None = None) -> list[Any]:
        """Plot the image with the boxes, and the attention if the engine is given: `cof.engine`.

        See `cof.viz.notebook.plot_answer`.
        """
        from cof.viz.notebook import plot_answer

        return plot_answer(self, engine)

    def to_detections(self) -> Any:
        """The boxes as `supervision.Detections`; see `cof.viz.notebook.make_detections`."""
        from cof.viz.notebook import make_detections

        return make_detections(self)


def refused_answer(image: Image, question: str, settings: Settings, error: CofError) -> Answer:
    """The place of an answer to a query that was refused."""
    return Answer(image=image, question=question, settings=settings, error=str(error))
