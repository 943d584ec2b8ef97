"""Held-out scenes in the files of the paper's three benchmarks: `mme/`, `pope/`, `mmbench/`.

    mme/<task>/*.png, *.txt       a question with the answer yes and one with no about each scene;
                                  the five tasks that scenes can give
    pope/scenes_pope_<kind>.json  six questions a scene about objects that are there or not; absent
                                  ones drawn at random, popular ones first, or adversarially
    mmbench/scenes_dev.tsv        four options each, the pictures inside as base64

Beside each of them `annotations.jsonl` holds what the formats have no place for, a line for each
question (in MMBench's case for all its rotations):

    id           the question's
    scene        seed of its picture: the same scene, the same picture
    region       `[x1, y1, x2, y2]` around the objects one must see, 0..1 of the image; null: all
                 of it, as of an object that is not there
    boxes        every object's `[x1, y1, x2, y2]`, 0..1 of the image
    num_objects      number of objects
    single       whether the region is that of one object
    smallest_px  side of the smallest object asked about, pixels; null without any
    difficulty   easy, medium or hard (`difficulty`)

The same arguments give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from cof.geometry.boxes import union
from cof.tiny.benchmark import MOST_SCENES, NUM_OBJECTS, check_scenes, rounded
from cof.tiny.questions import (
    YES_NO,
    Question,
    a,
    choice,
    existence,
    position,
    verify,
    verify_count,
)
from cof.tiny.scenes import COLORS, DIAMETERS, SHAPES, SIDE, Scene, make_scene, render

SEEDS = {"mme": 3_000_000, "pope": 4_000_000, "mmbench": 5_000_000}
"""Where each benchmark's scenes begin; those of training begin beyond."""

NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
POSITIVES = 3  # objects a scene in POPE, and as many negatives
DIFFICULTIES = ("easy", "medium", "hard")
VALIDATION = 9_000
"""The first scene of each level that is for choosing settings: `write_faces(first=VALIDATION)`."""

Asker = Callable[[Scene, random.Random], Question]
_TASKS: dict[str, tuple[Asker, Callable[[str], bool]]] = {
    "existence": (existence, lambda text: True),
    "count": (verify_count, lambda text: True),
    "position": (position, lambda text: True),
    "color": (verify, lambda text: text.rstrip("?").split()[-1] in COLORS),
    "OCR": (verify, lambda text: text.startswith(("Is the digit on", "Is the letter on"))),
}


def write_faces(
    folder: Path,
    *,
    num_objects: Sequence[int] = NUM_OBJECTS,
    scenes: int = 8,
    first: int = 0,
    side: int = SIDE,
) -> None:
    """Draw all three.

    Args:
        folder: where `mme/`, `pope/` and `mmbench/` go; files of the same names are replaced.
        num_objects: numbers of objects, 2..16 each.
        scenes: how many scenes of each number, for each benchmark.
        first: number of the first of them: those from `VALIDATION` on are for choosing settings.
        side: of the canvases, pixels; above `SIDE` details are smaller than in training.

    Raises:
        CofError: a number out of range.
    """
    check_scenes(num_objects, scenes, side, fewest=2, first=first)
    for name, write in (("mme", _mme), ("pope", _pope), ("mmbench", _mmbench)):
        drawn = [
            make_scene(SEEDS[name] + MOST_SCENES * n + i, n, square=i % 4 != 3, side=side)
            for i in range(first, first + scenes)
            for n in sorted(set(num_objects))
        ]
        (folder / name).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record) for record in write(folder / name, drawn)]
        (folder / name / "annotations.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def difficulty(num_objects: int, smallest_px: int | None) -> str:
    """One step up for more than 8 objects, one for a small object asked about; an object that is
    not there counts as a small one.

    >>> difficulty(8, 32), difficulty(8, 24), difficulty(12, None)
    ('easy', 'medium', 'hard')
    """
    small = smallest_px is None or smallest_px <= DIAMETERS["small"][1]
    return DIFFICULTIES[(num_objects > 8) + small]


def _mme(folder: Path, scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    pictures = {scene.seed: _png(render(scene)) for scene in scenes}
    for task, (ask, belongs) in _TASKS.items():
        (folder / task).mkdir(exist_ok=True)
        for scene in scenes:
            name = f"{len(scene.things):02d}-{scene.seed % MOST_SCENES:04d}"
            (folder / task / f"{name}.png").write_bytes(pictures[scene.seed])
            pair = _pair(scene, ask, belongs)
            lines = [f"{q.text}{YES_NO}\t{q.answer.capitalize()}\n" for q in pair]
            (folder / task / f"{name}.txt").write_text("".join(lines), "utf-8")
            for number, question in enumerate(pair, start=1):
                yield _annotation(f"{task}/{name}-{number}", scene, question.things)


def _pair(scene: Scene, ask: Asker, belongs: Callable[[str], bool]) -> tuple[Question, Question]:
    """The first two questions with the answers yes and no, in that order."""
    rng = random.Random(f"mme-{scene.seed}")
    found: dict[str, Question] = {}
    while len(found) < 2:
        question = ask(scene, rng)
        if belongs(question.text):
            found.setdefault(question.answer, question)
    return found["yes"], found["no"]


def _pope(folder: Path, scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    (folder / "val2014").mkdir(exist_ok=True)
    for number, scene in enumerate(scenes):
        render(scene).save(folder / "val2014" / _pope_image(number))
    counts = Counter(thing.name for scene in scenes for thing in scene.things)
    together: Counter[frozenset[str]] = Counter(
        frozenset(pair)
        for scene in scenes
        for pair in combinations(sorted(thing.name for thing in scene.things), 2)
    )
    for kind in ("random", "popular", "adversarial"):
        lines: list[dict[str, Any]] = []
        for number, scene in enumerate(scenes):
            rng = random.Random(f"pope-{scene.seed}")
            here = {thing.name: i for i, thing in enumerate(scene.things)}
            asked = rng.sample(list(here), min(POSITIVES, len(here)))
            absent = [name for name in NAMES if name not in here]
            rng.shuffle(absent)
            if kind == "popular":
                absent.sort(key=lambda name: -counts[name])
            elif kind == "adversarial":
                absent.sort(key=lambda name: _likeness(name, here, together), reverse=True)
            pairs = zip(asked, absent[: len(asked)], strict=True)
            for name in (name for pair in pairs for name in pair):
                lines.append(
                    {
                        "question_id": len(lines) + 1,
                        "image": _pope_image(number),
                        "text": f"Is there {a(name)} in the image?",
                        "label": "yes" if name in here else "no",
                    }
                )
                things = (here[name],) if name in here else ()
                yield _annotation(f"{kind}-{len(lines)}", scene, things)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"scenes_pope_{kind}.json").write_text(text, "utf-8")


def _likeness(
    name: str, here: dict[str, int], together: Counter[frozenset[str]]
) -> tuple[bool, int]:
    """How strongly a scene suggests an object that it lacks: both its colour and its shape are
    there on others; then how often it stands beside the scene's objects elsewhere."""
    color, shape = name.split()
    both = any(n.startswith(color) for n in here) and any(n.endswith(shape) for n in here)
    return both, sum(together[frozenset((name, other))] for other in here)


def _pope_image(number: int) -> str:
    return f"SCENE_val2014_{number:012d}.png"


def _mmbench(folder: Path, scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        rng = random.Random(f"mmbench-{scene.seed}")
        picture = base64.b64encode(_png(render(scene))).decode()
        for question in _choices(scene, rng):
            text, *options = question.text.split("\n")
            kind = text.split()[1]
            rows.append(
                {
                    "index": len(rows),
                    "question": text,
                    "hint": "",
                    **{option[0]: option[3:] for option in options},
                    "answer": question.answer,
                    "category": kind,
                    "image": picture,
                    "source": "scenes",
                    "l2-category": "shape" if kind == "shape" else "fine details",
                    "comment": "",
                    "split": "dev",
                }
            )
            yield _annotation(str(len(rows) - 1), scene, question.things)
    with (folder / "scenes_dev.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _choices(scene: Scene, rng: random.Random, wanted: int = 3) -> list[Question]:
    """Four options each, no question twice."""
    found: dict[str, Question] = {}
    for _ in range(100):
        question = choice(scene, rng)
        if question.text.count("\n") == 4:
            found.setdefault(question.text.split("\n")[0], question)
        if len(found) == wanted:
            break
    return list(found.values())


def _annotation(id: str, scene: Scene, things: Sequence[int]) -> dict[str, Any]:
    boxes = [rounded(scene.xyxy(thing)) for thing in scene.things]
    region = rounded(union(scene.xyxy(scene.things[i]) for i in things)) if things else None
    sides = [scene.things[i].xyxy[2] - scene.things[i].xyxy[0] for i in things]
    smallest = min(sides, default=None)
    return {
        "id": id,
        "scene": scene.seed,
        "region": region,
        "boxes": boxes,
        "num_objects": len(boxes),
        "single": len(things) == 1,
        "smallest_px": smallest,
        "difficulty": difficulty(len(boxes), smallest),
    }


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
