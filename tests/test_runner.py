"""The runner asks what the pipeline asks, each thing once, and goes on where it was killed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine, FakeEngine
from models import checkpoint, picture
from PIL import Image

from cof.engines.base import Engine
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.eval.data.pope import POPE
from cof.eval.data.scenes import Scenes
from cof.eval.data.vstar import VStar
from cof.eval.examples import Embedded, Example, image_digest, open_image, read_image_wh
from cof.eval.json_files import write_atomically
from cof.eval.methods import PLAIN, Method, grounding_key
from cof.eval.runner import Runner, like_batches
from cof.eval.store import Record, Store
from cof.messages import SYSTEMS
from cof.pipeline import CoF, Query
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark
from cof.types import Decoding, Request

BASE = Settings(expand=1.0, strength=4.0)
METHODS = [
    PLAIN,
    Method(BASE.changed(grounder="whole")),
    Method(BASE),
    Method(BASE, "oracle"),
    Method(BASE, "random"),
]
MANY = [
    *METHODS,
    Method(BASE.changed(grounder="attention", focus="soft")),
    Method(BASE.changed(grounder="prompt+attention", released=True)),
    Method(BASE.changed(focus="crop", expand=2.0)),
    Method(BASE.changed(max_plain_confidence=0.5)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 questions about each of two scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_benchmark(folder, "test", num_objects=(4, 8), scenes=1)
    return folder


def make_runner(folder: Path, path: Path, engine: Any = None, **options: Any) -> Runner:
    engine = AnyEngine() if engine is None else engine
    return Runner(engine, Scenes(folder), path, **{"batch_size": 10, **options})


def check_pipeline(method: Method, run: Runner, store: Store, engine: Engine) -> None:
    """The answers and boxes of a method are those of the pipeline with the same settings."""
    cof = CoF(engine, method.settings)
    examples = run.task.examples
    queries = []
    for example in examples:
        image, region = open_image(example.image), method.region(example, run.seed)
        about = example.question or None
        queries.append(Query(image, example.prompt, region=region, grounding_question=about))
    decoding = Decoding(max_new_tokens=run.max_new_tokens)
    answers = cof.batch(queries, decoding=decoding, batch_size=run.batch_size)
    for example, answer in zip(examples, answers, strict=True):
        record = store[method.key, example.id]
        assert (record.text, record.boxes) == (answer.text, answer.boxes)
        assert record.right == run.task.score(example, answer.text).right


@pytest.mark.parametrize("grounder", ["prompt", "attention", "relevance", "logits", "whole"])
@pytest.mark.parametrize("focus", ["attention", "soft", "contrast", "crop", "beside", "overlay"])
def test_every_grounder_and_focus_is_the_pipeline(
    folder: Path, tmp_path: Path, grounder: str, focus: str
) -> None:
    run = make_runner(folder, tmp_path / "a.jsonl")
    settings = [
        BASE.changed(grounder=grounder, focus=focus),
        BASE.changed(grounder=f"{grounder}+prompt", focus=focus)
        if grounder != "prompt"
        else BASE.changed(grounder="prompt+whole", focus=focus, released=True),
    ]
    methods = [Method(each) for each in settings]
    store = run.run([PLAIN, *methods])
    for method in methods:
        check_pipeline(method, run, store, AnyEngine())


@pytest.mark.parametrize("limit", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("released", [False, True])
def test_a_threshold_is_the_pipelines(
    folder: Path, tmp_path: Path, limit: float, released: bool
) -> None:
    """Chosen from the answers that others gave, or asked alone."""
    method = Method(BASE.changed(max_plain_confidence=limit, released=released))
    engine = AnyEngine()
    for others in ([PLAIN, method.without_threshold], []):
        run = make_runner(folder, tmp_path / f"{len(others)}.jsonl", engine)
        run.run(others)
        engine.trace.clear()
        store = run.run([*others, method])
        if others:
            assert engine.trace == []
        check_pipeline(method, run, store, AnyEngine())
        looks = {bool(record.boxes) for (key, _), record in store.items() if key == method.key}
        assert looks == ({True} if limit == 1 and released else {True, False})


def test_stage_one_is_asked_about_the_question_alone(tmp_path: Path) -> None:
    engine = AnyEngine()
    run = Runner(engine, VStar(formats.vstar(tmp_path)), tmp_path / "a.jsonl", batch_size=4)
    store = run.run(METHODS)
    asked = [line for line in engine.trace if "bounding box" in line]
    assert len(asked) == 6
    assert not any("cyan" in line for line in asked)  # an option
    for method in METHODS:
        check_pipeline(method, run, store, AnyEngine())


def test_white_space_around_a_question_is_left_out_as_by_the_pipeline(
    folder: Path, tmp_path: Path
) -> None:
    task = Scenes(folder, limit=4)
    task.examples[:] = [replace(e, prompt=f"\n {e.prompt}  ") for e in task.examples]
    run = Runner(AnyEngine(), task, tmp_path / "a.jsonl")
    store = run.run(METHODS)
    for method in METHODS:
        check_pipeline(method, run, store, AnyEngine())


def test_every_image_is_encoded_once_and_every_box_asked_once(folder: Path, tmp_path: Path) -> None:
    engine = AnyEngine()
    run = make_runner(folder, tmp_path / "a.jsonl", engine)
    stronger = Method(BASE.changed(strength=8.0))
    run.run([*METHODS, stronger, stronger], [BASE])
    n = len(run.task.examples)
    batches = math.ceil(n / 10)
    assert len(engine.encoded) == batches
    assert all(len(images) <= 2 for images in engine.encoded)
    assert sum("Where?" in line or "bounding box" in line for line in engine.trace) == n
    assert len(engine.calls) == batches * 7


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The file of a run that nobody interrupted, and how many calls it took."""
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    engine = AnyEngine(dies_after=10_000)
    make_runner(folder, path, engine).run(MANY)
    return path.read_bytes(), 10_000 - int(engine.dies_after)


def test_killed_before_any_call_and_resumed(
    folder: Path, tmp_path: Path, whole: tuple[bytes, int]
) -> None:
    content, calls = whole
    for death in range(0, calls, 5):
        path = tmp_path / f"{death}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            make_runner(folder, path, AnyEngine(dies_after=death)).run(MANY)
        again = AnyEngine(dies_after=calls)
        done: list[int] = []
        run = make_runner(folder, path, again)
        run.run(MANY, advance=done.append)
        assert path.read_bytes() == content
        assert sum(done) == len(run.task.examples)
        # nothing is asked twice but heat maps, which are not stored
        assert calls - death <= calls - again.dies_after <= calls - death + 2


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.71, 0.999, 1.0])
def test_killed_within_a_line_and_resumed(
    folder: Path, tmp_path: Path, whole: tuple[bytes, int], share: float
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole[0][: int(share * len(whole[0]))])
    make_runner(folder, path).run(MANY)
    assert path.read_bytes() == whole[0]
    # in the order of the run, batch by batch, a store has any of its lines
    lines = whole[0].splitlines(keepends=True)
    path.write_bytes(b"".join(lines[int(share * len(lines)) :: 2]) + lines[0][:30])
    make_runner(folder, path).run(MANY)
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_official_vstar_asks_for_the_most_probable_option(tmp_path: Path) -> None:
    engine = TransformersEngine.from_pretrained(checkpoint("llava"))
    task = VStar(formats.vstar(tmp_path), prompt_style="official")
    assert [e.prompt for e in task.examples] == ["How?", "How?"]
    store = Runner(engine, task, tmp_path / "a.jsonl").run([PLAIN])
    for example in task.examples:
        request = Request(open_image(example.image), example.prompt)
        scores = engine.score_replies([request] * len(example.options), example.options)
        best = max(scores, key=lambda reply: sum(reply.logprobs) / len(reply.logprobs)).text
        assert store[PLAIN.key, example.id].text == best
        assert store[PLAIN.key, example.id].parsed == "ABCD"[example.options.index(best)]
    with pytest.raises(CofError, match="cannot say how likely"):
        Runner(AnyEngine(), task, tmp_path / "b.jsonl").run([PLAIN])


# Questions that are refused


@pytest.fixture
def pope(tmp_path: Path) -> POPE:
    """Four questions about each of two images, one of which is damaged."""
    formats.pope(tmp_path / "data")
    for kind in ("random", "adversarial"):
        (tmp_path / "data" / f"coco_pope_{kind}.json").unlink()
    return POPE(tmp_path / "data")


def test_a_refused_question_is_recorded_and_the_others_are_answered(
    pope: POPE, tmp_path: Path
) -> None:
    engine = AnyEngine(refuses=("cat", "dog in the image?\nAnswer"))
    methods = [PLAIN, Method(BASE), Method(BASE.changed(max_plain_confidence=0.5))]
    store = Runner(engine, pope, tmp_path / "a.jsonl", batch_size=4).run(methods)
    for method in methods:
        records = {id: record for (key, id), record in store.items() if key == method.key}
        errors = {id: record.error for id, record in records.items() if record.error}
        assert set(errors) == {"popular-1", "popular-2"}
        for id in errors:
            assert (records[id].right, records[id].parsed, records[id].text) == (False, None, "")
            assert "is refused" in str(errors[id])
    key = grounding_key(BASE.grounders[0])
    found = {id: record for (step, id), record in store.items() if step == key}
    # stage 1 is asked about the question alone
    assert {id for id, record in found.items() if record.error} == {"popular-2"}
    answers = CoF(AnyEngine(), BASE).batch(
        [Query(open_image(e.image), e.prompt, grounding_question=e.question) for e in pope.examples]
    )
    for example, answer in zip(pope.examples[2:], answers[2:], strict=True):
        assert store[methods[1].key, example.id].text == answer.text
    again = AnyEngine(refuses=engine.refuses)
    Runner(again, pope, tmp_path / "a.jsonl", batch_size=4).run(methods)
    assert again.calls == again.encoded == []


def test_damaged_images_are_refused_and_so_are_those_that_the_engine_does_not_take(
    pope: POPE, tmp_path: Path
) -> None:
    first, last = pope.examples[0], pope.examples[-1]
    assert isinstance(first.image, Path)
    first.image.write_bytes(first.image.read_bytes()[:200])

    class Picky(AnyEngine):
        def encode(self, images: Sequence[Image.Image], *, prefill: bool = False) -> Any:
            if any(image.width > 40 for image in images):
                raise CofError("That is too wide.")
            return super().encode(images, prefill=prefill)

    formats.save(tmp_path / "wide.png", 5, (41, 30))
    wide = replace(last, id="wide", image=tmp_path / "wide.png")
    pope.examples.append(wide)
    store = Runner(Picky(), pope, tmp_path / "a.jsonl", batch_size=5).run(METHODS[:3])
    for method in METHODS[:3]:
        errors = {id: r.error for (key, id), r in store.items() if key == method.key}
        assert errors["wide"] == "That is too wide."
        assert "cannot be decoded" in str(errors["popular-1"])
        assert errors["popular-4"] is None


def test_a_batch_of_refused_questions_ends_the_run(pope: POPE, tmp_path: Path) -> None:
    run = Runner(AnyEngine(refuses=("Is",)), pope, tmp_path / "a.jsonl", batch_size=4)
    with pytest.raises(CofError, match="is refused"):
        run.run(METHODS)
    with pytest.raises(CofError, match="needs a detector"):
        replace(run, engine=AnyEngine()).run([Method(BASE.changed(grounder="detector"))])
    for example in pope.examples:
        assert isinstance(example.image, Path)
        example.image.write_bytes(b"no image")
    with pytest.raises(CofError, match="is not an image"):
        replace(run, engine=AnyEngine()).run(METHODS)
    assert not Store(run.path)


# The store


def test_a_store_of_other_questions_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Store(path).append([Record("elsewhere", "plain", "7")])
    with pytest.raises(CofError, match="other questions"):
        make_runner(folder, path).run(METHODS)


@pytest.mark.parametrize(
    "line",
    [
        "{broken}",
        "[]",
        "5",
        "null",
        "[" * 100_000,
        '{"id": "a"}',
        '{"id": "a", "method": "b", "text": "c", "d": 1}',
        '{"id": "a", "method": "b", "text": 7}',
        '{"id": "a", "method": "b", "text": "c", "boxes": [[0, 0, 1]]}',
        '{"id": "a", "method": "b", "text": "c", "confidence": NaN}',
        '{"id": "a", "method": "b", "text": "\\ud800"}',
    ],
)
def test_a_damaged_store_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n", "utf-8")
    with pytest.raises(CofError, match="line 1 is damaged"):
        Store(path)


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        Record("a", "plain", "", None, False),
        Record("b", "plain", "a\nb\u2028é", "7", True, ((0.1, 0.2, 1 / 3, 1.0),)),
        Record("c", "grounding prompt", "[0]", confidence=0.0),
        Record("d", "plain", "", right=False, error="why"),
    ]
    store = Store(path)
    store.append(records[1:2])
    store.append([*records, records[0]])  # each is written once
    assert sorted(Store(path).values(), key=lambda record: record.id) == records
    assert len(path.read_bytes().splitlines()) == len(records)


# Batches


def ask(id: int, image: object, prompt: str) -> Example:
    return Example(str(id), Path(str(image)), prompt, "")


def test_every_question_once_and_images_together(tmp_path: Path) -> None:
    for image in range(7):
        formats.save(tmp_path / f"{image}", image, {3: (60, 50), 4: (8, 8)}.get(image, (40, 30)))
    examples = [ask(n, tmp_path / f"{n % 7}", "?" * (1 + n * 5 % 11)) for n in range(40)]
    batches = list(like_batches(examples, 6, FakeEngine({})))
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
        for batch in like_batches(examples, 4, FakeEngine({}))
    ]
    assert sum(padded) == sum(len(example.prompt) for example in examples)
    # a model with one grid for all images sees no difference between them
    for n in range(4):
        formats.save(tmp_path / f"{n}", n, (40 + 40 * n, 30))
    shown = [ask(n, tmp_path / f"{n}", "?" * (9 - n)) for n in range(4)]
    llava = TransformersEngine.from_pretrained(checkpoint("llava"))
    orders = [next(like_batches(shown, 4, each)) for each in (FakeEngine({}), llava)]
    assert orders == [shown, shown[::-1]]
    # in a run too
    write_benchmark(tmp_path / "scenes", "test", num_objects=(4,), scenes=4)  # one is not square
    engine = FakeEngine(lambda request: "")  # which tells no tokens
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


def test_a_run_has_one_system_message(folder: Path, tmp_path: Path) -> None:
    engine = AnyEngine()
    looking = Method(BASE.changed(system="vicuna_v1"))
    make_runner(folder, tmp_path / "a.jsonl", engine).run([PLAIN, looking])
    systems = {turn.parts for asked, _ in engine.calls for r in asked for turn in r.chat[:1]}
    assert systems == {(SYSTEMS["vicuna_v1"],)}
    with pytest.raises(CofError, match="one system message"):
        make_runner(folder, tmp_path / "b.jsonl").run([Method(BASE), looking])
