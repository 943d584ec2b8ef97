"""The ways to answer questions about images, each from pixels to text, that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from cof.attention.registry import DECODER
from cof.engines.transformers.engine import TransformersEngine
from cof.pipeline import CoF, Query
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Generation, Request

ANSWER = Decoding(max_new_tokens=3)
BOX_TOKENS = 30  # the most of a free-running box; a model with random weights writes them all
FREE_BOX = Decoding(max_new_tokens=BOX_TOKENS)
COF = Settings(expand=1.0, boxes="template", grounding_max_new_tokens=BOX_TOKENS)


class Held:
    """An engine as the pipeline sees it, with a saving switched off, or with stage 1's boxes set.

    Stage 1 is run in full, but where it leads is up to the caller: a model with random weights
    would look anywhere, and what `all` can reuse depends on where.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        boxes: Sequence[str],
        *,
        prefix: bool = True,
        vision: bool = True,
    ) -> None:
        """
        Args:
            engine: does the work.
            boxes: what stage 1 is made to say, row by row, over and over; empty: what it says.
            prefix: whether the decoder's state behind an image is kept.
            vision: whether an image's features are; else stage 2 computes them again.
        """
        self.engine, self.boxes, self.prefix, self.vision = engine, boxes, prefix, vision

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, images: Sequence[Image.Image], *, prefill: bool = False) -> list[EncodedImage]:
        return self.engine.encode(images, prefill=prefill and self.prefix)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        answering = any(request.highlight for request in requests)
        if answering and not self.vision:
            requests = self._seen_again(requests)
        replies = self.engine.generate(requests, decoding)
        if answering or not self.boxes:
            return replies
        return [
            replace(reply, text=self.boxes[row % len(self.boxes)])
            for row, reply in enumerate(replies)
        ]

    def _seen_again(self, requests: Sequence[Request]) -> list[Request]:
        known = [of.image for of in requests if isinstance(of.image, EncodedImage)]
        fresh = self.engine.encode([of.image for of in known])
        return [
            replace(request, image=replace(old, features=new.features))
            for request, old, new in zip(requests, known, fresh, strict=True)
        ]


@dataclass(frozen=True)
class Ways:
    """Questions about images, and the ways to answer them all.

    Attributes:
        engine: what answers.
        images: one row each.
        questions: of each image, as many for all.
        boxes: where CoF looks, row by row, as the model would write it; empty: where it will.
    """

    engine: TransformersEngine
    images: Sequence[Image.Image]
    questions: Sequence[Sequence[str]]
    boxes: Sequence[str] = ()

    def plain(self) -> None:
        """The model's own answers: every question by itself, from pixels."""
        for requests in self._rounds():
            self.engine.generate(requests, ANSWER)

    def naive(self) -> None:
        """As the paper's code: two whole eager generations, the box free-running.

        The bias itself is left out: in eager attention it is one sum in a mask that is there.
        """
        with eager(self.engine.model):
            for requests in self._rounds():
                ask = self.engine.dialect.grounding_prompt
                where = [replace(request, prompt=ask(request.prompt)) for request in requests]
                self.engine.generate(where, FREE_BOX)
                self.engine.generate(requests, ANSWER)

    def cof(self, *, prefix: bool = True, vision: bool = True, **settings: Any) -> None:
        """The pipeline on all questions at once."""
        engine = self.engine
        held = Held(engine, self.boxes, prefix=prefix, vision=vision)
        rows = [
            Query(image, question)
            for image, questions in zip(self.images, self.questions, strict=True)
            for question in questions
        ]
        cof = CoF(held if "grounder" not in settings else engine, COF.changed(**settings))
        cof.batch(rows, decoding=ANSWER, batch_size=len(rows))

    def one_by_one(self, **settings: Any) -> None:
        """Each image encoded once, then its questions as they come."""
        cof = CoF(Held(self.engine, self.boxes), COF.changed(**settings))
        for image, questions in zip(self.images, self.questions, strict=True):
            encoded = cof.encode(image)
            for question in questions:
                cof(encoded, question, decoding=ANSWER)

    def _rounds(self) -> Iterator[list[Request]]:
        """The first question of every image, the second, and so on."""
        for asked in zip(*self.questions, strict=True):
            yield [
                Request(image, question) for image, question in zip(self.images, asked, strict=True)
            ]


WAYS: Mapping[str, Callable[[Ways], None]] = {
    "plain": Ways.plain,
    "naive": Ways.naive,
    "CoF, all": lambda of: of.cof(scope="all"),
    "CoF, text": lambda of: of.cof(scope="text"),
    "text, free box": lambda of: of.cof(scope="text", boxes="free"),
    "text, no prefix kept": lambda of: of.cof(scope="text", prefix=False),
    "text, vision twice": lambda of: of.cof(scope="text", vision=False),
    "text, one-pass box": lambda of: of.cof(scope="text", grounder="attention"),
    "lambda = 1": lambda of: of.cof(strength=1.0),
    "grounder none": lambda of: of.cof(grounder="none"),
    "CoF, all, one by one": lambda of: of.one_by_one(scope="all"),
    "CoF, text, one by one": lambda of: of.one_by_one(scope="text"),
}

SINGLE = tuple(name for name in WAYS if "one by one" not in name)
SEVERAL = ("plain", *(name for name in WAYS if name.startswith("CoF")))
GROWING = ("plain", "naive", "CoF, all", "CoF, text")


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Run the decoder with attention as separate products, as the paper's code does."""
    model.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": DECODER})
