"""Many methods over one task in one pass: each image encoded once, each place looked for once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image

from cof.engines.base import Engine, ReplyScorer
from cof.errors import CofError
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
from cof.geometry.regions import EVERYTHING
from cof.grounders import Grounder
from cof.query import Sample
from cof.settings import Settings
from cof.stages import Look, Outcome, answer, stage_one_request
from cof.types import Decoding, EncodedImage, Generation, Grounding, Request, confidence

WINDOW = 16
"""How many batches exchange questions, so that each has like ones."""

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    Attributes:
        engine: answers.
        task: asks.
        path: of the store; `costs_path` of it holds what each batch took.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.
        seed: of the control's boxes.
    """

    engine: Engine
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
            CofError: the store belongs to other questions, or is damaged; a method cannot be run.
        """
        store = open_store(self.path, self.task)
        drop_torn_line(costs_path(self.path))
        examples = self.task.examples
        steps = Steps.of(methods, grounded)
        count_tokens = image_token_counter(self.engine)
        size = self.batch_size * WINDOW
        for window in (examples[start : start + size] for start in range(0, len(examples), size)):
            if not store.lacks(steps.keys, window):  # nor are its images looked at
                advance(len(window))
                continue
            for part in like_batches(window, self.batch_size, count_tokens):
                lacking = store.lacks(steps.keys, part)
                if lacking:
                    batch = Batch(self, store, part)
                    batch.encode()
                    for grounder in steps.groundings.values():
                        batch.locate(grounder)
                    for key, method in steps.methods.items():
                        if key in lacking:
                            batch.answer(method)
                advance(len(part))
        store.sort([example.id for example in examples])
        return store


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
        samples = self._samples(PLAIN)

        def locate(part: Sequence[int]) -> list[Grounding]:
            requests = [stage_one_request(samples[n], self._request(samples[n])) for n in part]
            return grounder.locate(self.runner.engine, requests)

        with self._measured(key, range(len(self.examples))):
            outcomes = self.refused | isolate(samples, locate)
        self._check(outcomes)
        self.store.append(
            self._grounding_record(self.examples[number], key, outcome)
            for number, outcome in outcomes.items()
        )
        self.groundings[key] = outcomes
        return outcomes

    def answer(self, method: Method) -> None:
        """Ask every question in one way, and store the answers.

        Raises:
            CofError: every question is refused.
        """
        key = method.key
        samples = self._samples(method)
        drafts = {n: self._draft(n) for n, sample in samples.items() if sample.drafts}
        known = self._known(method, samples)
        looks = self._looks(method, samples, drafts)
        errors = {n: look for n, look in looks.items() if isinstance(look, CofError)}
        refused = self.refused | errors
        asked = [number for number in samples if number not in (known | refused)]

        def answer_part(part: Sequence[int]) -> list[Outcome]:
            return answer(
                lambda requests, places: self._generate(
                    requests, [self.examples[part[place]] for place in places]
                ),
                [samples[number] for number in part],
                [self._request(samples[number]) for number in part],
                [looks[number] for number in part],  # type: ignore[misc]
                [drafts.get(number) for number in part],
            )

        with self._measured(key, asked):
            outcomes = refused | isolate(asked, answer_part)
        self._check(outcomes)
        records = {n: self._record(self.examples[n], key, of) for n, of in outcomes.items()}
        self.store.append((records | known).values())

    def _encode(self, images: Sequence[Image]) -> list[EncodedImage]:
        """An engine may leave the decoder's state after an image to the first question about it.
        It is asked one here, so that the time is the encoding's and not that of a method."""
        engine = self.runner.engine
        encoded = engine.encode(images, prefill=True)
        lazy = [Request(image, "?") for image in encoded if image.prefix is not None]
        if lazy:
            engine.generate(lazy, Decoding(max_new_tokens=1))
        return encoded

    def _looks(
        self, method: Method, samples: Mapping[int, Sample], drafts: Mapping[int, Generation]
    ) -> dict[int, list[Look] | CofError]:
        """The looks of each question, one for each of the method's grounders."""
        settings = method.settings
        if method.is_plain or method.given:
            return {
                number: [Look.of(sample, method.given or "none", Grounding(sample.region))]
                for number, sample in samples.items()
            }
        needs_heat_map = settings.focus.uses_heat_map
        groundings: dict[str, Mapping[int, Grounding | CofError]] = {
            each.name: dict.fromkeys(samples, Grounding(EVERYTHING)) for each in settings.grounders
        } | {
            each.name: self.locate(each, needs_heat_map=needs_heat_map)
            for each in box_grounders(settings)
        }
        looks: dict[int, list[Look] | CofError] = {}
        for number, sample in samples.items():
            if reason := sample.skips(drafts.get(number)):
                looks[number] = [Look("", Grounding(None, reason=reason), None)]
                continue
            outcomes = {name: groundings[name][number] for name in groundings}
            errors = [outcome for outcome in outcomes.values() if isinstance(outcome, CofError)]
            looks[number] = (
                errors[0]
                if errors
                else [
                    Look.of(sample, name, outcome)
                    for name, outcome in outcomes.items()
                    if isinstance(outcome, Grounding)
                ]
            )
        return looks

    def _known(self, method: Method, numbers: Iterable[int]) -> dict[int, Record]:
        """The answers that other methods have given already."""
        sources = (PLAIN.key, method.without_threshold.key)
        known = {}
        for number in numbers:
            id = self.examples[number].id
            records = {key: self.store[key, id] for key in sources if (key, id) in self.store}
            if record := known_answer(method, records):
                known[number] = record
        return known

    def _draft(self, number: int) -> Generation:
        """The plain answer, from the store."""
        record = self.store[PLAIN.key, self.examples[number].id]
        logprobs = (math.log(record.confidence),) if record.confidence else ()
        return Generation(record.text, (0,) * len(logprobs), logprobs)

    def _samples(self, method: Method) -> dict[int, Sample]:
        """The questions that are not refused, as the pipeline has them."""
        samples = {}
        for number, image in self.images.items():
            example = self.examples[number]
            region = method.region(example, self.runner.seed)
            settings = method.settings.changed(grounder="given") if region else method.settings
            prompt = example.prompt.strip()
            about = example.question.strip() or prompt
            samples[number] = Sample(image.image, prompt, region, settings, about, image)
        return samples

    def _request(self, sample: Sample) -> Request:
        assert sample.encoded is not None
        return Request(sample.encoded, sample.question)

    def _record(self, example: Example, key: str, outcome: Outcome | CofError) -> Record:
        if isinstance(outcome, CofError):
            return refusal(example, key, outcome)
        region, reply = outcome.look.region, outcome.reply
        boxes = region.boxes if region else ()
        return answer_record(self.runner.task, example, key, reply.text, boxes, confidence(reply))

    def _grounding_record(
        self, example: Example, key: str, outcome: Grounding | CofError
    ) -> Record:
        if isinstance(outcome, CofError):
            return refusal(example, key, outcome)
        boxes = outcome.region.boxes if outcome.region else ()
        return grounding_record(example, key, outcome.text, boxes, outcome.confidence)

    def _generate(
        self, requests: Sequence[Request], examples: Sequence[Example]
    ) -> list[Generation]:
        """The model's replies; to a question answered by likelihood, its most probable option."""
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


def isolate(
    items: Iterable[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> dict[Item, Result | CofError]:
    """The results of items that are worked on together; one that is refused gets its error.

    Where the work on several items is refused, it is tried on either half of them.
    """
    part = list(items)
    if not part:
        return {}
    try:
        return dict(zip(part, work(part), strict=True))
    except CofError as error:
        if len(part) == 1:
            return {part[0]: error}
    middle = len(part) // 2
    return isolate(part[:middle], work) | isolate(part[middle:], work)


@contextmanager
def count_passes(engine: Engine) -> Iterator[Callable[[], int | None]]:
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
