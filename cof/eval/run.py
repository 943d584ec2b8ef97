"""Many methods over one task in one pass: each picture encoded and each box asked for once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cof.engines.base import Engine
from cof.engines.transformers.option_scoring import likelihoods
from cof.errors import CofError
from cof.eval.buckets import buckets, image_tokens
from cof.eval.methods import Method
from cof.eval.pictures import encoded
from cof.eval.store import ENCODING, GROUNDING, Record, Store, found_region, logged, times_path
from cof.eval.tasks import Example, Task
from cof.focuses import AttentionFocus
from cof.geometry.regions import Region
from cof.grounders import PromptGrounder, confidence
from cof.prompting.box_parsing import parse_boxes, parse_released
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Generation, Request

Progress = Callable[[int], None]
"""Called with the number of replies that have come in since the last call."""


@dataclass(frozen=True)
class Runner:
    """Runs methods over a task and keeps what they say in a store.

    Batches are cut from the whole task, never from what is left of it, so a run that was
    interrupted computes the same numbers in the same company and ends with the same file. They are
    made of like questions (`cof.eval.buckets`), so that little of them is padding.

    Attributes:
        engine: answers.
        task: asks.
        path: of the store; `times_path` of it holds what each batch took.
        batch_size: questions in one forward pass.
        window: how many batches may exchange questions; 1: none, they follow the task's order.
        decoding: of the answers.
        grounder: stage 1.
        seed: of the control's boxes.
    """

    engine: Engine
    task: Task
    path: Path
    batch_size: int = 48
    window: int = 16
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=16))
    grounder: PromptGrounder = field(default_factory=PromptGrounder)
    seed: int = 0

    @classmethod
    def of(
        cls,
        engine: Engine,
        task: Task,
        path: Path,
        settings: Settings,
        *,
        batch_size: int,
        max_new_tokens: int,
        seed: int,
    ) -> Runner:
        """With stage 1 asked as in the pipeline's settings; what its replies say is read by each
        method's own."""
        grounder = PromptGrounder(
            template=settings.grounding_template,
            max_new_tokens=settings.grounding_max_new_tokens,
            boxes=settings.boxes,
        )
        decoding = Decoding(max_new_tokens=max_new_tokens)
        return cls(engine, task, path, batch_size, decoding=decoding, grounder=grounder, seed=seed)

    def run(self, methods: Sequence[Method], progress: Progress | None = None) -> Store:
        """Everything that is not in the store yet; stage 1 whether a method needs it or not.

        Args:
            methods: whatever order; two with the same key are one.
            progress: told of replies, those that were there before included.

        Returns:
            The store, its file sorted by method and question.

        Raises:
            CofError: the store belongs to other questions, or is damaged.
        """
        store = Store(self.path)
        logged(times_path(self.path), tuple)  # nothing is added behind a torn line
        examples = self.examples()
        known = {example.id for example in examples}
        if not store.ids <= known:
            raise CofError(
                f"{self.path} holds answers to other questions: delete it, or write elsewhere."
            )
        keyed = {method.key: method for method in methods}
        tell = progress or (lambda _: None)
        tokens_of = image_tokens(self.engine)
        for start in range(0, len(examples), self.batch_size * self.window):
            part = examples[start : start + self.batch_size * self.window]
            if not self._missing(store, part, keyed):  # nor are its pictures looked at then
                tell(len(part) * (1 + len(keyed)))
                continue
            batches = [part] if self.window == 1 else buckets(part, self.batch_size, tokens_of)
            for rows in batches:
                self._batch(store, rows, keyed, tell)
        store.sort([example.id for example in examples])
        return store

    def examples(self) -> list[Example]:
        """All questions of the task, in order."""
        return [self.task.get_example(i) for i in range(self.task.num_examples())]

    def replies(self, methods: Sequence[Method]) -> int:
        """How many replies `run` counts."""
        return self.task.num_examples() * (1 + len({method.key for method in methods}))

    def _missing(self, store: Store, rows: list[Example], methods: dict[str, Method]) -> list[str]:
        return [
            key
            for key in (GROUNDING, *methods)
            if any((key, example.id) not in store for example in rows)
        ]

    def _batch(
        self, store: Store, rows: list[Example], methods: dict[str, Method], progress: Progress
    ) -> None:
        missing = self._missing(store, rows, methods)
        progress(len(rows) * (1 + len(methods) - len(missing)))
        if not missing:
            return
        start = time.perf_counter()
        images = encoded(self.engine, rows)
        self._took(ENCODING, rows, start)
        if GROUNDING in missing:
            start = time.perf_counter()
            store.append(self._ground(rows, images))
            self._took(GROUNDING, rows, start)
            progress(len(rows))
        for key, method in methods.items():
            if key in missing:
                start = time.perf_counter()
                store.append(self._answer(rows, images, method, store))
                self._took(key, rows, start)
                progress(len(rows))

    def _ground(self, rows: list[Example], images: list[EncodedImage]) -> list[Record]:
        requests = [
            Request(image, row.question or row.prompt)
            for row, image in zip(rows, images, strict=True)
        ]
        found = self.grounder.locate(self.engine, requests)
        return [
            Record(
                row.id,
                GROUNDING,
                grounding.text,
                boxes=grounding.region.boxes if grounding.region else (),
                confidence=_told(grounding.confidence),
            )
            for row, grounding in zip(rows, found, strict=True)
        ]

    def _answer(
        self, rows: list[Example], images: list[EncodedImage], method: Method, store: Store
    ) -> list[Record]:
        focus = AttentionFocus.build(method.settings)
        regions = [
            method.region(
                row,
                self._found(method, store[GROUNDING, row.id], image.size),
                image.size,
                self.seed,
            )
            for row, image in zip(rows, images, strict=True)
        ]
        requests = [Request(image, row.prompt) for row, image in zip(rows, images, strict=True)]
        focused = [
            request if region is None else focus.apply(request, region)
            for request, region in zip(requests, regions, strict=True)
        ]
        records = []
        for row, region, reply in zip(rows, regions, self._replies(rows, focused), strict=True):
            score = self.task.score(row, reply.text)
            boxes = region.boxes if region else ()
            sure = _told(confidence(reply))
            records.append(
                Record(row.id, method.key, reply.text, score.parsed, score.right, boxes, sure)
            )
        return records

    def _replies(self, rows: list[Example], requests: list[Request]) -> list[Generation]:
        """What the model says; of a question answered by likelihood, its most probable option."""
        free = [number for number, row in enumerate(rows) if not row.likelihood]
        said = self.engine.generate([requests[n] for n in free], self.decoding) if free else []
        replies = dict(zip(free, said, strict=True))
        compared = [
            (n, text) for n, row in enumerate(rows) if row.likelihood for text in row.options
        ]
        scored = likelihoods(
            self.engine, [requests[n] for n, _ in compared], [text for _, text in compared]
        )
        for (number, _), reply in zip(compared, scored, strict=True):
            best = replies.setdefault(number, reply)
            if _mean(reply) > _mean(best):  # of equals the first, as in the benchmark's own script
                replies[number] = reply
        return [replies[number] for number in range(len(rows))]

    def _found(self, method: Method, reply: Record, image_wh: tuple[int, int]) -> Region | None:
        """What stage 1 found, as the method reads its reply."""
        if reply.confidence is not None and reply.confidence < method.base.min_confidence:
            return None
        if method.base.parser == self.grounder.parser:
            return found_region(reply)
        frame, dialect = self.engine.frame(image_wh), self.engine.dialect
        if method.base.parser == "released":
            boxes = parse_released(reply.text, frame).boxes
        else:
            boxes = parse_boxes(reply.text, frame, units=dialect.units, order=dialect.order).boxes
        return Region(boxes=boxes) if boxes else None

    def _took(self, key: str, rows: list[Example], start: float) -> None:
        seconds = round(time.perf_counter() - start, 4)
        line = json.dumps([key, [row.id for row in rows], seconds])
        with times_path(self.path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _mean(reply: Generation) -> float:
    """Log-probability of a token on average, the end token among them (V*Bench's script)."""
    return math.fsum(reply.logprobs) / len(reply.logprobs)


def _told(confidence: float | None) -> float | None:
    """Without the digits that depend on what else was in the batch."""
    return None if confidence is None else round(confidence, 5)
