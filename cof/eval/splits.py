"""The splits of a study on the embedded benchmark, drawn before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cof.engines.base import Engine
from cof.eval.about import about_engine, check_same_run, digest
from cof.tiny.benchmark import write_benchmark


def drawn(
    engine: Engine,
    work: Path,
    scenes: Mapping[str, int],
    *,
    num_objects: Sequence[int],
    side: int,
    **others: Any,
) -> dict[str, Any]:
    """Draw the scenes of each split, and say what answers to them belong together.

    Args:
        engine: the model.
        work: the study's folder; a split goes to a folder of its own in it.
        scenes: how many of each num_objects level, by split.
        num_objects, side: as of `cof.tiny.benchmark.write_benchmark`.
        others: what else must be the same for all answers.

    Returns:
        The model, a fingerprint of the questions, and `others`.

    Raises:
        CofError: `work` holds answers of another model or to other questions.
    """
    paths = [
        write_benchmark(work / split, split, num_objects=num_objects, scenes=number, side=side)
        for split, number in scenes.items()
    ]
    questions = digest("".join(path.read_text("utf-8") for path in paths))
    about = {**about_engine(engine), "questions": questions, **others}
    check_same_run(work / "run.json", about)
    return about
