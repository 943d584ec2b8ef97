"""Many methods over one task in one pass: each image encoded once, each place looked for once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.batching import image_token_counter, like_batches
from cof.eval.examples import Example, Task
from cof.eval.images import open_image
from cof.eval.methods import PLAIN, Method, grounding_key
from cof.eval.store import ENCODING, Record, Store, costs_path, log_cost, read_log, region_of
from cof.focuses import FOCUSES
from cof.query import Sample
from cof.settings import Settings
from cof.stages import Look, answer, stage_one_request
from cof.types import (
    Decoding,
    EncodedImage,
    Generation,
    Grounding,
    Request,
    confidence,
)

Progress = Callable[[int], None]
"""Called with the number of answers that have come in since the last call."""


@dataclass(frozen=True)
class Runner:
    """Runs methods over a task and keeps what they say in a store.

    Batches are cut from the whole task, never from what is left of it, so a run that was
    interrupted computes the same numbers in the same company. They are made of like questions
    (`like_batches`), so that little of them is padding. Batches that are repeated after an
    interruption may still differ in the last bits of their floats: confidences agree within 1e-3,
    answers and boxes but for ties.

    A question that is refused (a damaged image, a text beyond the model's context) is recorded
    with its error and counts as wrong; where every question of a batch is refused, the run ends.

    Attributes:
        engine: answers.
        task: asks.
        path: of the store; `costs_path` of it holds what each batch took.
        batch_size: questions in one forward pass.
        window: how many batches may exchange questions; 1: none, they follow the task's order.
        max_new_tokens: the longest answer.
        seed: of the control's boxes.
    """

    engine: Engine
    task: Task
    path: Path
    batch_size: int = 48
    window: int = 16
    max_new_tokens: int = 16
    seed: int = 0

    def run(
        self,
        methods: Sequence[Method],
        grounded: Sequence[Settings] = (),
        progress: Progress | None = None,
    ) -> Store:
        """Everything that is not in the store yet; the plain answers always come first.

        Args:
            methods: whatever order; two with the same key are one.
            grounded: settings whose stage 1 is run, though no method may need it.
            progress: told of answers, those that were there before included.

        Returns:
            The store, its file sorted by method and question.

        Raises:
            CofError: the store belongs to other questions, or is damaged; a method cannot be run.
        """
        store = Store(self.path)
        read_log(costs_path(self.path), tuple)  # nothing is added behind a torn line
        examples = self.task.examples
        if not store.ids <= {example.id for example in examples}:
            raise CofError(
                f"{self.path} holds answers to other questions: delete it, or write elsewhere."
            )
        keyed = {method.key: method for method in methods}
        tell = progress or (lambda _: None)
        count_tokens = image_token_counter(self.engine)
        for start in range(0, len(examples), self.batch_size * self.window):
            part = examples[start : start + self.batch_size * self.window]
            if not self._missing(store, part, keyed, grounded):  # nor are its images looked at
                tell(len(part) * len(keyed))
                continue
            batches = (
                [list(part)]
                if self.window == 1
                else like_batches(part, self.batch_size, count_tokens)
            )
            for batch in batches:
                self._run_batch(store, batch, keyed, grounded, tell)
        store.sort([example.id for example in examples])
        return store

    def count_answers(self, methods: Sequence[Method]) -> int:
        """How many answers `run` counts."""
        return len(self.task.examples) * len({method.key for method in methods})

    def _missing(
        self,
        store: Store,
        batch: Sequence[Example],
        methods: dict[str, Method],
        grounded: Sequence[Settings],
    ) -> list[str]:
        keys = [grounding_key(name, of) for of in grounded for name in of.grounders]
        return [
            key
            for key in dict.fromkeys([*methods, *keys])
            if any((key, example.id) not in store for example in batch)
        ]

    def _run_batch(
        self,
        store: Store,
        examples: list[Example],
        methods: dict[str, Method],
        grounded: Sequence[Settings],
        tell: Progress,
    ) -> None:
        missing = self._missing(store, examples, methods, grounded)
        tell(len(examples) * sum(key not in missing for key in methods))
        if not missing:
            return
        batch = Batch.open(self, store, examples)
        for settings in grounded:
            for name in settings.grounders:
                batch.locate(name, settings, needs_heat_map=False)
        # plain answers first: others may depend on their confidence
        for key in sorted(methods, key=lambda key: key != PLAIN.key):
            if key in missing:
                batch.answer(methods[key])
                tell(len(examples))


@dataclass(eq=False)
class Batch:
    """Questions that run together, their images encoded, and what was found in them so far."""

    runner: Runner
    store: Store
    examples: list[Example]
    images: list[EncodedImage]
    errors: dict[str, str]
    groundings: dict[str, list[Grounding]]

    @classmethod
    def open(cls, runner: Runner, store: Store, examples: list[Example]) -> Batch:
        """Load and encode the images, each once; those that are refused are set aside.

        An engine may leave the state after an image to the first question about it. It is asked
        one here, so that the time is the encoding's and not that of whatever method comes first.
        """
        opened, errors = {}, {}
        for example in examples:
            try:
                if example.image not in opened:
                    opened[example.image] = open_image(example.image)
            except CofError as error:
                errors[example.id] = str(error)
        if len(errors) == len(examples):
            raise CofError(next(iter(errors.values())))
        good = [example for example in examples if example.id not in errors]
        batch = cls(runner, store, good, [], errors, {})
        with batch._measured(ENCODING):
            encoded = runner.engine.encode(list(opened.values()), prefill=True)
            lazy = [Request(of, good[0].prompt) for of in encoded if of.prefix is not None]
            if lazy:
                runner.engine.generate(lazy, Decoding(max_new_tokens=1))
        by_source = dict(zip(opened, encoded, strict=True))
        batch.images = [by_source[example.image] for example in good]
        return batch

    def locate(self, name: str, settings: Settings, *, needs_heat_map: bool) -> list[Grounding]:
        """What a grounder finds for each question; from the store where it is there and enough."""
        key = grounding_key(name, settings)
        if key in self.groundings:
            return self.groundings[key]
        known = all((key, example.id) in self.store for example in self.examples)
        if known and not needs_heat_map:
            records = [self.store[key, example.id] for example in self.examples]
            return [Grounding(region_of(r), r.text, r.confidence) for r in records]
        samples = [self._sample(*pair, PLAIN) for pair in self._pairs()]
        requests = [stage_one_request(sample, self._request(sample)) for sample in samples]
        with self._measured(key):
            groundings = self._isolate(
                lambda part: settings.make_grounder(name).locate(
                    self.runner.engine, [requests[n] for n in part]
                ),
                lambda error: Grounding(None, reason=error),
            )
        self.groundings[key] = groundings
        self.store.append(
            Record(
                example.id,
                key,
                of.text,
                boxes=of.region.boxes if of.region else (),
                confidence=_rounded(of.confidence),
            )
            for example, of in zip(self.examples, groundings, strict=True)
        )
        self.store.append(Record(id, key, "", error=error) for id, error in self.errors.items())
        return groundings

    def answer(self, method: Method) -> None:
        """Ask every question in one way, and store the answers."""
        key = method.key
        samples = [self._sample(*pair, method) for pair in self._pairs()]
        drafts = [
            self._draft(example) if sample.drafts else None
            for example, sample in zip(self.examples, samples, strict=True)
        ]
        looks = self._looks(method, samples, drafts)
        known = self._known(method, drafts)
        requests = [self._request(sample) for sample in samples]

        def answer_part(part: Sequence[int]) -> list[Record]:
            asked = [number for number in part if number not in known]
            with self._measured(key, asked):
                outcomes = answer(
                    lambda requests, numbers: self._generate(
                        requests, [self.examples[asked[n]] for n in numbers]
                    ),
                    [samples[n] for n in asked],
                    [requests[n] for n in asked],
                    [looks[n] for n in asked],
                    [drafts[n] for n in asked],
                )
            records = {
                number: self._record(self.examples[number], key, outcome.reply, outcome.look)
                for number, outcome in zip(asked, outcomes, strict=True)
            }
            return [known.get(number) or records[number] for number in part]

        records = self._isolate(answer_part, lambda error: error)
        self.store.append(
            Record(example.id, key, "", right=False, error=record)
            if isinstance(record, str)
            else record
            for example, record in zip(self.examples, records, strict=True)
        )
        self.store.append(
            Record(id, key, "", right=False, error=error) for id, error in self.errors.items()
        )

    def _looks(
        self, method: Method, samples: list[Sample], drafts: Sequence[Generation | None]
    ) -> list[list[Look]]:
        settings = method.settings
        needs_heat_map = FOCUSES[settings.focus].uses_heat_map
        looks: list[list[Look]] = [[] for _ in samples]
        if method.is_plain or method.given:
            for sample, of in zip(samples, looks, strict=True):
                of.append(Look.of(sample, method.given or "none", Grounding(sample.region)))
            return looks
        for name in settings.grounders:
            groundings = self.locate(name, settings, needs_heat_map=needs_heat_map)
            for sample, draft, grounding, of in zip(
                samples, drafts, groundings, looks, strict=True
            ):
                if reason := sample.skips(draft):
                    of.append(Look(name, Grounding(None, reason=reason), None))
                else:
                    of.append(Look.of(sample, name, grounding))
        return looks

    def _known(self, method: Method, drafts: Sequence[Generation | None]) -> dict[int, Record]:
        """Answers that other methods have given already: a threshold on the plain answer's
        confidence chooses between the plain answer and that of always looking."""
        if not any(drafts):
            return {}
        records = {}
        samples = [self._sample(*pair, method) for pair in self._pairs()]
        for number, (example, sample, draft) in enumerate(
            zip(self.examples, samples, drafts, strict=True)
        ):
            source = PLAIN if sample.skips(draft) else method.always_looks
            if (source.key, example.id) in self.store:
                record = self.store[source.key, example.id]
                records[number] = Record(**{**vars(record), "method": method.key})
        return records

    def _draft(self, example: Example) -> Generation:
        """The plain answer, from the store."""
        record = self.store[PLAIN.key, example.id]
        logprobs = () if not record.confidence else (math.log(record.confidence),)
        return Generation(record.text, (0,) * len(logprobs), logprobs)

    def _pairs(self) -> list[tuple[Example, EncodedImage]]:
        return list(zip(self.examples, self.images, strict=True))

    def _sample(self, example: Example, image: EncodedImage, method: Method) -> Sample:
        region = method.region(example, self.runner.seed)
        settings = method.settings.changed(grounder="given") if region else method.settings
        asked = example.question or example.prompt
        return Sample(image.image, example.prompt, region, settings, asked, image)

    def _request(self, sample: Sample) -> Request:
        assert sample.encoded is not None
        return Request(sample.encoded, sample.question)

    def _record(self, example: Example, key: str, reply: Generation, look: Look) -> Record:
        score = self.runner.task.score(example, reply.text)
        boxes = look.region.boxes if look.region else ()
        sure = _rounded(confidence(reply))
        return Record(example.id, key, reply.text, score.parsed, score.right, boxes, sure)

    def _generate(
        self, requests: Sequence[Request], examples: Sequence[Example]
    ) -> list[Generation]:
        """What the model says; of a question answered by likelihood, its most probable option."""
        engine, replies = self.runner.engine, {}
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
            scored = _scorer(engine)(
                [requests[n] for n, _ in options], [text for _, text in options]
            )
            for (number, _), reply in zip(options, scored, strict=True):
                best = replies.setdefault(number, reply)
                if _mean(reply) > _mean(best):  # of equals the first, as in the benchmark's script
                    replies[number] = reply
        return [replies[number] for number in range(len(examples))]

    def _isolate(
        self, work: Callable[[Sequence[int]], list[Any]], refuse: Callable[[str], Any]
    ) -> list[Any]:
        """The results of questions that run together; those that are refused get `refuse(error)`.

        Raises:
            CofError: every question is refused.
        """

        def halve(part: Sequence[int]) -> Iterator[Any]:
            try:
                yield from work(part)
            except CofError as error:
                if len(part) == 1:
                    refused.append(error)
                    yield refuse(str(error))
                    return
                middle = len(part) // 2
                yield from halve(part[:middle])
                yield from halve(part[middle:])

        refused: list[CofError] = []
        results = list(halve(range(len(self.examples))))
        if len(refused) == len(self.examples):
            raise refused[0]
        return results

    @contextmanager
    def _measured(self, step: str, part: Sequence[int] | None = None) -> Iterator[None]:
        examples = self.examples if part is None else [self.examples[n] for n in part]
        with count_passes(self.runner.engine) as passes:
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
        if examples:
            ids = [example.id for example in examples]
            log_cost(self.runner.path, step, ids, seconds, passes())


@contextmanager
def count_passes(engine: Engine) -> Iterator[Callable[[], int | None]]:
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


def _scorer(engine: Engine) -> Callable[[Sequence[Request], Sequence[str]], list[Generation]]:
    scorer = getattr(engine, "score_replies", None)
    if scorer is None:
        raise CofError(f"{engine.name} cannot say how likely a reply is: use a transformers model.")
    return scorer  # type: ignore[no-any-return]


def _mean(reply: Generation) -> float:
    """Log-probability of a token on average, the end token among them (V*Bench's script)."""
    return math.fsum(reply.logprobs) / len(reply.logprobs)


def _rounded(confidence: float | None) -> float | None:
    """Without the digits that depend on what else was in the batch."""
    return None if confidence is None else round(confidence, 5)
