"""Grounders crossed with focuses: each place looked for once, then looked at in every way.

What each step of a batch costs is kept beside the answers: seconds and passes of the decoder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cof.engines.base import Engine
from cof.eval.methods import elsewhere
from cof.eval.pictures import encoded
from cof.eval.store import Record, Store, logged
from cof.eval.tasks import Example, Task
from cof.focuses import FOCUSES
from cof.geometry.boxes import FULL
from cof.geometry.regions import Region
from cof.grounders import GROUNDERS, confidence
from cof.pipeline import processed
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Grounding, Request

PLAIN = "plain"
ENCODING = "encoding"

GIVEN = ("oracle", "random")
"""Regions that are given: the true one, and a box of its size elsewhere, the control."""


@dataclass(frozen=True)
class Cell:
    """One way of answering.

    Attributes:
        source: where to look: a name in `GROUNDERS`, or one of `GIVEN`.
        settings: how, its `grounder` left aside.
    """

    source: str
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.source} x {self.settings.focus}"

    @property
    def key(self) -> str:
        """Names the cell in records; equal only where the answers must be.

        >>> Cell("oracle", Settings(focus="crop", expand=1.5)).key
        'oracle x crop alpha=1.5'
        """
        of = self.settings
        bias = f" lambda={of.strength:g} scope={of.scope}" if scaled(of.focus) else ""
        return f"{self.name} alpha={of.expand:g}{bias}"


def scaled(focus: str) -> bool:
    """Whether lambda is anything to a focus.

    >>> scaled("attention"), scaled("crop")
    (True, False)
    """
    return "strength" in {of.name for of in fields(FOCUSES[focus])}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cost:
    """What a step took, all batches together or one.

    Attributes:
        seconds: of wall clock.
        passes: through the decoder, of a whole batch; None: the engine does not show them.
        whole: whether it needs the whole picture encoded.
    """

    seconds: float
    passes: int | None
    whole: bool = True


@dataclass(frozen=True)
class Crossing:
    """Runs cells over a task and keeps what they say in a store.

    A batch whose answers are not all there is grounded again, so that heat maps need not be kept;
    batches are cut from the whole task, so that an interrupted run ends with the same file.

    Attributes:
        engine: answers.
        task: asks.
        path: of the store; `costs_path` is beside it.
        settings: of the grounders.
        batch_size: questions in one forward pass.
        decoding: of the answers.
        seed: of the control's boxes.
    """

    engine: Engine
    task: Task
    path: Path
    settings: Settings
    batch_size: int = 48
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=16))
    seed: int = 0

    def run(self, cells: Sequence[Cell], progress: Callable[[int], None]) -> Store:
        """Everything that is not in the store yet; plain answers always.

        Args:
            cells: the ways of answering; those with one source share its regions.
            progress: told of answers, those that were there before included.
        """
        store = Store(self.path)
        logged(self.costs_path, tuple)  # nothing is added behind a torn line
        by_source: dict[str, list[Cell]] = {}
        for cell in cells:
            by_source.setdefault(cell.source, []).append(cell)
        examples = self.examples()
        for start in range(0, len(examples), self.batch_size):
            rows = examples[start : start + self.batch_size]
            self._batch(store, rows, by_source, progress)
        store.sort([example.id for example in examples])
        return store

    def examples(self) -> list[Example]:
        """All questions of the task, in order."""
        return [self.task.get_example(i) for i in range(self.task.num_examples())]

    def replies(self, cells: Sequence[Cell]) -> int:
        """How many answers `run` counts."""
        return self.task.num_examples() * (1 + len(cells))

    @property
    def costs_path(self) -> Path:
        return self.path.with_suffix(".costs.jsonl")

    def costs(self) -> dict[str, dict[str, Cost]]:
        """By step (a cell's key, `grounding SOURCE`, `plain`, `encoding`) and by the first
        question of each batch; of a batch that was repeated the last time counts."""
        found: dict[str, dict[str, Cost]] = {}
        for key, first, seconds, passes, whole in logged(self.costs_path, tuple):
            found.setdefault(key, {})[first] = Cost(seconds, passes, whole)
        return found

    def _batch(
        self,
        store: Store,
        rows: list[Example],
        by_source: Mapping[str, list[Cell]],
        progress: Callable[[int], None],
    ) -> None:
        def missing(key: str) -> bool:
            return any((key, row.id) not in store for row in rows)

        left = {
            source: [cell for cell in cells if missing(cell.key)]
            for source, cells in by_source.items()
        }
        plain = missing(PLAIN)
        known = sum(map(len, by_source.values())) - sum(map(len, left.values())) + (not plain)
        progress(len(rows) * known)
        if not plain and not any(left.values()):
            return
        with self._measured(ENCODING, rows):
            images = encoded(self.engine, rows)
        requests = [Request(image, row.prompt) for image, row in zip(images, rows, strict=True)]
        if plain:
            with self._measured(PLAIN, rows):
                replies = self.engine.generate(requests, self.decoding)
            store.append(self._records(PLAIN, rows, replies, [None] * len(rows)))
            progress(len(rows))
        for source, cells in left.items():
            if not cells:
                continue
            with self._measured(grounding(source), rows):
                found = self._found(source, rows, requests)
            store.append(
                Record(
                    row.id,
                    grounding(source),
                    of.text,
                    boxes=_boxes(of.region),
                    confidence=of.confidence,
                )
                for row, of in zip(rows, found, strict=True)
            )
            for cell in cells:
                self._cell(store, cell, rows, requests, found)
                progress(len(rows))

    def _cell(
        self,
        store: Store,
        cell: Cell,
        rows: list[Example],
        requests: list[Request],
        found: list[Grounding],
    ) -> None:
        asks = bool(GROUNDERS[_grounder(cell.source)].asks)
        regions = [
            of.region and processed(of.region, cell.settings, request.image.size)
            for request, of in zip(requests, found, strict=True)
        ]
        with self._measured(cell.key, rows) as note:
            focus = FOCUSES[cell.settings.focus].build(cell.settings)
            focused = [
                request if region is None else focus.apply(request, region)
                for request, region in zip(requests, regions, strict=True)
            ]
            note["whole"] = asks or any(isinstance(of.image, EncodedImage) for of in focused)
            replies = self.engine.generate(focused, self.decoding)
        store.append(self._records(cell.key, rows, replies, regions))

    def _found(self, source: str, rows: list[Example], requests: list[Request]) -> list[Grounding]:
        regions: list[Region | None] = [None] * len(rows)
        if source in GIVEN:
            true = [row.region or FULL for row in rows]
            boxes = (
                true
                if source == "oracle"
                else [
                    elsewhere(box, f"{self.seed}-{row.id}")
                    for box, row in zip(true, rows, strict=True)
                ]
            )
            regions = [Region(boxes=(box,)) for box in boxes]
        name = _grounder(source)
        settings = self.settings.changed(grounder=name)
        return GROUNDERS[name].build(settings, regions).locate(self.engine, requests)

    def _records(
        self,
        key: str,
        rows: list[Example],
        replies: Sequence[Any],
        regions: Sequence[Region | None],
    ) -> list[Record]:
        records = []
        for row, reply, region in zip(rows, replies, regions, strict=True):
            score = self.task.score(row, reply.text)
            sure = confidence(reply)
            boxes = _boxes(region)
            records.append(Record(row.id, key, reply.text, score.parsed, score.right, boxes, sure))
        return records

    @contextmanager
    def _measured(self, key: str, rows: list[Example]) -> Iterator[dict[str, bool]]:
        note = {"whole": True}
        with passes(self.engine) as count:
            start = time.perf_counter()
            yield note
            seconds = round(time.perf_counter() - start, 4)
        line = json.dumps([key, rows[0].id, seconds, count(), note["whole"]])
        with self.costs_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def grounding(source: str) -> str:
    """The key of stage 1's records and costs."""
    return f"grounding {source}"


@contextmanager
def passes(engine: Engine) -> Iterator[Callable[[], int | None]]:
    """Counts forward passes through the engine's decoder; None where it shows no model."""
    model: Any = getattr(engine, "model", None)
    if model is None:
        yield lambda: None
        return
    seen = [0]

    def count(*_: object) -> None:
        seen[0] += 1

    hook = model.get_decoder().register_forward_pre_hook(count)
    try:
        yield lambda: seen[0]
    finally:
        hook.remove()


def _grounder(source: str) -> str:
    return "given" if source in GIVEN else source


def _boxes(region: Region | None) -> tuple[tuple[float, ...], ...]:
    return region.boxes if region else ()
