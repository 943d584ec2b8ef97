"""What comes out of one query, what is told of it while it is decoded, and how one is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL.Image import Image

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.boxes import XYXY
from cof.geometry.regions import Region
from cof.images import ImageSource
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, OnText, Request, Thought, Timings


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
    _plain: str | Callable[[], str] = field(default="", repr=False)
    num_tokens: int = 0
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[float, ...] = field(default=(), repr=False)
    num_prompt_tokens: int = 0
    answer_confidence: float | None = None
    error: str = ""

    def plain(self) -> str:
        """The same model's answer without CoF, computed when first asked for.

        Raises:
            CofError: it was not, and the answer has gone to another process.
        """
        return self._plain_text

    @cached_property
    def _plain_text(self) -> str:
        return self._plain if isinstance(self._plain, str) else self._plain()

    def __getstate__(self) -> dict[str, Any]:
        """All but what could compute the plain answer: the model stays in its process."""
        known = vars(self).get("_plain_text", self._plain)
        return {**vars(self), "_plain": known if isinstance(known, str) else _left_behind}

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
        from cof.viz.page import write_html

        return write_html(self, vars(self).get("_plain_text"))

    def plot(self, engine: Engine | None = None) -> list[Any]:
        """Plot the image with the boxes, and the attention if the engine is given: `cof.engine`.

        See `cof.viz.page.plot_answer`.
        """
        from cof.viz.page import plot_answer

        return plot_answer(self, engine)


class Asking(ABC):
    """What answers batches of queries, asked for a single answer."""

    @abstractmethod
    def batch(self, *args: Any, **kwargs: Any) -> list[Answer]:
        """As `cof.CoF.batch`."""

    def __call__(
        self,
        image: ImageSource | EncodedImage,
        question: str,
        *,
        decoding: Decoding | None = None,
        on_text: Callable[[str], object] | None = None,
        **query: Any,
    ) -> Answer:
        """Answer one question.

        Args:
            image: anything that `cof.images.load_image` takes, or the result of `encode`.
            question: with its options and answer instruction, if any.
            decoding: how the answer is decoded; None: greedily.
            on_text: gets the answer's text piece by piece while it is decoded (`batch`).
            query: any other field of `Query`, such as `boxes`, `polygon` or `mask`, which take the
                grounder's place, `strength` and `system`.

        Raises:
            CofError: the image, the question or the region cannot be used; the message says why.
        """
        asked = {"image": image, "question": question, **query}
        return self.batch([asked], decoding=decoding, on_text=_for_one(on_text))[0]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        decoding: Decoding | None = None,
        on_text: Callable[[str], object] | None = None,
        **query: Any,
    ) -> Answer:
        """Answer the last message of a chat: as `__call__`, in its history. Many chats are answered
        together by `batch`, as `Query(messages=...)`.

        Args:
            messages: in the format of transformers and OpenAI (`cof.messages.read_messages`).
            query: any other field of `Query`. `image` is the number of the image that is looked
                at, from 0 or, below 0, from the end (None: the last one); `boxes`, `polygon` and
                `mask` are of that image.

        Raises:
            CofError: the chat, an image or the region cannot be used; the message says why.
        """
        asked = {"messages": messages, **query}
        return self.batch([asked], decoding=decoding, on_text=_for_one(on_text))[0]


def _for_one(listener: Callable[[str], object] | None) -> OnText | None:
    """The listener of a batch of one query."""
    return None if listener is None else lambda _, piece: listener(piece)


class SentText:
    """The text of one answer, told once even if the model is run for it several times.

    Example: the second run, in another batch, goes on where the first one stopped.

        >>> told = []
        >>> text = SentText(told.append)
        >>> text.grow("a red"); text.begin(); text.grow("a"); text.grow(" red star")
        >>> text.finish("a red star.")
        >>> told
        ['a red', ' star', '.']
    """

    def __init__(
        self,
        on_text: Callable[[str], object],
        on_thought: Callable[[str], object] | None = None,
    ) -> None:
        self._on_text = on_text
        self._thoughts = on_thought and SentText(on_thought)
        self._sent = self._text = ""  # in all, and in this run

    def begin(self) -> None:
        """The model is run for it, perhaps again."""
        self._text = ""
        if self._thoughts:
            self._thoughts.begin()

    def grow(self, piece: str) -> None:
        """The next piece of this run; thoughts go to their own listener."""
        if not isinstance(piece, Thought):
            self._send(self._text + piece)
        elif self._thoughts:
            self._thoughts.grow(str(piece))

    def finish(self, text: str) -> None:
        """The whole text is known.

        Raises:
            CofError: an earlier run has sent another one.
        """
        self._send(text)
        if self._sent != text:
            raise CofError(
                "The model was run again for this answer and now gives another text than the one "
                "sent before: ask again."
            )

    def _send(self, text: str) -> None:
        self._text = text
        if len(text) > len(self._sent) and text.startswith(self._sent):
            piece, self._sent = text[len(self._sent) :], text
            self._on_text(piece)


def _left_behind() -> str:
    raise CofError(
        "The model that answered is not at hand: ask for plain() before the answer is copied, or "
        "sent to another process."
    )


def refused_answer(image: Image, question: str, settings: Settings, error: CofError) -> Answer:
    """The place of an answer to a query that was refused."""
    return Answer(image=image, question=question, settings=settings, error=str(error))
