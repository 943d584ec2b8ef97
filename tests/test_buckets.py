"""Batches of like questions: less padding, the same answers, the same files."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import formats
import pytest
from models import checkpoint, picture
from PIL import Image

from cof.engines.fake import FakeEngine
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.buckets import buckets, image_tokens
from cof.eval.methods import Method
from cof.eval.pictures import picture_digest, picture_wh
from cof.eval.run import Runner
from cof.eval.store import write_atomically
from cof.eval.tasks import Embedded, Example, SceneTask
from cof.grounders import PromptGrounder
from cof.tiny.benchmark import write_benchmark
from cof.types import Decoding


def example(id: int, image: str, prompt: str) -> Example:
    return Example(str(id), Path(image), prompt, "")


def test_every_question_once_and_pictures_together() -> None:
    rows = [example(i, f"{i % 7}", "?" * (1 + i * 5 % 11)) for i in range(40)]
    batches = list(buckets(rows, 6, lambda e: {"3": 9, "4": 1}.get(str(e.image), 5)))
    assert [len(batch) for batch in batches] == [6] * 6 + [4]
    flat = [row for batch in batches for row in batch]
    assert sorted(int(row.id) for row in flat) == list(range(40))
    images = [str(row.image) for row in flat]
    assert len([a for a, b in itertools.pairwise(images) if a != b]) == 6
    assert (images[0], images[-1]) == ("4", "3")
    for image in set(images):
        lengths = [len(row.prompt) for row in flat if str(row.image) == image]
        assert lengths == sorted(lengths)
    assert list(buckets(rows, 6, lambda e: 5)) == list(buckets(rows, 6, lambda e: 7))


def test_like_questions_share_a_batch() -> None:
    rows = [example(i, f"{i}", "?" * (10 if i % 2 else 100)) for i in range(16)]
    padded = [
        max(len(row.prompt) for row in batch) * len(batch)
        for batch in buckets(rows, 4, lambda e: 1)
    ]
    assert sum(padded) == sum(len(row.prompt) for row in rows)


def test_pictures_are_measured_in_tokens(tmp_path: Path) -> None:
    """A model with one grid for all pictures sees no difference; pixels are compared elsewhere."""
    small, large = (formats.save(tmp_path / f"{side}.png", 0, (side, 30)) for side in (40, 80))
    engine = TransformersEngine.from_pretrained(checkpoint("llava"))
    of_model = [image_tokens(engine)(example(0, str(path), "?")) for path in (small, large)]
    assert of_model == [64, 64]
    scripted = image_tokens(FakeEngine({}))
    assert [scripted(example(0, str(path), "?")) for path in (small, large)] == [1200, 2400]
    assert scripted(example(0, str(tmp_path / "none.png"), "?")) == 0


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((40, 30)).save(path, exif=exif)
    assert picture_wh(path) == (30, 40)
    data = path.read_bytes()
    assert picture_wh(Embedded("inside", lambda: data)) == (30, 40)
    assert picture_wh(Embedded("broken", lambda: data[:50])) is None
    assert picture_digest(path) == picture_digest(Embedded("elsewhere", lambda: data))
    with pytest.raises(CofError, match="cannot be read"):
        picture_digest(tmp_path / "none.jpg")


def test_replies_are_those_of_the_unsorted_run(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "scenes", "test", num_objects=(4, 6), scenes=4)  # one is not square
    engine = TransformersEngine.from_pretrained(checkpoint("llava"))
    methods = [Method("plain"), Method("cof", 4.0, 1.3), Method("oracle", 8.0, scope="text")]
    sorted_run = Runner(
        engine,
        SceneTask(tmp_path / "scenes", limit=60),
        tmp_path / "sorted.jsonl",
        batch_size=7,
        decoding=Decoding(max_new_tokens=3),
        grounder=PromptGrounder(max_new_tokens=8),
    )
    store = sorted_run.run(methods)
    other = replace(sorted_run, path=tmp_path / "unsorted.jsonl", window=1).run(methods)
    assert len(store.records()) == 60 * 4
    for record in other.records():
        same = store[record.method, record.id]
        # the last digit depends on what else is in a batch
        assert same.confidence == pytest.approx(record.confidence, abs=2e-5)
        assert replace(same, confidence=None) == replace(record, confidence=None)


def test_files_are_those_of_the_unsorted_run(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "scenes", "test", num_objects=(4, 6), scenes=4)
    engine = FakeEngine(lambda request: f"[0.1, 0.1, 0.{len(request.prompt) % 7 + 2}, 0.9] 7")
    run = Runner(engine, SceneTask(tmp_path / "scenes"), tmp_path / "sorted.jsonl", batch_size=7)
    methods = [Method("plain"), Method("cof", 4.0, 1.3)]
    run.run(methods)
    replace(run, path=tmp_path / "unsorted.jsonl", window=1).run(methods)
    assert (tmp_path / "sorted.jsonl").read_bytes() == (tmp_path / "unsorted.jsonl").read_bytes()
    batches = [[r.prompt for r in call] for call, _ in engine.calls]
    half = len(batches) // 2
    assert sorted(batches[:half]) != sorted(batches[half:])


def test_shards_may_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    def write(number: int) -> None:
        for _ in range(200):
            write_atomically(path, f"{number}" * 10_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    text = path.read_text("utf-8")
    assert len(text) == 10_000
    assert len(set(text)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
