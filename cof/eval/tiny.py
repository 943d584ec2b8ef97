"""The embedded benchmark's study: settings chosen on validation scenes, measured on test scenes.

Stage 1 is asked once for every question; all settings share its boxes. Lambda, alpha and scope
are those with which CoF, looking at its own boxes, answers most validation questions rightly.
They are then frozen, for the other sources of boxes too; the best lambda of each of those is
reported apart. The test split is read after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cof.engines.base import Engine
from cof.eval.about import about_engine, check_same_run, digest, progress_bar
from cof.eval.halving import best_of
from cof.eval.methods import PLAIN, Method
from cof.eval.run import Runner
from cof.eval.study import Plan, choice_of, gathered, others, replies_of
from cof.eval.tasks import SceneTask
from cof.grounders import PromptGrounder
from cof.tiny.benchmark import write_benchmark


def run_study(engine: Engine, plan: Plan, out: Path, *, console: Console) -> dict[str, Any]:
    """Run what `out` does not hold yet, and gather all numbers.

    Args:
        engine: the model.
        plan: how much.
        out: scenes and answers go to `work/` in it; a run that was killed goes on from there.
        console: for progress.

    Returns:
        What `results.json` holds.

    Raises:
        CofError: `out` holds answers of another model or other questions.
    """
    work = out / "work"
    tasks = {
        split: _task(work / split, split, scenes, plan)
        for split, scenes in (("validation", plan.validation_scenes), ("test", plan.scenes))
    }
    about = _about(engine, plan, work)
    check_same_run(work / "run.json", about)
    runners = {
        split: Runner(
            engine,
            task,
            work / f"{split}.jsonl",
            batch_size=plan.batch_size,
            grounder=PromptGrounder(max_new_tokens=plan.grounding_max_new_tokens),
            seed=plan.seed,
        )
        for split, task in tasks.items()
    }
    validation, test = runners["validation"], runners["test"]
    with progress_bar(console) as bar:
        _run(bar, "validation: CoF", validation, [PLAIN, *plan.grid()])
        chosen = best_of(plan.grid(), replies_of(work, plan, "validation").records)
        _run(bar, "validation: others", validation, others(plan, chosen))
        chosen_methods = choice_of(plan, replies_of(work, plan, "validation")).methods()
        _run(bar, "test", test, list(chosen_methods.values()))
    return gathered(plan, about | {"grounding_prompt": engine.dialect.template}, out)


def _task(folder: Path, split: str, scenes: int, plan: Plan) -> SceneTask:
    write_benchmark(folder, split, num_objects=plan.num_objects, scenes=scenes, side=plan.side)
    return SceneTask(folder, limit=plan.limit)


def _run(bar: Progress, title: str, runner: Runner, methods: Sequence[Method]) -> None:
    task = bar.add_task(title, total=runner.replies(methods))
    runner.run(methods, lambda done: bar.advance(task, done))


def _about(engine: Engine, plan: Plan, work: Path) -> dict[str, Any]:
    """What must be the same for answers to belong to one run, and what to cite."""
    asked = "".join(
        (work / f"{s}/questions.jsonl").read_text("utf-8") for s in ("validation", "test")
    )
    return {
        **about_engine(engine),
        "questions": digest(asked),
        "limit": plan.limit,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "grounding_max_new_tokens": plan.grounding_max_new_tokens,
    }
