"""Evaluation: statistics, scoring, which boxes are used, resuming, and the whole study."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cof.adaptive import Rule
from cof.eval.adaptive.signs import adapted
from cof.eval.run import Runner
from cof.eval.stats import mcnemar, paired_difference, wilson
from cof.eval.tasks import Example, SceneTask
from cof.eval.tiny import run_study
from models import checkpoint
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.methods import Method, elsewhere
from cof.eval.results import by_group, grounded, grounding_table, two_by_two
from cof.eval.scoring import Score, exact_match
from cof.eval.store import ENCODING, GROUNDING, Record, Store, read_times, times_path
from cof.eval.study import Plan
from cof.geometry.boxes import FULL, intersection
from cof.geometry.regions import EVERYTHING, Region
from cof.images import load_image
from cof.pipeline import CoF
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark
from cof.types import Decoding, EncodedImage, Generation, Request

BOX = (0.25, 0.25, 0.5, 0.5)


# Statistics


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (1, 9, 0.021484375), (10, 15, 0.42435622)],
)
def test_mcnemar(fixed: int, broken: int, p: float) -> None:
    assert mcnemar(fixed, broken) == pytest.approx(p, abs=1e-8)
    assert mcnemar(broken, fixed) == mcnemar(fixed, broken)


def test_mcnemar_of_many() -> None:
    assert 0 < mcnemar(900, 500) < 1e-20
    # the normal approximation with continuity correction
    z = (abs(530 - 470) - 1) / math.sqrt(1000)
    assert mcnemar(530, 470) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (8, 10, 0.4902, 0.9433),
    ],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    found = wilson(right, total)
    assert (found.value, found.low, found.high) == pytest.approx(
        (right / total, low, high), abs=5e-5
    )


@pytest.mark.parametrize(("right", "total"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses(right: int, total: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(right, total)


def test_bootstrap_of_independent_questions_is_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    new, old = (rng.random(900) < share for share in (0.7, 0.6))
    found = paired_difference(list(new), list(old), [str(i) for i in range(900)])
    gain = new.astype(float) - old
    half = 1.96 * gain.std() / math.sqrt(900)
    assert found.value == pytest.approx(gain.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert found == paired_difference(list(new), list(old), [str(i) for i in range(900)])


def test_bootstrap_knows_that_images_are_clusters() -> None:
    new = [i % 20 < 10 for i in range(200)]  # ten questions an image, all right or all wrong
    old = [not right for right in new]
    apart = paired_difference(new, old, [str(i) for i in range(200)])
    together = paired_difference(new, old, [str(i // 10) for i in range(200)])
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    same = paired_difference(new, new, ["a"] * 200)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_bootstrap_refuses_what_is_not_paired() -> None:
    for arguments in (([], [], []), ([True], [True, False], ["a"]), ([True], [True], [])):
        with pytest.raises(ValueError, match="equally long"):
            paired_difference(*arguments)


# Scoring

YES_NO = ("yes", "no")
LETTERS = tuple("ABCD")
DIGITS = tuple("0123456789")
COUNTS = tuple(str(n) for n in range(21))
COLORS = ("red", "green", "orange")


@pytest.mark.parametrize(
    ("text", "choices", "parsed"),
    [
        ("yes", YES_NO, "yes"),
        ("Yes.", YES_NO, "yes"),
        (" NO\n", YES_NO, "no"),
        ("no, there isn't", YES_NO, "no"),
        ("I know", YES_NO, None),
        ("nothing", YES_NO, None),
        ("yes and no", YES_NO, None),
        ("yes yes", YES_NO, "yes"),
        ("", YES_NO, None),
        ("B", LETTERS, "B"),
        ("b", LETTERS, "B"),
        ("(b).", LETTERS, "B"),
        ("B. red", LETTERS, "B"),
        ("The answer is a bit unclear", LETTERS, None),
        ("It is a B", LETTERS, "B"),
        ("A or B", LETTERS, None),
        ("red", LETTERS, None),
        ("E", LETTERS, None),
        ("7", DIGITS, "7"),
        ("[7]", DIGITS, "7"),
        ("07", DIGITS, "7"),
        ("Seven.", DIGITS, "7"),
        ("17", DIGITS, None),
        ("7 or 8", DIGITS, None),
        ("9" * 5000, DIGITS, None),
        ("There are 12 of them", COUNTS, "12"),
        ("twelve", COUNTS, "12"),
        ("0", COUNTS, "0"),
        ("zero", COUNTS, "0"),
        ("Orange", COLORS, "orange"),
        ("the red one", COLORS, "red"),
        ("reddish", COLORS, None),
    ],
)
def test_exact_match(text: str, choices: tuple[str, ...], parsed: str | None) -> None:
    for answer in choices:
        assert exact_match(text, answer, choices) == Score(parsed, parsed == answer)


@pytest.mark.parametrize(
    ("kind", "answer", "right", "unparsed"),
    [
        ("digit", "3", "It is 3.", "A"),
        ("letter", "K", "K", "3"),
        ("color", "cyan", "Cyan", "pink"),
        ("shape", "cross", "a cross", "plus"),
        ("size", "small", "Small", "tiny"),
        ("choice", "C", "C.", "cyan"),
        ("count", "2", "two", "yes"),
        ("count", "yes", "Yes", "2"),
        ("existence", "no", "No", "star"),
    ],
)
def test_the_task_knows_what_its_answers_can_be(
    tmp_path: Path, kind: str, answer: str, right: str, unparsed: str
) -> None:
    example = Example("id", tmp_path / "a.png", "?", answer, kind=kind)
    assert SceneTask(tmp_path).score(example, right) == Score(answer, True)
    assert SceneTask(tmp_path).score(example, unparsed) == Score(None, False)


# The benchmark's reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_benchmark(folder, "test", num_objects=(4, 8), scenes=2)
    return folder


def test_reader(folder: Path) -> None:
    task = SceneTask(folder)
    examples = [task.get_example(i) for i in range(task.num_examples())]
    lines = (folder / "questions.jsonl").read_text("utf-8").splitlines()
    assert len(examples) == len(lines)
    first, record = examples[0], json.loads(lines[0])
    assert first == Example(
        id=record["id"],
        image=folder / record["image"],
        prompt=record["question"],
        answer=record["answer"],
        region=tuple(record["region"]),
        kind="digit",
        num_objects=4,
        single=True,
    )
    assert not any(e.single for e in examples if e.kind == "position")
    assert SceneTask(folder, limit=5).num_examples() == 5
    for example in examples:  # every answer is among those that its kind can have
        assert task.score(example, example.answer) == Score(example.answer, True)


def test_reader_refuses(tmp_path: Path) -> None:
    with pytest.raises(CofError, match="cof scenes"):
        SceneTask(tmp_path).num_examples()
    path = tmp_path / "questions.jsonl"
    odd = {"id": "1", "image": "1.png", "question": "?", "answer": "7", "region": None}
    odd |= {"kind": "taste", "num_objects": 4, "targets": []}
    cases = [("{}\n", "line 1"), ("", "empty"), ("no json\n", "line 1")]
    for text, sentence in (*cases, (json.dumps(odd), "line 1 .* 'taste'")):
        path.write_text(text, "utf-8")
        with pytest.raises(CofError, match=sentence):
            SceneTask(tmp_path).num_examples()
    with pytest.raises(CofError, match="is a file: give the folder"):
        SceneTask(path).num_examples()


# Methods


def test_elsewhere() -> None:
    for number in range(200):
        box = elsewhere(BOX, f"{number}")
        assert intersection(box, BOX) == 0
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx((0.25, 0.25))
        assert min(box) >= 0
        assert max(box) <= 1
    assert elsewhere(BOX, "1") == elsewhere(BOX, "1") != elsewhere(BOX, "2")
    assert elsewhere(FULL, "1") == FULL
    wide = elsewhere((0.0, 0.0, 0.9, 0.9), "1")  # cannot be disjoint: moved as far as may be
    assert intersection(wide, (0.0, 0.0, 0.9, 0.9)) < 0.81


def test_regions() -> None:
    example = Example("id", Path("a.png"), "?", "7", region=BOX)
    found = Region(boxes=((0.5, 0.5, 0.75, 0.75),))

    def region(method: Method, example: Example = example) -> Region | None:
        return method.region(example, found, (100, 100), seed=0)

    assert region(Method("plain")) is None
    assert region(Method("whole", 4.0)) is EVERYTHING
    assert region(Method("cof", 4.0, expand=1.0)) == found
    assert region(Method("cof", 4.0, expand=2.0)) == Region(boxes=((0.375, 0.375, 0.875, 0.875),))
    assert region(Method("oracle", 4.0)) == Region(boxes=(BOX,))
    assert region(Method("oracle", 4.0, expand=2.0)) == Region(
        boxes=((0.125, 0.125, 0.625, 0.625),)
    )
    control = region(Method("random", 4.0))
    assert control == Region(boxes=(elsewhere(BOX, "0-id"),))
    assert Method("cof", 4.0).region(example, None, (100, 100), seed=0) is None
    whole_image = replace(example, region=None)
    assert region(Method("oracle", 4.0), whole_image) == Region(boxes=(FULL,))


# The runner


@dataclass
class Seer:
    """An engine that answers a scene's question rightly if it looks at the true region.

    Questions about color it answers only without looking anywhere. Asked for a box it gives the
    true one for every other question, and none at all for those about positions.
    """

    folder: Path
    name: str = "seer"
    dies_after: int = 10**9

    def __post_init__(self) -> None:
        self.dialect = TINY
        self.script = FakeEngine(self._reply, dialect=TINY)
        task = SceneTask(self.folder)
        self.known: dict[tuple[str, str], tuple[int, Example]] = {}
        for number in range(task.num_examples()):
            example = task.get_example(number)
            shown = digest(load_image(example.image))
            self.known[shown, example.prompt] = (number, example)
            self.known[shown, TINY.grounding_prompt(example.prompt)] = (number, example)
        self.frame = self.script.frame
        self.encode = self.script.encode

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        if len(self.script.calls) == self.dies_after:
            raise KeyboardInterrupt
        replies = self.script.generate(requests, decoding)
        return [
            replace(r, logprobs=(self.sure(q),)) for q, r in zip(requests, replies, strict=True)
        ]

    def sure(self, request: Request) -> float:
        """Log-probability of its replies: surer of true boxes."""
        number, _ = self._example(request)
        return math.log(0.9 if number % 2 == 0 else 0.4)

    def _example(self, request: Request) -> tuple[int, Example]:
        assert isinstance(request.image, EncodedImage)
        return self.known[digest(request.image.image), request.prompt]

    def _reply(self, request: Request) -> str:
        number, example = self._example(request)
        true = example.region or FULL
        if request.prompt.endswith("\nWhere?"):
            if example.kind == "position":
                return "I see none."
            assert isinstance(request.image, EncodedImage)
            box = true if number % 2 == 0 else elsewhere(true, "wrong")
            return str([round(v, 4) for v in self.frame(request.image.size).from_image(box)])
        light = request.highlight
        looks = light is not None and any(
            intersection(box, true) > 0.5 * intersection(true, true) for box in light.region.boxes
        )
        if example.kind == "color":
            return "I do not know" if light else example.answer
        return example.answer if looks else "I do not know"


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


METHODS = [
    Method("plain"),
    Method("whole", 4.0),
    Method("cof", 4.0, 1.0),
    Method("oracle", 4.0, 1.0),
    Method("random", 4.0, 1.0),
]


def runner(folder: Path, path: Path, engine: Any = None, **options: Any) -> Runner:
    return Runner(engine or Seer(folder), SceneTask(folder), path, batch_size=10, **options)


def test_every_picture_and_every_box_once(folder: Path, tmp_path: Path) -> None:
    seer = Seer(folder)
    run = runner(folder, tmp_path / "a.jsonl", seer)
    n = run.task.num_examples()
    batches = math.ceil(n / 10)
    store = run.run([*METHODS, Method("cof", 8.0, 1.0), Method("cof", 8.0, 1.0)])
    assert len(seer.script.encoded) == batches
    assert all(len(pictures) <= 2 for pictures in seer.script.encoded)
    calls = [call for call, _ in seer.script.calls]
    asked = [request.prompt for call in calls for request in call if "Where?" in request.prompt]
    assert len(asked) == n
    assert len(calls) == batches * 7
    assert len(store.ids) == n
    times = read_times(run.path)
    assert set(times) == {
        ENCODING,
        GROUNDING,
        *(m.key for m in METHODS),
        Method("cof", 8.0, 1.0).key,
    }


def test_a_torn_line_of_times_is_dropped(folder: Path, tmp_path: Path) -> None:
    run = runner(folder, tmp_path / "a.jsonl", Seer(folder, dies_after=5))
    with pytest.raises(KeyboardInterrupt):
        run.run(METHODS)
    times = times_path(run.path)
    whole = times.read_bytes()
    times.write_bytes(whole + b'["plain", ["4-')
    assert read_times(run.path)
    times.write_bytes(whole + b'["plain", ["4-')
    run = runner(folder, run.path)
    run.run(METHODS)
    assert times.read_bytes().startswith(whole + b'["')
    known = {example.id for example in run.examples()}
    assert all(set(spent) == known for spent in read_times(run.path).values())
    times.write_bytes(whole[1:])
    with pytest.raises(CofError, match="line 1 is no record"):
        read_times(run.path)


def test_the_boxes_of_each_method_reach_the_engine(folder: Path, tmp_path: Path) -> None:
    seer = Seer(folder)
    run = runner(folder, tmp_path / "a.jsonl", seer, window=1)
    store = run.run(METHODS)
    lights: dict[str, list[Any]] = {method.key: [] for method in METHODS}
    for number in range(0, len(seer.script.calls), 6):
        for method, (requests, _) in zip(
            METHODS, seer.script.calls[number + 1 : number + 6], strict=True
        ):
            lights[method.key] += [request.highlight for request in requests]
    plain, whole, cof, oracle, random = lights.values()
    assert set(plain) == {None}
    assert {light.region for light in whole} == {EVERYTHING}
    assert {light.strength for light in (*whole, *oracle, *random)} == {4.0}
    for example, own, true, control in zip(run.examples(), cof, oracle, random, strict=True):
        region = example.region or FULL
        assert true.region.boxes == (region,)
        assert control.region.boxes == (elsewhere(region, f"0-{example.id}"),)
        if example.kind == "position":
            assert own is None
            assert store["plain", example.id].text == store[METHODS[2].key, example.id].text
        else:
            assert store[GROUNDING, example.id].boxes == own.region.boxes
        assert store[METHODS[3].key, example.id].boxes == (region,)


def test_runner_is_the_pipeline(folder: Path, tmp_path: Path) -> None:
    run = runner(folder, tmp_path / "a.jsonl")
    store = run.run([Method("cof", 4.0, 1.3)])
    pipeline = CoF(Seer(folder), Settings(expand=1.3, strength=4.0))
    examples = run.examples()
    answers = pipeline.batch([(e.image, e.prompt) for e in examples], decoding=run.decoding)
    for example, answer in zip(examples, answers, strict=True):
        record = store[Method("cof", 4.0, 1.3).key, example.id]
        assert (record.text, record.boxes) == (answer.text, answer.boxes)
        found = store[GROUNDING, example.id]
        assert (found.text, found.boxes) == (answer.grounding_text, answer.raw_boxes)
        assert found.confidence == pytest.approx(answer.confidence, abs=1e-5)


def test_a_rule_on_boxes_is_the_pipelines_least_confidence(folder: Path, tmp_path: Path) -> None:
    run = runner(folder, tmp_path / "a.jsonl")
    store = run.run(METHODS)
    cof, plain, replies = (store.method(key) for key in (METHODS[2].key, "plain", GROUNDING))
    looks = adapted(Rule(box_at_least=0.5), plain, replies, {4.0: cof})
    pipeline = CoF(Seer(folder), Settings(expand=1.0, strength=4.0, min_confidence=0.5))
    examples = run.examples()
    answers = pipeline.batch([(e.image, e.prompt) for e in examples])
    assert [looks[e.id].text for e in examples] == [answer.text for answer in answers]
    found = {id for id, reply in replies.items() if reply.boxes}
    always = adapted(Rule(), plain, replies, {4.0: cof})
    assert always == {id: cof[id] if id in found else plain[id] for id in cof}
    assert adapted(Rule(box_at_least=1.0), plain, replies, {4.0: cof}) == plain
    assert looks not in (cof, plain)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    runner(folder, path).run(METHODS)
    return path.read_bytes()


@pytest.mark.parametrize("calls", [0, 1, 5, 8, 23])
def test_killed_between_batches_and_resumed(
    folder: Path, tmp_path: Path, uninterrupted: bytes, calls: int
) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        runner(folder, path, Seer(folder, dies_after=calls)).run(METHODS)
    again = Seer(folder)
    runner(folder, path, again).run(METHODS)
    assert path.read_bytes() == uninterrupted
    total = math.ceil(SceneTask(folder).num_examples() / 10) * 6
    assert len(again.script.calls) == total - calls  # nothing was asked twice


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.71, 0.999, 1.0])
def test_killed_within_a_line_and_resumed(
    folder: Path, tmp_path: Path, uninterrupted: bytes, share: float
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(uninterrupted[: int(share * len(uninterrupted))])
    told: list[int] = []
    run = runner(folder, path)
    run.run(METHODS, told.append)
    assert path.read_bytes() == uninterrupted
    assert sum(told) == run.replies(METHODS)


def test_phases_and_order_do_not_matter(folder: Path, tmp_path: Path, uninterrupted: bytes) -> None:
    path = tmp_path / "a.jsonl"
    runner(folder, path).run(METHODS[3:])
    runner(folder, path).run(METHODS[:3][::-1])
    assert path.read_bytes() == uninterrupted


def test_a_store_of_other_questions_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Store(path).append([Record("elsewhere", "plain", "7")])
    with pytest.raises(CofError, match="other questions"):
        runner(folder, path).run(METHODS)


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in (
        "{broken}",
        "[]",
        '{"id": "a"}',
        '{"id": "a", "method": "b", "text": "c", "d": 1}',
    ):
        path.write_text(line + "\n", "utf-8")
        with pytest.raises(CofError, match="line 1 is no record"):
            Store(path)


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        Record("a", "plain", "", None, False),
        Record("b", "plain", "a\nb\u2028é", "7", True, ((0.1, 0.2, 1 / 3, 1.0),)),
        Record("c", GROUNDING, "[0]", confidence=0.0),
    ]
    Store(path).append(records)
    assert [Store(path)[r.method, r.id] for r in records] == records


# From records to numbers


def test_grounded() -> None:
    example = Example("id", Path("a.png"), "?", "7", region=BOX, single=True)

    def of(*boxes: tuple[float, ...]) -> tuple[bool, bool, float]:
        found = grounded(example, Record("id", GROUNDING, "", boxes=boxes))
        return found.found, found.hit, found.iou

    assert of() == (False, False, 0.0)
    assert of(BOX) == (True, True, 1.0)
    assert of((0.25, 0.25, 0.5, 0.75)) == (True, True, 0.5)
    assert of((0.75, 0.75, 1.0, 1.0)) == (True, False, 0.0)
    assert of((0.25, 0.25, 0.375, 0.5), (0.375, 0.25, 0.5, 0.5)) == (True, True, 1.0)


def test_numbers_of_a_small_case() -> None:
    right = {"plain": [1, 1, 0, 0, 0], "cof": [1, 0, 1, 1, 0]}
    hits = [True, False, True, False, True]
    examples = [
        Example(f"{i}", Path(f"{i % 2}.png"), "?", "7", BOX, "digit", 4, single=i < 4)
        for i in range(5)
    ]
    answers = {
        name: {
            f"{i}": Record(f"{i}", name, "", "7" if r else None, bool(r)) for i, r in enumerate(v)
        }
        for name, v in right.items()
    }
    replies = {
        f"{i}": Record(f"{i}", GROUNDING, "", boxes=(BOX if hit else (0.6, 0.6, 0.7, 0.7),))
        for i, hit in enumerate(hits)
    }
    groups = {"all": lambda e: True, "none": lambda e: False, "first": lambda e: e.id == "0"}
    table = by_group(answers, examples, groups)
    assert set(table) == {"all", "first"}
    cof = table["all"]["cof"]
    assert (cof["n"], cof["right"], cof["unparsed"]) == (5, 3, 2)
    assert (cof["fixed"], cof["broken"], cof["p"]) == (2, 1, 1.0)
    assert cof["difference"] == pytest.approx(0.2)
    assert "difference" not in table["all"]["plain"]
    assert table["first"]["cof"]["accuracy"] == 1

    shown = grounding_table(replies, examples, groups)["all"]
    assert (shown["n"], shown["n_single"], shown["well_formed"]) == (5, 4, 1.0)
    assert (shown["centre_hit"], shown["mean_iou"], shown["iou_50"]) == (0.5, 0.5, 0.5)

    cells = two_by_two(answers, replies, examples)
    assert {name: (cell["n"], cell["right"]["cof"]) for name, cell in cells.items()} == {
        "plain right, box right": (1, 1),
        "plain right, box wrong": (1, 0),
        "plain wrong, box right": (1, 1),
        "plain wrong, box wrong": (1, 1),
    }


# The study

SMALL = Plan(
    scenes=2,
    validation_scenes=2,
    num_objects=(4, 8),
    strengths=(2.0, 8.0),
    expands=(1.0, 1.3),
    batch_size=20,
)


def study(out: Path, engine: Any = None) -> dict[str, Any]:
    return run_study(engine or Both(out), SMALL, out, console=Console(quiet=True))


class Both:
    """A `Seer` of both splits, which knows the scenes once they are drawn."""

    name = "seer"
    dialect = TINY

    def __init__(self, out: Path) -> None:
        for split in ("validation", "test"):
            write_benchmark(out / "work" / split, split, num_objects=SMALL.num_objects, scenes=2)
        self.seer = Seer(out / "work" / "validation")
        self.seer.known |= Seer(out / "work" / "test").known
        self.encode, self.frame = self.seer.encode, self.seer.frame
        self.generate = self.seer.generate


def test_study(tmp_path: Path) -> None:
    results = study(tmp_path)
    choice, test = results["choice"], results["test"]
    tried = [row for row in choice["validation"] if row["where"] == "cof"]
    assert len(tried) == 2 * 2 * 2
    first = max(tried, key=lambda row: row["right"])  # of equals the mildest
    assert choice["cof"] == {name: first[name] for name in ("strength", "expand", "scope")}
    assert (first["strength"], first["scope"]) == (2.0, "all")
    assert "look where" in choice["adaptive"]["sentence"]
    digits = test["groups"]["digit"]
    assert digits["plain"]["right"] == digits["random"]["right"] == 0
    assert digits["oracle"]["accuracy"] == digits["whole"]["accuracy"] == 1
    assert digits["cof"]["right"] == digits["cof"]["fixed"]
    every = test["groups"]["all"]
    assert 0 < every["cof (adaptive)"]["broken"] < every["cof"]["broken"]
    assert every["cof (adaptive)"]["fixed"] >= 0.8 * every["cof"]["fixed"]
    assert 0 < digits["cof"]["right"] < digits["cof"]["n"]
    assert test["groups"]["color"]["oracle"]["broken"] == test["groups"]["color"]["plain"]["n"]
    fine, levels = test["groups"]["fine"], [test["groups"][f"fine, {n} objects"] for n in (4, 8)]
    for method, row in fine.items():
        assert row["n"] == sum(level[method]["n"] for level in levels)
        assert row["right"] == sum(level[method]["right"] for level in levels)
        kinds = [test["groups"][kind][method]["right"] for kind in ("digit", "letter", "color")]
        assert row["right"] == sum(kinds)
    cells = test["two_by_two"]["fine"]
    assert sum(cell["n"] for cell in cells.values()) == fine["plain"]["n"]
    assert cells["plain wrong, box right"]["right"]["cof"] == cells["plain wrong, box right"]["n"]
    assert cells["plain wrong, box wrong"]["right"]["cof"] == 0
    assert test["grounding"]["fine"]["well_formed"] == 1 > test["grounding"]["all"]["well_formed"]
    assert test["grounding"]["digit"]["mean_iou"] > 0.3
    assert results["about"]["model"] == "seer"


def test_study_resumes_to_the_same_results(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole")
    dying = Both(tmp_path / "killed")
    dying.seer.dies_after = 40
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "killed", dying)
    again = study(tmp_path / "killed")
    for results in (whole, again):
        seconds = results.pop("seconds")
        assert all(s >= 0 for split in seconds.values() for s in split.values())
    assert again == whole
    for name in ("validation.jsonl", "test.jsonl"):
        first, second = (tmp_path / run / "work" / name for run in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()


def test_study_of_another_model_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    other = Both(tmp_path)
    other.name = "other"
    with pytest.raises(CofError, match=r"another run \(model differ"):
        study(tmp_path, other)


def test_eval_tiny_on_a_random_model(tmp_path: Path) -> None:
    arguments = ["eval", "tiny", "--model", str(checkpoint("llava")), "--out", str(tmp_path)]
    arguments += ["--quick", "--limit", "10", "--batch-size", "10"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["test"]["questions"] == 10
    assert results["about"]["dtype"] == "float32"
    table = (tmp_path / "table.md").read_text("utf-8")
    shown = results["test"]["groups"]["all"]["cof"]
    assert f"{shown['accuracy']:.3f} [{shown['accuracy_low']:.3f}" in table
    assert str(tmp_path) not in table + json.dumps(results)
    with Image.open(tmp_path / "effect.png") as image:
        assert image.width > 1000
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    refused = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert refused.exit_code == 2
    assert "another run (seed differ" in refused.stderr
