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
from cof.prompting.dialects import fill
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Generation, Request

ANSWER = Decoding(max_new_tokens=3)
BOX_TOKENS = 30  # of a box that is not decoded by a template; random weights never end earlier
FREE_BOX = Decoding(max_new_tokens=BOX_TOKENS)
COF = Settings(expand=1.0, boxes="template", grounding_max_new_tokens=BOX_TOKENS)


@dataclass
class Held:
    """An engine without one of its savings, or with fixed boxes in stage 1.

    Stage 1 runs in full, but the caller sets its boxes: a model with random weights would look
    anywhere, and how much of the prefix `all` reuses depends on where.

    Attributes:
        engine: does the work.
        boxes: the replies of stage 1, row by row, repeated; empty: the model's own.
        prefix: whether the prefix of an image is cached.
        vision: whether an image's features are; if not, stage 2 computes them again.
    """

    engine: TransformersEngine
    boxes: Sequence[str]
    prefix: bool = True
    vision: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, images: Sequence[Image.Image], *, prefill: bool = False) -> list[EncodedImage]:
        return self.engine.encode(images, prefill=prefill and self.prefix)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        answering = any(request.highlight for request in requests)
        if answering and not self.vision:
            requests = self._encode_again(requests)
        replies = self.engine.generate(requests, decoding)
        if answering or not self.boxes:
            return replies
        return [
            replace(reply, text=self.boxes[row % len(self.boxes)])
            for row, reply in enumerate(replies)
        ]

    def _encode_again(self, requests: Sequence[Request]) -> list[Request]:
        known = [asked.image for asked in requests if isinstance(asked.image, EncodedImage)]
        fresh = self.engine.encode([image.image for image in known])
        return [
            replace(request, image=replace(old, features=new.features))
            for request, old, new in zip(requests, known, fresh, strict=True)
        ]


@dataclass(frozen=True)
class Ways:
    """Questions about images, and the ways to answer them all.

    Attributes:
        engine: what answers.
        images: one for each row.
        questions: the questions about each image, equally many.
        boxes: the boxes of stage 1, row by row, as the model would write them; empty: its own.
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
        """As the paper's code: two whole generations with eager attention, without a box template.

        Without the bias: in eager attention it is one sum in a mask that exists anyway.
        """
        with eager(self.engine.model):
            for requests in self._rounds():
                ask = self.engine.dialect.template
                where = [replace(each, prompt=fill(ask, each.prompt)[0]) for each in requests]
                self.engine.generate(where, FREE_BOX)
                self.engine.generate(requests, ANSWER)

    def cof(
        self, *, prefix: bool = True, vision: bool = True, batches: int = 1, **settings: Any
    ) -> None:
        """The pipeline on all questions at once, or over and over in `batches` of one call, where
        the next images can be read and processed while the engine is busy."""
        engine = self.engine
        held = Held(engine, self.boxes, prefix, vision)
        rows = [
            Query(image.copy() if batches > 1 else image, question)
            for _ in range(batches)
            for image, questions in zip(self.images, self.questions, strict=True)
            for question in questions
        ]
        cof = CoF(held if "grounder" not in settings else engine, COF.changed(**settings))
        cof.batch(rows, decoding=ANSWER, batch_size=len(rows) // batches)

    def one_by_one(self, **settings: Any) -> None:
        """Each image encoded once, then its questions one by one."""
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
    "CoF, all": lambda ways: ways.cof(scope="all"),
    "CoF, text": lambda ways: ways.cof(scope="text"),
    "text, free box": lambda ways: ways.cof(scope="text", boxes="free"),
    "text, no prefix kept": lambda ways: ways.cof(scope="text", prefix=False),
    "text, vision twice": lambda ways: ways.cof(scope="text", vision=False),
    "text, one-pass box": lambda ways: ways.cof(scope="text", grounder="attention"),
    "lambda = 1": lambda ways: ways.cof(strength=1.0),
    "grounder none": lambda ways: ways.cof(grounder="none"),
    "CoF, text, four batches": lambda ways: ways.cof(scope="text", batches=4),
    "CoF, all, one by one": lambda ways: ways.one_by_one(scope="all"),
    "CoF, text, one by one": lambda ways: ways.one_by_one(scope="text"),
}

SINGLE = tuple(name for name in WAYS if not name.endswith(("one by one", "batches")))
SEVERAL = ("plain", "CoF, all", "CoF, text", "CoF, all, one by one", "CoF, text, one by one")
GROWING = ("plain", "naive", "CoF, all", "CoF, text")


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Run the decoder with attention as separate products, as the paper's code does."""
    model.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": DECODER})
