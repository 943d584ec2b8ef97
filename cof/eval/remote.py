"""The runner's work done by servers: the same questions, and the same records of the answers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from cof.answer import Answer
from cof.client import RemoteCoF
from cof.errors import CofError, ServerError
from cof.eval.examples import Example, Task
from cof.eval.images import open_image
from cof.eval.methods import PLAIN, Method, box_grounders, grounding_key
from cof.eval.steps import (
    Steps,
    answer_record,
    grounding_record,
    known_answer,
    open_store,
    refusal,
)
from cof.eval.store import Record, Store
from cof.grounders import Grounder
from cof.query import Query
from cof.settings import Settings
from cof.types import Decoding, EncodedImage

PATIENCE = 64
"""How many questions servers refuse in one step, without an answer to any, before the run ends."""


@dataclass(frozen=True)
class RemoteRunner:
    """Runs methods over a task as `Runner` does, but asks servers; the store is the same.

    Every record is written as it comes, so a run that goes on asks only what is not there. A
    server's batches depend on what arrives together: confidences agree within 1e-3, answers and
    boxes but for ties. What a question costs is not recorded: its time depends on what else a
    server does.

    A question that is refused is recorded as by `Runner`. Where all questions are refused, of many
    the first `PATIENCE`, the run ends; and so it does where no server answers.

    Attributes:
        servers: answer.
        task: asks.
        path: of the store.
        batch_size: questions under way at each server.
        max_new_tokens: the longest answer.
        seed: of the control's boxes.
    """

    servers: RemoteCoF
    task: Task
    path: Path
    batch_size: int = 16
    max_new_tokens: int = 16
    seed: int = 0

    def run(
        self,
        methods: Sequence[Method],
        grounded: Sequence[Settings] = (),
        advance: Callable[[int], object] = lambda questions: None,
    ) -> Store:
        """As `cof.eval.runner.Runner.run`.

        Raises:
            CofError: the store belongs to other questions, or is damaged; a method needs what
                servers cannot do; no server answers.
        """
        store = open_store(self.path, self.task)
        looking = [each.settings for each in methods if not each.is_plain and not each.given]
        steps = Steps.of(methods, [*grounded, *looking])
        self._check(steps)
        lacking = [each for each in self.task.examples if store.lacks(steps.keys, [each])]
        advance(len(self.task.examples) - len(lacking))
        asker = _Asker(self, store, steps)
        threads = self.batch_size * len(self.servers.urls)
        with ThreadPoolExecutor(threads, "cof-eval") as pool:
            try:
                for done in as_completed([pool.submit(asker.ask, each) for each in lacking]):
                    done.result()
                    advance(1)
            except ServerError as error:
                raise CofError(
                    f"{error} What was answered is kept: the same command goes on from there."
                ) from error
            finally:
                asker.ended.set()
                pool.shutdown(cancel_futures=True)
        asker.check()
        store.sort([example.id for example in self.task.examples])
        return store

    def _check(self, steps: Steps) -> None:
        if any(example.likelihood for example in self.task.examples):
            raise CofError(
                "Servers cannot say how likely a reply is: choose another --prompt-style, or "
                "leave --server out."
            )
        asked = [each.settings for each in steps.methods.values()]
        asked += map(Settings, steps.groundings.values())
        if any(each.option("detector") for each in asked):
            raise CofError(
                "A server chooses its detector itself: take another grounder, or leave --server "
                "out."
            )


@dataclass(eq=False)
class _Asker:
    """Asks for several threads, and stores what comes.

    Attributes:
        run: the options.
        store: gets the records.
        steps: what each question is asked.
        ended: whether no more is to be asked.
        refused: by step that has no answer to any question yet, its refusals; where there is none
            at all, the fault is not in the questions.
    """

    run: RemoteRunner
    store: Store
    steps: Steps
    ended: threading.Event = field(default_factory=threading.Event)
    refused: dict[str, list[Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._answered = {r.method for r in self.store.records() if r.error is None}
        self._refusals: Counter[str] = Counter()  # by servers, not of images that cannot be read

    def ask(self, example: Example) -> None:
        """Ask a question everything that the store lacks of it.

        Raises:
            CofError: no server answers, or a step is refused whatever the question.
        """
        try:
            for record in self._records(example):
                self._keep(record)
                if self.ended.is_set():
                    return
        except BaseException:
            self.ended.set()
            raise

    def check(self) -> None:
        """
        Raises:
            CofError: all questions of a step were refused.
        """
        for records in self.refused.values():
            raise CofError(str(records[0].error))

    def _keep(self, record: Record) -> None:
        step = record.method
        with self._lock:
            if record.error is None:
                self._answered.add(step)
            elif step not in self._answered:
                self.refused.setdefault(step, []).append(record)
                return
            self.store.append([*self.refused.pop(step, []), record])

    def _records(self, example: Example) -> Iterator[Record]:
        """The records that are lacking, as they come."""
        keys = self.steps.keys
        known = {
            key: self.store[key, example.id] for key in keys if (key, example.id) in self.store
        }
        try:
            image = self.run.servers.encode(open_image(example.image))
        except CofError as error:
            yield from (refusal(example, key, error) for key in keys if key not in known)
            return
        for key, method in self.steps.methods.items():
            if key not in known:
                taken = known_answer(method, known)
                for record in [taken] if taken else self._answer(example, method, image):
                    if record.method not in known:
                        known[record.method] = record
                        yield record
        for key, grounder in self.steps.groundings.items():
            if key not in known:
                yield self._locate(example, key, grounder, image)

    def _answer(self, example: Example, method: Method, image: EncodedImage) -> Iterator[Record]:
        """A method's answer, and the outcome of stage 1 where that comes with it."""
        settings = PLAIN.settings if method.is_plain else method.without_threshold.settings
        query = Query(
            image,
            example.prompt,
            region=None if method.is_plain else method.region(example, self.run.seed),
            grounding_question=example.question or None,
            settings=settings,
        )
        got = self._query(query, self.run.max_new_tokens)
        if isinstance(got, CofError):
            yield self._refusal(example, method.key, got)
            return
        yield answer_record(
            self.run.task, example, method.key, got.text, got.boxes, got.answer_confidence
        )
        if not method.given and box_grounders(settings) == [*settings.grounders]:
            key = grounding_key(settings.grounders[0])
            yield _grounding(example, key, got)

    def _locate(
        self, example: Example, key: str, grounder: Grounder, image: EncodedImage
    ) -> Record:
        """Stage 1 alone: an answer of one token goes with it."""
        own = Settings(grounder)
        query = Query(image, example.question or example.prompt, settings=own)
        got = self._query(query, 1)
        if isinstance(got, CofError):
            return self._refusal(example, key, got)
        return _grounding(example, key, got)

    def _query(self, query: Query, max_new_tokens: int) -> Answer | CofError:
        """The answer, or why the question is refused."""
        decoding = Decoding(max_new_tokens=max_new_tokens)
        try:
            return self.run.servers.batch([query], decoding=decoding, batch_size=1)[0]
        except ServerError:
            raise
        except CofError as error:
            return error

    def _refusal(self, example: Example, key: str, error: CofError) -> Record:
        with self._lock:
            self._refusals[key] += 1
            if self._refusals[key] >= PATIENCE and key not in self._answered:
                raise error
        return refusal(example, key, error)


def _grounding(example: Example, key: str, got: Answer) -> Record:
    return grounding_record(example, key, got.grounding_text, got.raw_boxes, got.confidence)
