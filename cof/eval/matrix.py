"""Where to look crossed with how to look there, on the embedded benchmark's small details.

The dose of each focus (lambda, or alpha where it has none) is chosen on validation scenes, looking
at the boxes that the model itself writes; it is then frozen for all grounders. Grounders and
focuses are compared with the plain model on the same test questions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.about import progress_bar
from cof.eval.crossing import ENCODING, GIVEN, PLAIN, Cell, Cost, Crossing, grounding, scaled
from cof.eval.results import by_group, grounding_table
from cof.eval.splits import drawn
from cof.eval.store import Record, Store, write_atomically
from cof.eval.tasks import Example, SceneTask
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.settings import Settings
from cof.tiny.benchmark import FINE, NUM_OBJECTS
from cof.tiny.scenes import SIDE

SOURCES = (*(name for name in GROUNDERS if name not in ("given", "none", "detector")), *GIVEN)
"""Where to look; a detector is another model, and compared only if asked for."""

FOCUSES_COMPARED = tuple(name for name in FOCUSES if name not in ("none", "contrast", "beside"))
"""Ways to look. If asked for: `contrast`, which runs the model twice, and `beside`, which is `crop`
in models that take one image."""


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Attributes:
        sources: grounders, and `oracle` and `random`.
        focuses: ways to look.
        scenes: test scenes of each number of objects, whose questions about details are asked.
        validation_scenes: the same for choosing doses.
        num_objects: numbers of objects.
        side: of the scenes' canvases, pixels (`cof.tiny.scenes.make_scene`).
        strengths: lambdas tried for a focus that has one, the mildest first.
        expands: alphas tried for one that has none.
        batch_size: questions in one forward pass.
        limit: only the first so many questions of each split; None: all.
        seed: of the control's boxes and of the bootstrap.

    Raises:
        CofError: a grounder or focus is unknown.
    """

    sources: tuple[str, ...] = SOURCES
    focuses: tuple[str, ...] = FOCUSES_COMPARED
    scenes: int = 16
    validation_scenes: int = 5
    num_objects: tuple[int, ...] = NUM_OBJECTS
    side: int = SIDE
    strengths: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0, 32.0)
    expands: tuple[float, ...] = (1.0, 1.5, 2.5)
    batch_size: int = 48
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = {
            "grounder": {*GROUNDERS, *GIVEN} - {"given", "none"},
            "focus": set(FOCUSES) - {"none"},
        }
        for kind, names in (("grounder", self.sources), ("focus", self.focuses)):
            unknown = [name for name in names if name not in known[kind]]
            if unknown or not names:
                raise CofError(
                    f"The matrix has no {kind} {', '.join(unknown) or 'at all'}; choose of "
                    f"{', '.join(sorted(known[kind]))}."
                )

    def doses(self, focus: str, settings: Settings) -> list[Settings]:
        """What is tried for a focus, the mildest first."""
        base = settings.changed(focus=focus)
        if scaled(focus):
            return [base.changed(strength=strength) for strength in self.strengths]
        return [base.changed(expand=alpha) for alpha in self.expands]


@dataclass(frozen=True)
class FineTask(SceneTask):
    """The embedded benchmark's questions about one small detail."""

    def num_examples(self) -> int:
        return len(self._fine)

    def get_example(self, index: int) -> Example:
        return self._fine[index]

    @cached_property
    def _fine(self) -> list[Example]:
        return [example for example in self.examples if example.kind in FINE]


def run_matrix(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Run what `out` does not hold yet, and gather all numbers.

    Boxes are written in the model's own form, if it has one, so that the focus `soft` knows how
    sure each of their sides is.

    Args:
        engine: the model.
        settings: all but grounder, focus, and the doses.
        plan: how much.
        out: scenes and answers go to `work/` in it; a run that was killed goes on from there.
        console: for progress.

    Returns:
        What `results.json` holds.

    Raises:
        CofError: `out` holds answers of another model or other questions, or the settings name no
            detector where one is to look.
    """
    if "detector" in plan.sources:
        GROUNDERS["detector"].build(settings, [])  # refused without one before anything is asked
    if engine.dialect.form is not None:
        settings = settings.changed(boxes="template")
    work = out / "work"
    sizes = {"validation": plan.validation_scenes, "test": plan.scenes}
    about = drawn(
        engine,
        work,
        sizes,
        num_objects=plan.num_objects,
        side=plan.side,
        limit=plan.limit,
        batch_size=plan.batch_size,
        seed=plan.seed,
        settings=_kept(settings),
    )
    runs = {
        split: Crossing(
            engine,
            FineTask(work / split, limit=plan.limit),
            work / f"{split}.jsonl",
            settings,
            batch_size=plan.batch_size,
            seed=plan.seed,
        )
        for split in sizes
    }
    tried = {
        focus: [Cell("prompt", dose) for dose in plan.doses(focus, settings)]
        for focus in plan.focuses
    }
    with progress_bar(console) as bar:
        every = list(itertools.chain.from_iterable(tried.values()))
        counter = bar.add_task("validation", total=runs["validation"].replies(every))
        store = runs["validation"].run(every, lambda done: bar.advance(counter, done))
        chosen = {focus: best(cells, store) for focus, cells in tried.items()}
        write_atomically(work / "chosen.json", json.dumps({f: c.key for f, c in chosen.items()}))
        cells = crossed(plan.sources, {focus: cell.settings for focus, cell in chosen.items()})
        at = bar.add_task("test", total=runs["test"].replies(cells))
        tested = runs["test"].run(cells, lambda done: bar.advance(at, done))
    return {
        "about": about,
        "plan": asdict(plan),
        "doses": {
            "rule": "most validation questions answered rightly at the boxes of `prompt`, of "
            "equals the mildest",
            "chosen": {focus: _dose(cell.settings) for focus, cell in chosen.items()},
            "tried": [_tried(cell, store) for cell in every],
            "plain": _right(store.method(PLAIN)),
            "n": len(store.method(PLAIN)),
        },
        **_compared(runs["test"], cells, tested, plan),
    }


def best(cells: Sequence[Cell], store: Store) -> Cell:
    """The cell with most right answers; of equals the first."""
    return max(cells, key=lambda cell: _right(store.method(cell.key)))


def crossed(sources: Sequence[str], doses: Mapping[str, Settings]) -> list[Cell]:
    """Every cell that is not the plain model: cropping to the whole picture, or drawing a frame
    around it, leaves it as it is."""
    return [
        Cell(source, settings)
        for source in sources
        for focus, settings in doses.items()
        if source != "whole" or scaled(focus)
    ]


def _compared(run: Crossing, cells: Sequence[Cell], store: Store, plan: Plan) -> dict[str, Any]:
    examples = run.examples()
    answers = {PLAIN: store.method(PLAIN)} | {cell.name: store.method(cell.key) for cell in cells}
    rows = by_group(answers, examples, {"fine": lambda _: True}, seed=plan.seed)["fine"]
    costs = run.costs()
    table = {PLAIN: rows[PLAIN] | cost(costs, None, seed=plan.seed)}
    for cell in cells:
        where = {"grounder": cell.source, "focus": cell.settings.focus}
        table[cell.name] = where | rows[cell.name] | cost(costs, cell, seed=plan.seed)
    found = {
        source: grounding_table(
            store.method(grounding(source)), examples, {"fine": lambda _: True}
        ).get("fine")
        for source in plan.sources
    }
    return {
        "questions": len(examples),
        "images": len({example.image for example in examples}),
        "cells": table,
        "grounding": {source: row for source, row in found.items() if row},
    }


def cost(
    costs: Mapping[str, Mapping[str, Cost]], cell: Cell | None, *, seed: int, resamples: int = 2000
) -> dict[str, Any]:
    """What a cell costs in plain answers of the same batches, stage 1 and the encoding of the
    picture with it; None: the plain answer.

    Returns:
        `cost` with its interval over batches (bootstrap), and `passes`: of the decoder, on average
        over batches; None where they are not known.
    """
    batches = list(costs[PLAIN])
    plain = [_sum(costs, [ENCODING, PLAIN], batch) for batch in batches]
    if cell is None:
        own = plain
    else:
        of = costs[cell.key]
        steps = [grounding(cell.source), cell.key]
        own = [_sum(costs, [*([ENCODING] * of[b].whole), *steps], b) for b in batches]
    seconds = np.array(
        [[mine.seconds, base.seconds] for mine, base in zip(own, plain, strict=True)]
    )
    n = len(batches)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    sums = draws @ seconds
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    counted = [each.passes for each in own if each.passes is not None]
    return {
        "cost": round(float(seconds[:, 0].sum() / seconds[:, 1].sum()), 4),
        "cost_low": round(float(low), 4),
        "cost_high": round(float(high), 4),
        "seconds": round(float(seconds[:, 0].sum()), 3),
        "passes": round(sum(counted) / len(counted), 2) if counted else None,
    }


def _sum(costs: Mapping[str, Mapping[str, Cost]], keys: Sequence[str], batch: str) -> Cost:
    steps = [costs[key][batch] for key in keys]
    passes = [step.passes for step in steps if step.passes is not None]
    return Cost(sum(step.seconds for step in steps), sum(passes) if passes else None)


def _right(said: Mapping[str, Record]) -> int:
    return sum(bool(record.right) for record in said.values())


def _tried(cell: Cell, store: Store) -> dict[str, Any]:
    dose = _dose(cell.settings)
    return {"focus": cell.settings.focus, **dose, "right": _right(store.method(cell.key))}


def _dose(settings: Settings) -> dict[str, float]:
    name = "strength" if scaled(settings.focus) else "expand"
    return {name: getattr(settings, name)}


def _kept(settings: Settings) -> dict[str, Any]:
    """What of the settings the study does not choose itself."""
    chosen = ("grounder", "focus", "strength", "adaptive")
    return {name: value for name, value in settings.as_dict().items() if name not in chosen}
