"""Many methods over one task in one pass: each image encoded once, each place looked for once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from cof.answer import Answer
from cof.client import RemoteCoF
from cof.engines.base import Engine, ReplyScorer
from cof.errors import CofError, ServerError
from cof.eval.batching import image_token_counter, like_batches
from cof.eval.examples import Embedded, Example, Task
from cof.eval.images import open_image
from cof.eval.json_files import drop_torn_line
from cof.eval.methods import PLAIN, Method, box_grounders, grounding_key
from cof.eval.steps import (
    Steps,
    answer_record,
    grounding_record,
    known_answer,
    open_store,
    read_grounding,
    refusal,
)
from cof.eval.store import ENCODING, Record, Store, costs_path, log_cost
from cof.geometry.regions import EVERYTHING, Region
from cof.grounders import Grounder
from cof.query import Query, Sample
from cof.settings import Settings
from cof.stages import Look, answer, isolate, stage_one_request
from cof.types import Decoding, EncodedImage, Generation, Grounding, Request, confidence

WINDOW = 16
"""How many batches exchange questions, so that each has like ones."""

AT_SERVERS = 8
"""How many questions a batch has for each that is under way at servers: they wait for the last."""


@dataclass(frozen=True)
class Runner:
    """Runs methods over a task and keeps the replies in a store.

    Batches are cut from the whole task, never from the questions that are left of it, so a run
    that goes on after an interruption repeats the same batches. They are made of like questions
    (`like_batches`), so that little of them is padding. Floats may still differ in their last
    bits: confidences agree within 1e-3, answers and boxes but for ties.

    A question that is refused (a damaged image, a text beyond the model's context) is recorded
    with its error, counts as wrong, and is not asked again. Where every question of a batch is
    refused, the run ends.

    Servers are asked the same questions, and their answers leave the same records; what a question
    costs is not recorded then, because its time depends on what else a server does.

    Attributes:
        engine: answers; or servers that have it.
        task: asks.
        path: of the store; `costs_path` of it holds what each batch took.
        batch_size: questions in one forward pass; under way at each server.
        max_new_tokens: the longest answer.
        seed: of the control's boxes.
    """

    engine: Engine | RemoteCoF
    task: Task
    path: Path
    batch_size: int = 48
    max_new_tokens: int = 16
    seed: int = 0

    def run(
        self,
        methods: Sequence[Method],
        grounded: Sequence[Settings] = (),
        advance: Callable[[int], object] = lambda questions: None,
    ) -> Store:
        """Ask everything that is not in the store yet; the plain answers always come first.

        Args:
            methods: in any order; two with the same key are one. With a threshold among them the
                plain answers are asked too.
            grounded: settings whose stage 1 is run, though no method may need it.
            advance: called with the number of questions that are done since the last call.

        Returns:
            The store, its file sorted by method and question.

        Raises:
            CofError: the store belongs to other questions, or is damaged; a method cannot be run;
                no server answers.
        """
        store = open_store(self.path, self.task)
        drop_torn_line(costs_path(self.path))
        remote = isinstance(self.engine, RemoteCoF)
        if remote:  # their stage 1 is recorded as it comes with the answers
            grounded = [*grounded, *(m.settings for m in methods if not (m.is_plain or m.given))]
        steps = Steps.of(methods, grounded)
        if remote:
            check_servers_can(steps, self.task)
        for part in self._batches(store, steps, advance):
            lacking = store.lacks(steps.keys, part)
            if lacking:
                batch = (RemoteBatch if remote else Batch)(self, store, part)
                batch.encode()
                if not remote:
                    batch.locate_all(steps.groundings.values())
                for key, method in steps.methods.items():
                    if key in lacking:
                        batch.answer(method)
                if remote:
                    batch.locate_all(steps.groundings.values())
            advance(len(part))
        store.sort([example.id for example in self.task.examples])
        return store

    def _batches(
        self, store: Store, steps: Steps, advance: Callable[[int], object]
    ) -> Iterator[list[Example]]:
        """The task's questions in batches, without windows that are done."""
        examples, size = self.task.examples, self.batch_size
        count_tokens: Callable[[Example], int] = lambda example: 0  # noqa: E731
        if isinstance(self.engine, RemoteCoF):
            size *= len(self.engine.urls) * AT_SERVERS
        else:
            count_tokens = image_token_counter(self.engine)
        for start in range(0, len(examples), size * WINDOW):
            window = examples[start : start + size * WINDOW]
            if store.lacks(steps.keys, window):  # else its images are not looked at
                yield from like_batches(window, size, count_tokens)
            else:
                advance(len(window))


@dataclass(eq=False)
class Batch:
    """Questions that run together, their images encoded, and the groundings so far.

    Attributes:
        runner: the options.
        store: gets the replies.
        examples: the questions; below they go by their place in this list.
        images: the encoded images.
        refused: why a question's image cannot be used.
        groundings: by `grounding_key`, the outcome for each question.
    """

    runner: Runner
    store: Store
    examples: list[Example]
    images: dict[int, EncodedImage] = field(default_factory=dict)
    refused: dict[int, CofError] = field(default_factory=dict)
    groundings: dict[str, Mapping[int, Grounding | CofError]] = field(default_factory=dict)

    def encode(self) -> None:
        """Load and encode the images, each once.

        Raises:
            CofError: all of them are refused.
        """
        sources = dict.fromkeys(example.image for example in self.examples)
        opened = isolate(sources, lambda part: [open_image(source) for source in part])
        images = {key: image for key, image in opened.items() if not isinstance(image, CofError)}
        with self._measured(ENCODING, range(len(self.examples))):
            encoded = isolate(images, lambda part: self._encode([images[each] for each in part]))
        outcomes: dict[Path | Embedded, Any] = {**opened, **encoded}
        for number, example in enumerate(self.examples):
            outcome = outcomes[example.image]
            refused = isinstance(outcome, CofError)
            (self.refused if refused else self.images)[number] = outcome
        self._check(self.refused)

    def locate_all(self, grounders: Iterable[Grounder]) -> None:
        """Run stage 1 of grounders whose outcomes are not in the store."""
        for grounder in grounders:
            self.locate(grounder)

    def locate(
        self, grounder: Grounder, *, needs_heat_map: bool = False
    ) -> Mapping[int, Grounding | CofError]:
        """The outcome of a grounder for each question; from the store if it is there and enough.

        Raises:
            CofError: every question is refused.
        """
        key = grounding_key(grounder)
        if key in self.groundings:
            return self.groundings[key]
        records = [self.store[key, e.id] for e in self.examples if (key, e.id) in self.store]
        if len(records) == len(self.examples) and not needs_heat_map:
            return dict(enumerate(map(read_grounding, records)))
        with self._measured(key, range(len(self.examples))):
            outcomes = self.refused | self._locate(grounder)
        self._check(outcomes)
        self.store.append(
            refusal(self.examples[number], key, outcome)
            if isinstance(outcome, CofError)
            else grounding_record(self.examples[number], key, outcome)
            for number, outcome in outcomes.items()
        )
        self.groundings[key] = outcomes
        return outcomes

    def answer(self, method: Method) -> None:
        """Ask every question in one way, and store the answers.

        Raises:
            CofError: every question is refused.
        """
        key, known = method.key, self._known(method)
        asked = [number for number in self.images if number not in known]
        with self._measured(key, asked):
            outcomes = self.refused | self._answer(method.without_threshold, asked)
        self._check(outcomes)
        records = {
            number: refusal(self.examples[number], key, outcome)
            if isinstance(outcome, CofError)
            else replace(outcome, method=key)
            for number, outcome in outcomes.items()
        }
        self.store.append((records | known).values())

    def _encode(self, images: Sequence[Image]) -> list[EncodedImage]:
        """An engine may leave the decoder's state after an image to the first question about it.
        It is asked one here, so that the time is the encoding's and not that of a method."""
        engine: Any = self.runner.engine
        encoded: list[EncodedImage] = engine.encode(images, prefill=True)
        lazy = [Request(image, "?") for image in encoded if image.prefix is not None]
        if lazy:
            engine.generate(lazy, Decoding(max_new_tokens=1))
        return encoded

    def _locate(self, grounder: Grounder) -> dict[int, Grounding | CofError]:
        """The outcome of a grounder for each question whose image is there."""

        def locate(part: Sequence[int]) -> list[Grounding]:
            samples = [self._sample(PLAIN, number) for number in part]
            requests = [stage_one_request(each, each.request) for each in samples]
            return grounder.locate(self.runner.engine, requests)  # type: ignore[arg-type]

        return isolate(self.images, locate)

    def _answer(self, method: Method, asked: Sequence[int]) -> dict[int, Record | CofError]:
        """The record of each answer, or why the question is refused."""
        found = self._found(method, asked)

        def answer_part(part: Sequence[int]) -> list[Record]:
            samples = [self._sample(method, number) for number in part]
            looks = [
                [Look.of(sample, name, outcome) for name, outcome in found[number].items()]
                for sample, number in zip(samples, part, strict=True)
            ]
            examples = [self.examples[number] for number in part]
            outcomes = answer(
                lambda requests, places: self._generate(requests, [examples[p] for p in places]),
                samples,
                [sample.request for sample in samples],
                looks,
                [None] * len(part),
            )
            return [
                self._record(example, method, of.reply.text, of.look.region, confidence(of.reply))
                for example, of in zip(examples, outcomes, strict=True)
            ]

        refused = {
            number: error
            for number in asked
            for error in found[number].values()
            if isinstance(error, CofError)
        }
        return {**refused, **isolate([n for n in asked if n not in refused], answer_part)}

    def _found(self, method: Method, asked: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What each of the method's grounders found, by its name, for each question."""
        if method.is_plain or method.given:
            seed = self.runner.seed
            return {
                n: {method.given or "none": Grounding(method.region(self.examples[n], seed))}
                for n in asked
            }
        located = {
            each.name: self.locate(each, needs_heat_map=method.settings.focus.uses_heat_map)
            for each in box_grounders(method.settings)
        }
        whole = Grounding(EVERYTHING)
        return {
            n: {
                each.name: located[each.name][n] if each.name in located else whole
                for each in method.settings.grounders
            }
            for n in asked
        }

    def _known(self, method: Method) -> dict[int, Record]:
        """The answers that other methods have given already."""
        sources = (PLAIN.key, method.without_threshold.key)
        known = {}
        for number in self.images:
            id = self.examples[number].id
            records = {key: self.store[key, id] for key in sources if (key, id) in self.store}
            if record := known_answer(method, records):
                known[number] = record
        return known

    def _query(self, method: Method, number: int) -> Query:
        example = self.examples[number]
        return Query(
            self.images[number],
            example.prompt,
            region=method.region(example, self.runner.seed),
            grounding_question=example.question.strip() or None,
            settings=PLAIN.settings if method.is_plain else method.settings,
        )

    def _sample(self, method: Method, number: int) -> Sample:
        return Sample.from_query(self._query(method, number), method.settings, False, {})

    def _record(
        self,
        example: Example,
        method: Method,
        text: str,
        region: Region | None,
        sure: float | None,
    ) -> Record:
        boxes = region.boxes if region else ()
        return answer_record(self.runner.task, example, method.key, text, boxes, sure)

    def _generate(
        self, requests: Sequence[Request], examples: Sequence[Example]
    ) -> list[Generation]:
        """The model's replies; to a question answered by likelihood, its most probable option."""
        engine: Any = self.runner.engine
        replies: dict[int, Generation] = {}
        free = [number for number, example in enumerate(examples) if not example.likelihood]
        if free:
            decoding = Decoding(max_new_tokens=self.runner.max_new_tokens)
            replies = dict(
                zip(free, engine.generate([requests[n] for n in free], decoding), strict=True)
            )
        options = [
            (number, text)
            for number, example in enumerate(examples)
            if example.likelihood
            for text in example.options
        ]
        if options:
            scored = _score_replies(
                engine, [requests[n] for n, _ in options], [text for _, text in options]
            )
            for (number, _), reply in zip(options, scored, strict=True):
                best = replies.setdefault(number, reply)
                if _mean(reply) > _mean(best):  # of equals the first, as in the benchmark's script
                    replies[number] = reply
        return [replies[number] for number in range(len(examples))]

    def _check(self, outcomes: Mapping[int, object]) -> None:
        """End the run if every question of the batch is refused."""
        errors = [outcome for outcome in outcomes.values() if isinstance(outcome, CofError)]
        if len(errors) == len(self.examples):
            raise errors[0]

    @contextmanager
    def _measured(self, step: str, numbers: Sequence[int]) -> Iterator[None]:
        with count_passes(self.runner.engine) as passes:
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
        if numbers:
            ids = [self.examples[number].id for number in numbers]
            log_cost(self.runner.path, step, ids, seconds, passes())


@dataclass(eq=False)
class RemoteBatch(Batch):
    """Questions that servers are asked, some at a time."""

    def _encode(self, images: Sequence[Image]) -> list[EncodedImage]:
        return list(map(self._servers.encode, images))

    def _locate(self, grounder: Grounder) -> dict[int, Grounding | CofError]:
        """Stage 1 alone: an answer of one token goes with it."""
        key = grounding_key(grounder)
        asked = [n for n in self.images if (key, self.examples[n].id) not in self.store]
        queries = [
            Query(
                self.images[n],
                self.examples[n].question.strip() or self.examples[n].prompt,
                settings=Settings(grounder),
            )
            for n in asked
        ]
        return {
            n: found if isinstance(found, CofError) else _grounding(found)
            for n, found in zip(asked, self._send(queries, 1), strict=True)
        }

    def _answer(self, method: Method, asked: Sequence[int]) -> dict[int, Record | CofError]:
        queries = [self._query(method, number) for number in asked]
        answers = self._send(queries, self.runner.max_new_tokens)
        grounders = box_grounders(method.settings)
        outcomes: dict[int, Record | CofError] = {}
        for number, got in zip(asked, answers, strict=True):
            example = self.examples[number]
            if isinstance(got, CofError):
                outcomes[number] = got
                continue
            outcomes[number] = self._record(
                example, method, got.text, got.region, got.answer_confidence
            )
            if (
                not method.given
                and [*grounders] == [*method.settings.grounders]
                and len(grounders) == 1
            ):
                record = grounding_record(example, grounding_key(grounders[0]), _grounding(got))
                self.store.append([record])
        return outcomes

    @property
    def _servers(self) -> RemoteCoF:
        assert isinstance(self.runner.engine, RemoteCoF)
        return self.runner.engine

    def _send(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer | CofError]:
        servers = self._servers
        try:
            answers = servers.batch(
                queries,
                decoding=Decoding(max_new_tokens=max_new_tokens),
                batch_size=self.runner.batch_size * len(servers.urls),
                on_error="return",
            )
        except ServerError as error:
            raise CofError(
                f"{error} What was answered is kept: the same command goes on from there."
            ) from error
        return [CofError(answer.error) if answer.error else answer for answer in answers]

    @contextmanager
    def _measured(self, step: str, numbers: Sequence[int]) -> Iterator[None]:
        yield


def check_servers_can(steps: Steps, task: Task) -> None:
    """Refuse what servers cannot do.

    Raises:
        CofError: a reply's likelihood, or a detector, is asked for.
    """
    if any(example.likelihood for example in task.examples):
        raise CofError(
            "Servers cannot say how likely a reply is: choose another --prompt-style, or leave "
            "--server out."
        )
    asked = [*(method.settings for method in steps.methods.values())]
    if any(each.option("detector") for each in [*asked, *map(Settings, steps.groundings.values())]):
        raise CofError(
            "A server chooses its detector itself: take another grounder, or leave --server out."
        )


def _grounding(answer: Answer) -> Grounding:
    """What stage 1 found, as it comes with an answer."""
    region = Region(boxes=answer.raw_boxes) if answer.raw_boxes else None
    return Grounding(region, answer.grounding_text, answer.confidence)


@contextmanager
def count_passes(engine: object) -> Iterator[Callable[[], int | None]]:
    """Counts forward passes through the engine's decoder; None where it shows no model."""
    model: Any = getattr(engine, "model", None)
    if model is None:
        yield lambda: None
        return
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = model.get_decoder().register_forward_pre_hook(count)
    try:
        yield lambda: passes
    finally:
        hook.remove()


def _score_replies(
    engine: Engine, requests: Sequence[Request], replies: Sequence[str]
) -> list[Generation]:
    if not isinstance(engine, ReplyScorer):
        raise CofError(f"{engine.name} cannot say how likely a reply is: use a transformers model.")
    return engine.score_replies(requests, replies)


def _mean(reply: Generation) -> float:
    """Log-probability of a token on average, the end token among them (V*Bench's script)."""
    return math.fsum(reply.logprobs) / len(reply.logprobs)
