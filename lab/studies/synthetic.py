"""Synthetic MME, POPE and MMBench: held-out scenes in the files of the paper's three benchmarks.

    mme/<task>/*.png, *.txt       for each scene a question with the answer yes and one with no;
                                  the five tasks that scenes allow
    pope/scenes_pope_<kind>.json  for each scene six questions about objects that are present or
                                  absent; absent ones are sampled at random, the most frequent
                                  first, or adversarially
    mmbench/scenes_dev.tsv        questions with four options each; images as base64

`annotations.jsonl` in each folder has the true regions (`docs/evaluation.md`), and as `scene`
the seed of each scene: equal seeds have equal images.

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

from cof.errors import CofError
from cof.geometry.boxes import union
from cof.tiny.benchmark import MOST_SCENES, NUM_OBJECTS, check_scenes, round_box
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
from cof.tiny.scenes import COLORS, SHAPES, SIDE, Scene, make_scene, render

SEEDS = {"mme": 3_000_000, "pope": 4_000_000, "mmbench": 5_000_000}
"""The first seed of each benchmark's scenes; those of training lie above."""

NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
POSITIVES = 3  # questions per scene about present objects in POPE, and as many about absent ones
VALIDATION = 9_000
"""Number of the first scene for choosing settings: `write_synthetic(first=VALIDATION)`."""

Asker = Callable[[Scene, random.Random], Question]
_TASKS: dict[str, tuple[Asker, Callable[[str], bool]]] = {
    "existence": (existence, lambda text: True),
    "count": (verify_count, lambda text: True),
    "position": (position, lambda text: True),
    "color": (verify, lambda text: text.rstrip("?").split()[-1] in COLORS),
    "OCR": (verify, lambda text: text.startswith(("Is the digit on", "Is the letter on"))),
}


def write_synthetic(
    folder: Path,
    *,
    num_objects: Sequence[int] = NUM_OBJECTS,
    scenes: int = 8,
    first: int = 0,
    side: int = SIDE,
) -> None:
    """Draw all three benchmarks.

    Args:
        folder: gets `mme/`, `pope/` and `mmbench/`; files of the same names are replaced.
        num_objects: numbers of objects, 2..16 each.
        scenes: scenes for each number, in each benchmark.
        first: number of the first scene; those from `VALIDATION` on are for choosing settings.
        side: side of the canvases in pixels; above `SIDE` details are smaller than in training.

    Raises:
        CofError: a number is out of range.
    """
    check_scenes(num_objects, first + scenes, side)
    if min(num_objects) < 2:
        raise CofError("num_objects must be numbers from 2 on.")
    for name, write in (("mme", _mme), ("pope", _pope), ("mmbench", _mmbench)):
        chosen = [
            make_scene(SEEDS[name] + MOST_SCENES * n + i, n, square=i % 4 != 3, side=side)
            for i in range(first, first + scenes)
            for n in sorted(set(num_objects))
        ]
        (folder / name).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record) for record in write(folder / name, chosen)]
        (folder / name / "annotations.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _mme(folder: Path, scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    images = {scene.seed: render(scene) for scene in scenes}
    for task, (ask, belongs) in _TASKS.items():
        (folder / task).mkdir(exist_ok=True)
        for scene in scenes:
            name = f"{len(scene.things):02d}-{scene.seed % MOST_SCENES:04d}"
            images[scene.seed].save(folder / task / f"{name}.png")
            pair = _pair(scene, ask, belongs)
            lines = [f"{q.text}{YES_NO}\t{q.answer.capitalize()}\n" for q in pair]
            (folder / task / f"{name}.txt").write_text("".join(lines), "utf-8")
            for number, question in enumerate(pair, start=1):
                yield _annotation(f"{task}/{name}-{number}", scene, question.things)


def _pair(scene: Scene, ask: Asker, belongs: Callable[[str], bool]) -> tuple[Question, Question]:
    """The first questions with the answers yes and no, in that order."""
    rng = random.Random(f"mme-{scene.seed}")
    pair: dict[str, Question] = {}
    while len(pair) < 2:
        question = ask(scene, rng)
        if belongs(question.text):
            pair.setdefault(question.answer, question)
    return pair["yes"], pair["no"]


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
            present = {thing.name: i for i, thing in enumerate(scene.things)}
            asked = rng.sample(list(present), min(POSITIVES, len(present)))
            absent = [name for name in NAMES if name not in present]
            rng.shuffle(absent)
            if kind == "popular":
                absent.sort(key=lambda name: -counts[name])
            elif kind == "adversarial":
                absent.sort(key=lambda name: _suggestion(name, present, together), reverse=True)
            pairs = zip(asked, absent[: len(asked)], strict=True)
            for name in (name for pair in pairs for name in pair):
                lines.append(
                    {
                        "question_id": len(lines) + 1,
                        "image": _pope_image(number),
                        "text": f"Is there {a(name)} in the image?",
                        "label": "yes" if name in present else "no",
                    }
                )
                things = (present[name],) if name in present else ()
                yield _annotation(f"{kind}-{len(lines)}", scene, things)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"scenes_pope_{kind}.json").write_text(text, "utf-8")


def _suggestion(
    name: str, present: dict[str, int], together: Counter[frozenset[str]]
) -> tuple[bool, int]:
    """How strongly a scene suggests an absent object.

    First, whether other objects have its colour and its shape; then, how often other scenes hold
    it together with objects of this scene.
    """
    color, shape = name.split()
    both = any(n.startswith(color) for n in present) and any(n.endswith(shape) for n in present)
    return both, sum(together[frozenset((name, other))] for other in present)


def _pope_image(number: int) -> str:
    return f"SCENE_val2014_{number:012d}.png"


def _mmbench(folder: Path, scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        rng = random.Random(f"mmbench-{scene.seed}")
        file = io.BytesIO()
        render(scene).save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
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
                    "image": image,
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
    """Different questions with four options each."""
    chosen: dict[str, Question] = {}
    for _ in range(100):
        question = choice(scene, rng)
        if question.text.count("\n") == 4:
            chosen.setdefault(question.text.split("\n")[0], question)
        if len(chosen) == wanted:
            break
    return list(chosen.values())


def _annotation(id: str, scene: Scene, things: Sequence[int]) -> dict[str, Any]:
    region = round_box(union(scene.xyxy(scene.things[i]) for i in things)) if things else None
    objects = {"num_objects": len(scene.things), "single": len(things) == 1}
    return {"id": id, "scene": scene.seed, "region": region, **objects}
