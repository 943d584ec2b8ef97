"""The next batch's images are processed while the model answers this one."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from fakes import FakeEngine
from models import checkpoint, picture
from PIL import Image

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.data.scenes import Scenes
from cof.eval.methods import PLAIN
from cof.eval.runner import Runner
from cof.pipeline import CoF
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark
from cof.types import EncodedImage, Generation, Request

PLAINLY = Settings(grounder="none")
WAIT = 20  # seconds until a test that hangs fails


@dataclass
class Ahead(FakeEngine):
    """Answers a batch after the next one's images have begun to be processed.

    Attributes:
        replies: not used.
        batches: how many there will be.
        begun: set when the images of each batch begin to be processed.
        may_end: what the processing of all batches but the first waits for.
        ends: whether it may end once the batch before is answered.
        most_ahead: the most batches that were processed and not answered.
    """

    replies: Any = field(default=lambda request: request.prompt)
    batches: int = 3
    begun: list[Event] = field(default_factory=lambda: [Event() for _ in range(9)])
    may_end: Event = field(default_factory=Event)
    ends: bool = True
    most_ahead: int = 0

    def process(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        number = [event.is_set() for event in self.begun].index(False)
        self.begun[number].set()
        self.most_ahead = max(self.most_ahead, number - len(self.calls))
        assert not number or self.may_end.wait(WAIT)
        return [EncodedImage(image, "pixels") for image in images]

    def encode(self, images: Any, *, prefill: bool = False) -> list[EncodedImage]:
        assert all(image.pixels == "pixels" for image in images)
        return super().encode([image.image for image in images])

    def generate(self, requests: Sequence[Request], *args: Any) -> list[Generation]:
        number = len(self.calls)
        if number + 1 < self.batches:
            assert self.begun[number + 1].wait(WAIT)
        if self.ends:
            self.may_end.set()
        return super().generate(requests, *args)


def test_a_batch_is_processed_while_the_one_before_is_answered() -> None:
    fake = Ahead()
    questions = [(picture((40, 30), number), f"question {number}") for number in range(5)]
    answers = CoF(fake, PLAINLY).batch(questions, batch_size=2)
    assert [answer.text for answer in answers] == [question for _, question in questions]
    assert [answer.image.tobytes() for answer in answers] == [im.tobytes() for im, _ in questions]
    assert fake.most_ahead == 1


def test_the_runner_too(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "test", num_objects=(4,), scenes=1)
    task, fake = Scenes(tmp_path), Ahead()
    size = math.ceil(len(task.examples) / 3)
    store = Runner(fake, task, tmp_path / "a.jsonl", batch_size=size).run([PLAIN])
    assert [store[PLAIN.key, each.id].text for each in task.examples] == [
        each.prompt for each in task.examples
    ]
    assert len(fake.calls) == 3
    assert fake.most_ahead == 1


def test_a_damaged_image_is_refused_in_its_turn() -> None:
    told: list[int] = []
    damaged = [(picture((40, 30)), "fine")] * 2 + [(b"damaged", "refused")]
    with pytest.raises(CofError, match="not an image of a kind"):
        CoF(Ahead(batches=2), PLAINLY).batch(
            damaged, batch_size=1, on_text=lambda place, _: told.append(place)
        )
    assert told == [0, 1]


def test_an_interrupt_waits_for_no_image() -> None:
    def interrupt(place: int, text: str) -> None:
        raise KeyboardInterrupt

    fake, before = Ahead(batches=2, ends=False), set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        CoF(fake, PLAINLY).batch([(picture((40, 30)), "why?")] * 2, batch_size=1, on_text=interrupt)
    (left,) = set(threading.enumerate()) - before
    assert left.daemon  # Python ends without it
    fake.may_end.set()
    left.join()


def test_processed_images_are_encoded_as_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = TransformersEngine.from_pretrained(checkpoint("llava"))
    images = [picture((60, 40)), picture((40, 90), 1)]
    plain, processed = made.encode(images), made.process(images)
    monkeypatch.setattr(made.tokens, "pixels", None)  # not processed again
    for one, other in zip(plain, made.encode(processed), strict=True):
        assert torch.equal(one.features, other.features)
