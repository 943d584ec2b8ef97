"""Batches of like questions: less padding, and images measured as the engine sees them."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import formats
import pytest
from fakes import AnyEngine
from models import checkpoint, picture
from PIL import Image

from cof.engines.fake import FakeEngine
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.batching import image_token_counter, like_batches
from cof.eval.data.scenes import Scenes
from cof.eval.examples import Embedded, Example
from cof.eval.images import image_digest, read_image_wh
from cof.eval.json_files import write_atomically
from cof.eval.methods import PLAIN
from cof.eval.runner import Runner
from cof.tiny.benchmark import write_benchmark


def ask(id: int, image: str, prompt: str) -> Example:
    return Example(str(id), Path(image), prompt, "")


def test_every_question_once_and_images_together() -> None:
    examples = [ask(n, f"{n % 7}", "?" * (1 + n * 5 % 11)) for n in range(40)]
    batches = list(like_batches(examples, 6, lambda e: {"3": 9, "4": 1}.get(str(e.image), 5)))
    assert [len(batch) for batch in batches] == [6] * 6 + [4]
    flat = [example for batch in batches for example in batch]
    assert sorted(int(example.id) for example in flat) == list(range(40))
    images = [str(example.image) for example in flat]
    assert len([a for a, b in itertools.pairwise(images) if a != b]) == 6
    assert (images[0], images[-1]) == ("4", "3")
    for image in set(images):
        lengths = [len(example.prompt) for example in flat if str(example.image) == image]
        assert lengths == sorted(lengths)
    first, second = (list(like_batches(examples, 6, lambda e, n=n: n)) for n in (5, 7))
    assert first == second


def test_like_questions_share_a_batch(tmp_path: Path) -> None:
    examples = [ask(n, f"{n}", "?" * (10 if n % 2 else 100)) for n in range(16)]
    padded = [
        max(len(example.prompt) for example in batch) * len(batch)
        for batch in like_batches(examples, 4, lambda e: 1)
    ]
    assert sum(padded) == sum(len(example.prompt) for example in examples)
    # in a run too
    write_benchmark(tmp_path / "scenes", "test", num_objects=(4,), scenes=4)  # one is not square
    engine = AnyEngine()
    Runner(engine, Scenes(tmp_path / "scenes"), tmp_path / "a.jsonl", batch_size=7).run([PLAIN])
    pixels = [[r.image.size[0] * r.image.size[1] for r in requests] for requests, _ in engine.calls]
    assert list(itertools.chain(*pixels)) == sorted(itertools.chain(*pixels))


def test_images_are_measured_in_tokens(tmp_path: Path) -> None:
    """A model with one grid for all images sees no difference; pixels are compared elsewhere."""
    small, large = (formats.save(tmp_path / f"{side}.png", 0, (side, 30)) for side in (40, 80))
    engine = TransformersEngine.from_pretrained(checkpoint("llava"))
    tokens = image_token_counter(engine)
    assert [tokens(ask(0, str(path), "?")) for path in (small, large)] == [64, 64]
    pixels = image_token_counter(FakeEngine({}))
    assert [pixels(ask(0, str(path), "?")) for path in (small, large)] == [1200, 2400]
    assert pixels(ask(0, str(tmp_path / "none.png"), "?")) == 0


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((40, 30)).save(path, exif=exif)
    assert read_image_wh(path) == (30, 40)
    data = path.read_bytes()
    assert read_image_wh(Embedded("inside", lambda: data)) == (30, 40)
    assert read_image_wh(Embedded("broken", lambda: data[:50])) is None
    assert image_digest(path) == image_digest(Embedded("elsewhere", lambda: data))
    with pytest.raises(CofError, match="cannot be read"):
        image_digest(tmp_path / "none.jpg")


def test_shards_may_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    def write(number: int) -> None:
        for _ in range(50):
            write_atomically(path, f"{number}" * 10_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    text = path.read_text("utf-8")
    assert len(text) == 10_000
    assert len(set(text)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
