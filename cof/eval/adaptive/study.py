"""Adaptive rules on the embedded benchmark: fitted on validation scenes, measured on test scenes.

The rule is frozen in a file before the test scenes are read. A finished run on another benchmark
can be adapted likewise, its pictures cut in halves.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cof.adaptive import save_rule
from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.about import progress_bar
from cof.eval.adaptive.fitting import FOLDS, fit
from cof.eval.adaptive.harm import MOST_BROKEN, Asked, fitted, gathered
from cof.eval.methods import PLAIN, Method
from cof.eval.run import Runner
from cof.eval.runs import Run, comparison, read
from cof.eval.saved import Replies
from cof.eval.splits import drawn
from cof.eval.tasks import SceneTask
from cof.settings import Settings
from cof.tiny.benchmark import NUM_OBJECTS
from cof.tiny.scenes import SIDE

RULE = "rule.json"


@dataclass(frozen=True)
class Plan:
    """How large a study on the embedded benchmark is.

    Attributes:
        scenes: test scenes of each num_objects level.
        validation_scenes: the same for fitting.
        num_objects: numbers of objects.
        side: of the scenes' canvases, pixels (`cof.tiny.scenes.make_scene`).
        strengths: lambdas that a rule may choose from.
        batch_size: questions in one forward pass.
        limit: only the first so many questions of each split; None: all.
        seed: of cross-validation and bootstrap.
    """

    scenes: int = 32
    validation_scenes: int = 32
    num_objects: tuple[int, ...] = NUM_OBJECTS
    side: int = SIDE
    strengths: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    batch_size: int = 48
    limit: int | None = None
    seed: int = 0


def run_adaptation(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Fit a rule on validation scenes, freeze it in `rule.json`, measure it on test scenes.

    Args:
        engine: the model.
        settings: alpha, scope and the rest; lambda is one of the plan's.
        plan: how much.
        out: scenes and answers go to `work/` in it; a run that was killed goes on from there.
        console: for progress.

    Returns:
        What `results.json` holds.

    Raises:
        CofError: `out` holds answers of another model or other questions.
    """
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
        settings=_settings(settings),
    )
    looking = {
        strength: Method.of("cof", settings.changed(strength=strength))
        for strength in sorted(plan.strengths)
    }
    splits = {}
    with progress_bar(console) as bar:
        for split in sizes:
            runner = Runner.of(
                engine,
                SceneTask(work / split, limit=plan.limit),
                work / f"{split}.jsonl",
                settings,
                batch_size=plan.batch_size,
                max_new_tokens=16,
                seed=plan.seed,
            )
            methods = [PLAIN, *looking.values()]
            counter = bar.add_task(split, total=runner.replies(methods))
            runner.run(methods, lambda done, at=counter: bar.advance(at, done))  # type: ignore[misc]
            replies = Replies.read(runner.examples(), [runner.path])
            splits[split] = Asked.of(replies, {s: method.key for s, method in looking.items()})
            if split == "validation":
                found = fit(splits[split].signs, most_broken=MOST_BROKEN, seed=plan.seed)
                save_rule(out / RULE, found.rule, fitted(found, splits[split], about))
    return {"plan": asdict(plan), **gathered(found, splits, about, seed=plan.seed)}


def adapt_run(folder: Path, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Fit a rule on half of a run's pictures and measure it on the others; nothing is asked.

    The rule has the run's lambda.

    Args:
        folder: where `cof eval BENCHMARK` wrote.
        out: for `rule.json`.
        seed: of the halves, of cross-validation and of the bootstrap.

    Returns:
        What `results.json` holds.

    Raises:
        CofError: the folder holds no finished run of CoF beside the plain model.
    """
    results = read(folder / "results.json")
    methods = results.get("methods", {})
    strength = re.match(r"cof lambda=(\S+)", methods.get("cof", ""))
    if strength is None or PLAIN.key not in methods or "metrics" not in results:
        raise CofError(
            f"{folder} holds no finished run of CoF beside the plain model: name the folder that "
            "`cof eval` wrote for a benchmark (--out)."
        )
    task, replies = comparison(Run(folder, folder.name, "comparison", results))
    asked = [example for example in replies.examples if example.answer]
    replies = replace(replies.scored(task), examples=asked)
    whole = Asked.of(replies, {float(strength[1]): methods["cof"]})
    names = sorted({str(example.image) for example in asked})
    if len(names) < 2 * FOLDS:
        raise CofError(
            f"{folder} has questions about {len(names)} pictures, too few to fit a rule on one "
            f"half and measure it on the other: {2 * FOLDS} are needed, and hundreds to trust it."
        )
    if all(record.confidence is None for record in whole.plain.values()):
        raise CofError(
            f"{folder} does not say how sure the plain answers are, on which a rule is fitted: "
            "delete it and run `cof eval` again, with an engine that tells."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[index] for index in order[: len(names) // 2]}
    splits = {
        "validation": whole.those(lambda example: str(example.image) in first),
        "test": whole.those(lambda example: str(example.image) not in first),
    }
    about = results["about"] | {"settings": {"method": methods["cof"]}}
    found = fit(splits["validation"].signs, most_broken=MOST_BROKEN, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    save_rule(out / RULE, found.rule, fitted(found, splits["validation"], about))
    return gathered(found, splits, about, seed=seed)


def _settings(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("expand", "scope", "grounder", "focus")}
