"""Scenes in the formats of MME, POPE and MMBench: read by the same readers, true, reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cof.errors import CofError
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import KINDS, POPE
from cof.geometry.boxes import FULL
from cof.tiny.scenes import Scene, make_scene
from lab.studies.synthetic import NAMES, SEEDS, write_synthetic
from lab.training.data import TRAIN_SEEDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, num_objects=(3, 12), scenes=2)
    return folder


def scenes(benchmark: str) -> list[Scene]:
    """What was drawn, levels alternating."""
    return [make_scene(SEEDS[benchmark] + 10_000 * n + i, n) for i in range(2) for n in (3, 12)]


def test_all_three_are_read_without_a_problem(folder: Path) -> None:
    for task, questions in (
        (MME(folder / "mme"), 5 * 4 * 2),
        (POPE(folder / "pope"), 3 * 4 * 6),
        (MMBench(folder / "mmbench"), 4 * 4 * 3),
    ):
        assert task.check() == []
        assert len(task.examples) == questions
        for example in task.examples:
            assert example.num_objects in (3, 12)
            assert task.score(example, example.answer).right
            x1, y1, x2, y2 = example.region or FULL
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1


def test_mme_pairs(folder: Path) -> None:
    task = MME(folder / "mme", prompt_style="tiny")
    kinds = {"existence", "count", "position", "color", "OCR"}
    assert {example.kind for example in task.examples} == kinds
    for first, second in zip(task.examples[::2], task.examples[1::2], strict=True):
        assert (first.group, first.answer) == (second.group, "yes")
        assert second.answer == "no"
        assert first.prompt.endswith("? Please answer yes or no.")


def test_pope_negatives(folder: Path) -> None:
    task = POPE(folder / "pope")
    drawn = scenes("pope")
    counts = Counter(thing.name for scene in drawn for thing in scene.things)
    for kind in KINDS:
        for number, scene in enumerate(drawn):
            rows = [e for e in task.examples if e.kind == kind][6 * number : 6 * number + 6]
            here = {thing.name for thing in scene.things}
            asked = [" ".join(row.question.split()[3:5]) for row in rows]
            assert [row.answer for row in rows] == ["yes", "no"] * 3
            assert set(asked[::2]) <= here
            absent = set(asked[1::2])
            assert len(absent) == 3
            assert absent <= set(NAMES) - here
            left = set(NAMES) - here - absent
            if kind == "popular":
                assert min(counts[n] for n in absent) >= max(counts[n] for n in left)
            if kind == "adversarial" and len(here) == 12:
                colors, shapes = (set(words) for words in zip(*map(str.split, here), strict=True))
                assert {name.split()[0] for name in absent} <= colors
                assert {name.split()[1] for name in absent} <= shapes


def test_mmbench_answers_are_true(folder: Path) -> None:
    examples = MMBench(folder / "mmbench").examples
    (true,) = {example.options["ABCD".index(example.answer)] for example in examples[:4]}
    things = scenes("mmbench")[0].things
    assert true in {value for t in things for value in (t.glyph, t.color, t.shape)}
    assert examples[0].area in ("fine details", "shape")


def test_the_same_again_and_held_out(folder: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path, num_objects=(12, 3), scenes=2)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()
    assert max(SEEDS.values()) + 17 * 10_000 < TRAIN_SEEDS


@pytest.mark.parametrize("options", [{"num_objects": ()}, {"num_objects": (1,)}, {"scenes": 0}])
def test_refusals(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(CofError, match=r"num_objects must|scenes must"):
        write_synthetic(tmp_path, **options)  # type: ignore[arg-type]
