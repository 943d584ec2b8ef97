"""Held-out scenes as ordinary files: `images/*.png` and `questions.jsonl`.

One line of `questions.jsonl` is one question:

    id        `test-08-0003-digit-1`: split, num_objects, scene, kind, number
    image     path of the PNG, relative to the folder
    question  the whole prompt, with options and answer instruction
    answer    one word, digit, letter or option letter
    kind      digit, letter, color, shape, size, existence, count, position, verify, choice
    region    `[x1, y1, x2, y2]` around the objects that the answer depends on, 0..1 of the image;
              null: the whole image
    targets   the numbers of these objects in `boxes`
    boxes     every object's `[x1, y1, x2, y2]`, 0..1 of the image
    num_objects   number of objects
    split     validation, test or headline (figures that are quoted; nothing is chosen on it)
    seed      of the scene

The same arguments give the same bytes. The seeds of the splits never overlap, and lie below those
of training (`lab.training.data.TRAIN_SEEDS`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.geometry.boxes import XYXY
from cof.tiny.questions import KINDS as ASKERS
from cof.tiny.questions import Question
from cof.tiny.scenes import SIDE, Scene, make_scene, render

SPLITS = {"validation": 1_000_000, "test": 2_000_000, "headline": 7_000_000}
NUM_OBJECTS = (4, 8, 12, 16)
MOST_SCENES = 10_000  # with one num_objects, so that the seeds of levels and splits never overlap

FINE = ("digit", "letter", "color")
"""Kinds of questions about a small detail of one object, for which looking closer is made."""

_MIX: dict[str, tuple[int, tuple[str, ...]]] = {  # kind: (questions per scene, their makers)
    "digit": (2, ("glyph",)),
    "letter": (2, ("glyph",)),
    "color": (2, ("color",)),
    "shape": (1, ("shape",)),
    "size": (1, ("size",)),
    "existence": (1, ("existence", "glyph_existence")),
    "count": (1, ("count", "verify_count")),
    "position": (1, ("position",)),
    "verify": (1, ("verify",)),
    "choice": (1, ("choice",)),
}
KINDS = tuple(_MIX)


def scene_seed(split: str, num_objects: int, index: int) -> int:
    """Seed of the `index`-th scene with so many objects, whatever else is drawn.

    >>> scene_seed("test", 8, 3)
    2080003
    """
    return SPLITS[split] + MOST_SCENES * num_objects + index


def questions(scene: Scene) -> list[Question]:
    """The scene's questions, in the order of `KINDS`, all different.

    A kind that the scene does not allow (a letter where there are only digits) is left out.
    """
    rng = random.Random(f"benchmark-{scene.seed}")
    chosen: list[Question] = []
    for kind, (wanted, askers) in _MIX.items():
        seen: set[str] = set()
        for _ in range(100):
            question = ASKERS[rng.choice(askers)](scene, rng)
            if question.kind == kind and question.text not in seen:
                seen.add(question.text)
                chosen.append(question)
            if len(seen) == wanted:
                break
    return chosen


def write_benchmark(
    folder: Path,
    split: str,
    *,
    num_objects: Sequence[int] = NUM_OBJECTS,
    scenes: int = 30,
    side: int = SIDE,
    first: int = 0,
) -> Path:
    """Draw a split of the benchmark.

    Args:
        folder: gets `images/` and `questions.jsonl`; files of the same names are replaced.
        num_objects: numbers of objects, 1..16 each.
        scenes: scenes for each number; every fourth one with at most 8 objects is not square.
        side: side of the canvases in pixels; above `SIDE` details are smaller than in training.
        first: the number of the first scene.

    Returns:
        The path of `questions.jsonl`, written last.

    Raises:
        CofError: no such split, or a number out of range.
    """
    if split not in SPLITS:
        raise CofError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    check_scenes(num_objects, first + scenes, side)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for index in range(first, first + scenes):
        for n in sorted(set(num_objects)):  # alternate, so that a part of the file has them all
            scene = make_scene(scene_seed(split, n, index), n, square=index % 4 != 3, side=side)
            name = f"{split}-{n:02d}-{index:04d}"
            render(scene).save(images / f"{name}.png")
            lines += [json.dumps(record) for record in _records(scene, split, name)]
    path = folder / "questions.jsonl"
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", "utf-8")
    part.replace(path)
    return path


def check_scenes(num_objects: Sequence[int], scenes: int, side: int) -> None:
    """
    Raises:
        CofError: a number is out of range.
    """
    if not num_objects or not all(1 <= n <= 16 for n in num_objects):
        raise CofError("num_objects must be one or more numbers in 1..16, such as 4,8,12,16.")
    if not 1 <= scenes <= MOST_SCENES:
        raise CofError(f"scenes must be in 1..{MOST_SCENES}, not {scenes}.")
    if not SIDE <= side <= 4 * SIDE:
        raise CofError(f"side must be in {SIDE}..{4 * SIDE} pixels, not {side}.")


def _records(scene: Scene, split: str, name: str) -> Iterable[dict[str, Any]]:
    boxes = [round_box(scene.xyxy(thing)) for thing in scene.things]
    numbers = dict.fromkeys(KINDS, 0)
    for question in questions(scene):
        numbers[question.kind] += 1
        yield {
            "id": f"{name}-{question.kind}-{numbers[question.kind]}",
            "image": f"images/{name}.png",
            "question": question.text + question.suffix,
            "answer": question.answer,
            "kind": question.kind,
            "region": round_box(question.region(scene)) if question.things else None,
            "targets": list(question.things),
            "boxes": boxes,
            "num_objects": len(scene.things),
            "split": split,
            "seed": scene.seed,
        }


def round_box(xyxy: XYXY) -> list[float]:
    """A box as it is written to files: six decimals."""
    return [round(value, 6) for value in xyxy]
