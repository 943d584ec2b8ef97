"""Batches of like questions: less padding; images by the size that they are shown in."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import formats
import pytest
from fakes import AnyEngine
from models import picture
from PIL import Image

from cof.errors import CofError
from cof.eval.data.scenes import Scenes
from cof.eval.examples import Embedded, Example
from cof.eval.images import image_digest, read_image_wh
from cof.eval.json_files import write_atomically
from cof.eval.methods import PLAIN
from cof.eval.runner import Runner, like_batches
from cof.tiny.benchmark import write_benchmark


def ask(id: int, image: str, prompt: str) -> Example:
    return Example(str(id), Path(image), prompt, "")


def test_every_question_once_and_images_together(tmp_path: Path) -> None:
    for image in range(7):
        formats.save(tmp_path / f"{image}", image, {3: (60, 50), 4: (8, 8)}.get(image, (40, 30)))
    examples = [ask(n, str(tmp_path / f"{n % 7}"), "?" * (1 + n * 5 % 11)) for n in range(40)]
    batches = list(like_batches(examples, 6))
    assert [len(batch) for batch in batches] == [6] * 6 + [4]
    flat = [example for batch in batches for example in batch]
    assert sorted(int(example.id) for example in flat) == list(range(40))
    images = [Path(str(example.image)).name for example in flat]
    assert len([a for a, b in itertools.pairwise(images) if a != b]) == 6
    assert (images[0], images[-1]) == ("4", "3")
    for image in set(images):
        lengths = [len(e.prompt) for e, of in zip(flat, images, strict=True) if of == image]
        assert lengths == sorted(lengths)


def test_like_questions_share_a_batch(tmp_path: Path) -> None:
    examples = [ask(n, f"{n}", "?" * (10 if n % 2 else 100)) for n in range(16)]
    padded = [
        max(len(example.prompt) for example in batch) * len(batch)
        for batch in like_batches(examples, 4)
    ]
    assert sum(padded) == sum(len(example.prompt) for example in examples)
    # in a run too
    write_benchmark(tmp_path / "scenes", "test", num_objects=(4,), scenes=4)  # one is not square
    engine = AnyEngine()
    Runner(engine, Scenes(tmp_path / "scenes"), tmp_path / "a.jsonl", batch_size=7).run([PLAIN])
    pixels = [[r.image.size[0] * r.image.size[1] for r in requests] for requests, _ in engine.calls]
    assert list(itertools.chain(*pixels)) == sorted(itertools.chain(*pixels))


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
