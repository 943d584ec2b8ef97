"""Many methods over one task in one pass: each image encoded once, each place looked for once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from cof.ahead import process_images, work_ahead
from cof.answer import Answer, refused_answer
from cof.client import RemoteCoF
from cof.engines.base import AttentionReader, Engine
from cof.errors import CofError, ServerError
from cof.eval.data.base import Benchmark
from cof.eval.examples import Embedded, Example, open_image, read_image_wh
from cof.eval.methods import PLAIN, Method, box_grounders, grounding_key, system_of
from cof.eval.store import Record, Store
from cof.geometry.boxes import XYXY
from cof.geometry.regions import EVERYTHING, Region
from cof.grounders import Grounder
from cof.pipeline import CoF
from cof.query import NO_IMAGE, Query
from cof.settings import Settings
from cof.types import Decoding, Grounding, Highlight, Request

WINDOW = 16
"""How many batches exchange questions, so that each has like ones."""

AT_SERVERS = 8
"""How many questions a batch has for each that is under way at servers: they wait for the last."""

Image = Path | Embedded
Place = tuple[int, str]
"""The identity of an image, and what stage 1 is asked about it."""


@dataclass(frozen=True)
class Runner:
    """Runs methods over a task and keeps the replies in a store.

    Batches are cut from the whole task, never from the questions that are left of it, so a run
    that goes on after an interruption repeats the same batches. They are made of like questions
    (`like_batches`), so that little of them is padding. Floats may still differ in their last
    bits: confidences agree within 1e-3, answers and boxes but for ties.

    A question that is refused (a damaged image, a text beyond the model's context) is recorded
    with its error, counts as wrong, and is not asked again. If a whole batch is refused, the run
    ends. Servers are asked the same questions, and their answers leave the same records.

    Attributes:
        engine: answers; or servers that have it.
        task: asks.
        path: of the store.
        batch_size: questions in one forward pass; under way at each server.
        max_new_tokens: the longest answer.
        seed: of the control's boxes.
    """

    engine: Engine | RemoteCoF
    task: Benchmark
    path: Path
    batch_size: int = 48
    max_new_tokens: int = 16
    seed: int = 0

    @property
    def servers(self) -> int:
        """How many there are; 0: the model is here."""
        return len(self.engine.urls) if isinstance(self.engine, RemoteCoF) else 0

    def run(
        self,
        methods: Sequence[Method],
        grounded: Sequence[Settings] = (),
        advance: Callable[[int], object] = lambda questions: None,
    ) -> Store:
        """Ask everything that is not in the store yet; the plain answers always come first.

        Args:
            methods: in any order, each key once; with a threshold plain answers are asked too.
            grounded: settings whose stage 1 is run, though no method may need it.
            advance: called with the number of questions that are done since the last call.

        Returns:
            The store, its file sorted by method and question.

        Raises:
            CofError: the store is damaged or another's; a method cannot run; no server answers.
        """
        store, examples = Store(self.path), self.task.examples
        if not {id for _, id in store} <= {example.id for example in examples}:
            raise CofError(
                f"{self.path} holds answers to other questions: delete it, or write elsewhere."
            )
        by_key = {method.key: method for method in methods}
        if any(method.settings.max_plain_confidence < 1 for method in by_key.values()):
            by_key[PLAIN.key] = PLAIN
        ordered = sorted(by_key.values(), key=lambda method: not method.is_plain)
        looking = [each.settings for each in ordered if not (each.is_plain or each.given)]
        grounders = {
            grounding_key(each): each
            for settings in (*grounded, *looking)
            for each in box_grounders(settings)
        }
        system = system_of(methods, grounded)
        keys = [*by_key, *grounders]
        size = self.batch_size * (self.servers * AT_SERVERS or 1)

        def parts() -> Iterator[Batch]:
            for start in range(0, len(examples), size * WINDOW):
                window = examples[start : start + size * WINDOW]
                if not store.lacks(keys, window):  # its images are not looked at
                    advance(len(window))
                    continue
                for part in like_batches(window, size, self.engine):
                    if store.lacks(keys, part):
                        yield Batch(self, store, part, system)
                    else:
                        advance(len(part))

        # servers' batches are large, and answered by many threads
        for batch in (map if self.servers else work_ahead)(Batch.open, parts()):
            batch.encode()
            for method in ordered:
                batch.answer(method)
            for grounder in grounders.values():
                batch.locate(grounder)
            advance(len(batch.examples))
        store.sort([example.id for example in examples])
        return store


def like_batches(
    examples: Sequence[Example], batch_size: int, engine: Engine | RemoteCoF
) -> Iterator[Sequence[Example]]:
    """All questions in batches: small images first, of equals those with short prompts.

    A batch is padded to its longest question, and padding is work. Questions about one image stay
    together, so that few batches encode it. The order depends on nothing but the questions.

    Args:
        examples: a window of the task: however many may be exchanged between batches.
        batch_size: questions in a batch; the last one may have fewer.
        engine: tells an image's size in tokens; if it does not, that is in pixels.
    """
    by_image: dict[Image, list[Example]] = {}
    for example in sorted(examples, key=lambda example: len(example.prompt)):
        by_image.setdefault(example.image, []).append(example)

    def size(group: Sequence[Example]) -> tuple[int, int]:
        wh = read_image_wh(group[0].image) or (0, 0)
        tokens = wh[0] * wh[1]
        if tokens and isinstance(engine, AttentionReader):
            tokens = engine.token_mask(wh, Highlight(EVERYTHING, 2.0)).size
        return tokens, len(group[-1].prompt)

    ordered = [example for group in sorted(by_image.values(), key=size) for example in group]
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


@dataclass(eq=False)
class Batch:
    """Questions that run together.

    Attributes:
        store: gets the replies.
        system: the system message of all chats.
        images: by source, encoded; or why the image cannot be used.
        processed: see `process_images`.
        found: by `grounding_key` what stage 1 has found, heat maps included.
    """

    runner: Runner
    store: Store
    examples: Sequence[Example]
    system: str = ""
    images: dict[Image, Any] = field(default_factory=dict)
    processed: dict[int, Any] = field(default_factory=dict)
    found: dict[str, dict[Place, Grounding]] = field(default_factory=dict)

    def open(self) -> Batch:
        """Load and process the images, each once."""
        for source in dict.fromkeys(example.image for example in self.examples):
            try:
                self.images[source] = open_image(source)
            except CofError as error:
                self.images[source] = error
        self.processed = process_images(self.runner.engine, self.images.values())
        return self

    def encode(self) -> None:
        """Encode the images."""
        engine: Any = self.runner.engine
        opened = {of: image for of, image in self.images.items() if not isinstance(image, CofError)}
        if self.runner.servers:
            for of in opened:
                self.images[of] = engine.encode(of if isinstance(of, Path) else of.load())
            return
        given = [self.processed.get(id(image), image) for image in opened.values()]
        try:
            encoded = engine.encode(given, prefill=True) if given else []
        except CofError:
            return  # the pipeline finds out which of them is refused
        self.images |= zip(opened, encoded, strict=True)

    def answer(self, method: Method) -> None:
        """Ask what has no answer yet in one way, and store the answers.

        Raises:
            CofError: every question of the batch is refused.
        """
        key, settings = method.key, method.without_threshold.settings
        lacking = [each for each in self.examples if (key, each.id) not in self.store]
        known = {e: record for e in lacking if (record := self._known(method, e.id))}
        self.store.append(replace(record, method=key) for record in known.values())
        asked = [example for example in lacking if example not in known]
        plain = PLAIN.settings.changed(system=self.system)
        looking = plain if method.is_plain else self._once(settings)
        queries = [
            Query(
                self.images[example.image],
                example.prompt,
                region=method.region(example, self.runner.seed),
                grounding_question=example.question.strip() or None,
                settings=looking,
                options=example.options if example.likelihood else (),
            )
            for example in asked
        ]
        answers = dict(zip(asked, self._ask(queries, self.runner.max_new_tokens), strict=True))
        self.store.append(_answer_record(self.runner.task, e, key, a) for e, a in answers.items())
        done = {example: answer for example, answer in answers.items() if not answer.error}
        boxes = box_grounders(settings)
        if len(boxes) == len(settings.grounders) == 1 and not (method.is_plain or method.given):
            self._keep(grounding_key(boxes[0]), done)

    def locate(self, grounder: Grounder) -> None:
        """Stage 1 alone of questions without its outcome: an answer of one token goes with it.

        Raises:
            CofError: every question of the batch is refused.
        """
        key = grounding_key(grounder)
        settings = self._once(Settings(grounder, scope="text", system=self.system))
        asked = [each for each in self.examples if (key, each.id) not in self.store]
        queries = [
            Query(self.images[each.image], _stage_one_question(each), settings=settings)
            for each in asked
        ]
        self._keep(key, dict(zip(asked, self._ask(queries, 1), strict=True)))

    def _known(self, method: Method, id: str) -> Record | None:
        """The answer that other methods have given already: a threshold on the plain answer's
        confidence chooses between the plain answer and that of always looking."""
        limit = method.settings.max_plain_confidence
        if limit == 1 or method.is_plain or method.given:
            return None
        plain = self.store[PLAIN.key, id]
        if plain.error is not None or (plain.confidence or 0.0) > limit:
            return plain
        return self.store.get((method.without_threshold.key, id))

    def _once(self, settings: Settings) -> Settings:
        """Settings whose grounders look for each place once, if they look here."""
        if self.runner.servers:
            return settings
        looking, exact = box_grounders(settings), settings.focus.uses_heat_map
        once = [Once(each, self, exact) if each in looking else each for each in settings.grounders]
        return settings.changed(grounder=once)

    def _keep(self, key: str, answers: Mapping[Example, Answer]) -> None:
        """Store what stage 1 found, as it comes with answers."""
        self.store.append(
            Record(e.id, key, "", error=a.error)
            if a.error
            else _grounding_record(e, key, a.raw_boxes, a.grounding_text, a.confidence)
            for e, a in answers.items()
        )

    def _ask(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """The answers; those that are refused, or whose image cannot be used, have an `error`."""
        pipeline: Any = self.runner.engine
        if not self.runner.servers:
            pipeline = CoF(pipeline, PLAIN.settings)
        try:
            answers = iter(
                pipeline.batch(
                    [query for query in queries if not isinstance(query.image, CofError)],
                    decoding=Decoding(max_new_tokens=max_new_tokens),
                    batch_size=self.runner.batch_size * (self.runner.servers or 1),
                    on_error="return",
                )
            )
        except ServerError as error:
            raise CofError(
                f"{error} What was answered is kept: the same command goes on from there."
            ) from error
        outcomes = [
            refused_answer(NO_IMAGE, query.question, PLAIN.settings, query.image)
            if isinstance(query.image, CofError)
            else next(answers)
            for query in queries
        ]
        errors = [outcome.error for outcome in outcomes if outcome.error]
        if len(errors) == len(self.examples):
            raise CofError(errors[0])
        return outcomes


@dataclass(frozen=True)
class Once(Grounder):
    """A grounder that looks for each place of a batch once: what it finds is kept and stored."""

    help: ClassVar[str] = ""
    grounder: Grounder  # looks
    batch: Batch  # keeps
    exact: bool  # whether heat maps are needed, which a store does not hold

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.grounder.name)

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        key, batch = grounding_key(self.grounder), self.batch
        examples: dict[Place, list[Example]] = {}
        known: dict[Place, Grounding] = {}
        for example in batch.examples:
            image = batch.images[example.image]
            place = (id(getattr(image, "image", image)), _stage_one_question(example))
            examples.setdefault(place, []).append(example)
            record = batch.store.get((key, example.id))
            if record is not None and record.error is None and not self.exact:
                region = Region(boxes=record.boxes) if record.boxes else None
                known[place] = Grounding(region, record.text, record.confidence)
        kept = batch.found.setdefault(key, {})
        known |= kept
        places = [(id(request.pil_image), request.prompt) for request in requests]
        new = {number: place for number, place in enumerate(places) if place not in known}
        if new:
            found = self.grounder.locate(engine, [requests[number] for number in new])
            fresh = dict(zip(new.values(), found, strict=True))
            known |= fresh
            # an image that could not be encoded here may be another object by the next time
            kept |= {place: of for place, of in fresh.items() if place in examples}
            batch.store.append(
                _grounding_record(
                    e, key, of.region.boxes if of.region else (), of.text, of.confidence
                )
                for place, of in fresh.items()
                for e in examples.get(place, ())
            )
        return [known[place] for place in places]


def _stage_one_question(example: Example) -> str:
    return (example.question.strip() or example.prompt).strip()


def _answer_record(task: Benchmark, example: Example, key: str, answer: Answer) -> Record:
    """The record of an answer, read by the task's rules; one that was refused is wrong."""
    if answer.error:
        return Record(example.id, key, "", right=False, error=answer.error)
    score, sure = task.score(example, answer.text), _rounded(answer.answer_confidence)
    return Record(example.id, key, answer.text, *score, answer.boxes, sure)


def _grounding_record(
    example: Example, key: str, boxes: tuple[XYXY, ...], text: str, confidence: float | None
) -> Record:
    return Record(example.id, key, text, boxes=boxes, confidence=_rounded(confidence))


def _rounded(confidence: float | None) -> float | None:
    """Without the digits that depend on the company in a batch."""
    return None if confidence is None else round(confidence, 5)
