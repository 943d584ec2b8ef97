"""What is measured, the most important first, and with which questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cof.engines.transformers.engine import TransformersEngine
from cof.prompting.dialects import SHORT_ANSWER
from cof.tiny.benchmark import questions as asked_of
from cof.tiny.benchmark import scene_seed
from cof.tiny.scenes import make_scene, render
from lab.bench.shapes import TINY_TOKENS, question
from lab.bench.ways import GROWING, SEVERAL, SINGLE, Ways

IMAGE_TOKENS = 576
GROWTH: dict[str, tuple[int, ...]] = {  # in whole grids: 16, 24, 32, 48 and 56 cells a side
    "image_tokens": (256, 576, 1024, 2304, 3136),
    "length": (1, 4, 8),
    "batch": (1, 4, 16),
    "questions": (1, 2, 5, 10),
}


@dataclass(frozen=True)
class Setup:
    """One situation in which all ways are compared.

    Attributes:
        shape: of the model, a key of `lab.bench.shapes.SHAPES`, or `tiny`.
        image_tokens: of each image.
        batch: images at a time.
        length: how many times a question is repeated in one prompt.
        questions: about each image.
    """

    shape: str
    image_tokens: int = IMAGE_TOKENS
    batch: int = 1
    length: int = 1
    questions: int = 1


def make_plan(
    shapes: Sequence[str],
    batches: Sequence[int] = (1, 16),
    several: int = 10,
    growth: str | None = None,
    image_tokens: Sequence[int] = (IMAGE_TOKENS,),
) -> list[tuple[Setup, tuple[str, ...]]]:
    """Setups and the ways to measure in each, the most important first.

    A model is built once for all its setups with the same number of image tokens.

    Args:
        shapes: of models, the most important first.
        batches: images at a time, likewise.
        several: questions about one image, in an additional setup; 1: no such setup.
        growth: the shape for which one size varies at a time (`GROWTH`); None: none.
        image_tokens: of each image; the embedded model has its own.
    """
    plan: dict[Setup, tuple[str, ...]] = {}
    for shape in shapes:
        for tokens in (TINY_TOKENS,) if shape == "tiny" else image_tokens:
            setups = [(Setup(shape, tokens, batch), SINGLE) for batch in batches[:1]]
            if several > 1:
                setups.append((Setup(shape, tokens, questions=several), SEVERAL))
            setups += [(Setup(shape, tokens, batch), SINGLE) for batch in batches[1:]]
            plan |= {setup: ways for setup, ways in setups if setup not in plan}
    if growth is not None:
        # image tokens last: each number of them needs a model of its own
        for name in ("length", "batch", "questions", "image_tokens"):
            for value in GROWTH[name]:
                setup = Setup(growth, **{name: value})
                plan[setup] = (*plan.get(setup, ()), *GROWING)
    return [(setup, tuple(dict.fromkeys(ways))) for setup, ways in plan.items()]


def ways_of(setup: Setup, engine: TransformersEngine) -> Ways:
    """The same images and questions every time."""
    if setup.shape == "tiny":
        return _scenes(setup, engine)
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        for _ in range(setup.batch)
    ]
    asked = [
        " ".join([question(number)] * setup.length) + SHORT_ANSWER
        for number in range(setup.questions)
    ]
    places = rng.uniform(0.0, 0.8, (setup.batch * setup.questions, 2))
    places[0] = 0.4  # with a single row, the middle
    boxes = [f"[{x:.2f}, {y:.2f}, {x + 0.2:.2f}, {y + 0.2:.2f}]" for x, y in places]
    return Ways(engine, images, [asked] * setup.batch, boxes)


def _scenes(setup: Setup, engine: TransformersEngine) -> Ways:
    scenes = [make_scene(scene_seed("test", 8, index), 8) for index in range(setup.batch)]
    questions = []
    for scene in scenes:
        texts = [question.text for question in asked_of(scene)]
        random.Random(0).shuffle(texts)
        questions.append([" ".join([text] * setup.length) for text in texts[: setup.questions]])
    return Ways(engine, [render(scene) for scene in scenes], questions)
