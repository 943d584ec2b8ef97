"""Studies on the scenes: the questions, the candidates, and the methods compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.data.base import Benchmark, PromptStyle
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.scenes import Scenes
from cof.eval.evaluate import Evaluation, usual_methods
from cof.eval.methods import PLAIN, Method
from cof.eval.sweep import Methods, Round, choose, make_candidates
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.settings import Settings
from cof.tiny.benchmark import NUM_OBJECTS, write_benchmark
from cof.tiny.scenes import SIDE
from cof.types import Scope
from lab.studies.synthetic import VALIDATION, write_synthetic

Tasks = dict[str, dict[str, Benchmark]]
"""Of `validation` and of `test`, by name."""

SYNTHETIC: Mapping[str, type[Benchmark]] = {"mme": MME, "pope": POPE, "mmbench": MMBench}

SOURCES = (
    *(name for name in GROUNDERS if name not in ("given", "none", "detector")),
    "prompt+attention",
    "oracle",
    "random",
)
"""Where to look, in a grid; a detector is another model, and compared only if asked for."""

FOCUSES_COMPARED = tuple(name for name in FOCUSES if name not in ("none", "contrast", "beside"))
"""How to look, in a grid. If asked for: `contrast`, which runs the model twice, and `beside`, which
is `crop` in models that take one image."""

CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds tried on the plain answer's confidence."""


@dataclass(frozen=True)
class Plan:
    """The size of a study, and the values that it tries.

    Attributes:
        scenes: test scenes of each number of objects.
        validation_scenes: the same for the split on which settings are chosen.
        num_objects: in the scenes.
        side: of the scenes' canvases, pixels (`cof.tiny.scenes.make_scene`).
        kinds: of questions that are asked; empty: all.
        limit: about so many questions of each task and split; None: all.
        strengths, expands, scopes: values of lambda, alpha and scope that are tried.
        batch_size: questions in one forward pass.
        seed: of the control's boxes and of the bootstrap.
    """

    scenes: int = 32
    validation_scenes: int = 8
    num_objects: tuple[int, ...] = NUM_OBJECTS
    side: int = SIDE
    kinds: tuple[str, ...] = ()
    limit: int | None = None
    strengths: tuple[float, ...] = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
    expands: tuple[float, ...] = (1.0, 1.3, 1.6)
    scopes: tuple[Scope, ...] = ("all", "text")
    batch_size: int = 48
    seed: int = 0

    def draw(self, out: Path, style: PromptStyle | None = None) -> Tasks:
        """The questions of both splits, drawn into `data/` of a folder.

        Args:
            out: the folder.
            style: of the prompts of synthetic MME, POPE and MMBench; None: the scenes themselves.
        """
        tasks: Tasks = {}
        for split, scenes in (("validation", self.validation_scenes), ("test", self.scenes)):
            folder = out / "data" / split
            size: Any = {"num_objects": self.num_objects, "scenes": scenes, "side": self.side}
            if style is None:
                write_benchmark(folder, split, **size)
                task = Scenes(folder, prompt_style="tiny", limit=self.limit, kinds=self.kinds)
                tasks[split] = {"scenes": task}
            else:
                write_synthetic(folder, first=VALIDATION if split == "validation" else 0, **size)
                tasks[split] = {
                    name: benchmark(folder / name, prompt_style=style, limit=self.limit)
                    for name, benchmark in SYNTHETIC.items()
                }
        return tasks


@dataclass(frozen=True)
class Study:
    """Methods chosen on validation questions, frozen, and measured on test questions.

    Attributes:
        name: for its report.
        rounds: see `cof.eval.sweep.choose`.
        compare: the choice -> the methods that are measured on the test questions, by name.
        max_new_tokens: the longest answer.
    """

    name: str
    rounds: Sequence[Round]
    compare: Callable[[Methods], Methods]
    max_new_tokens: int = 16

    def run(
        self, engine: Engine, tasks: Tasks, plan: Plan, out: Path, console: Console, **more: Any
    ) -> dict[str, Any]:
        """The content of `results.json`; a run that was interrupted goes on."""
        how = {"batch_size": plan.batch_size, "max_new_tokens": self.max_new_tokens}
        choice = choose(engine, tasks["validation"], self.rounds, out, console=console, **how)
        evaluation = Evaluation(self.compare(choice.chosen), seed=plan.seed, **how)
        more |= {"plan": asdict(plan), "study": self.name, "choice": choice.as_dict()}
        return evaluation.run(engine, tasks["test"], out, console=console, **more)


def run_effect(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Does it help? The plain model against CoF and its controls, on held-out scenes.

    Lambda, alpha and scope are those with which CoF answers most validation questions rightly; all
    other methods have them too. Then a threshold on the plain answer's confidence is chosen for
    `cof, if unsure`.
    """
    candidates = make_candidates(
        settings, expand=plan.expands, strength=plan.strengths, scope=plan.scopes
    )

    def thresholds(chosen: Methods) -> dict[str, list[Method]]:
        cof = chosen["cof"].settings
        limits = [Method(cof.changed(max_plain_confidence=limit)) for limit in CONFIDENCES]
        return {"cof, if unsure": limits}

    def compare(chosen: Methods) -> dict[str, Method]:
        cof = chosen["cof"].settings
        usual = usual_methods(cof)
        return {
            **{name: usual[name] for name in ("plain", "whole", "cof")},
            "attention": Method(cof.changed(grounder="attention")),
            "two looks": Method(cof.changed(grounder="prompt+attention")),
            "cof, if unsure": chosen["cof, if unsure"],
            **{name: usual[name] for name in ("oracle", "random")},
        }

    study = Study(
        "Does it help?",
        [lambda chosen: {"cof": candidates}, thresholds],
        compare,
    )
    return study.run(engine, plan.draw(out), plan, out, console)


def run_grid(
    engine: Engine,
    settings: Settings,
    plan: Plan,
    out: Path,
    *,
    sources: Sequence[str] = SOURCES,
    focuses: Sequence[str] = FOCUSES_COMPARED,
    console: Console,
) -> dict[str, Any]:
    """Every grounder with every focus, on small details.

    The strength of each focus (lambda, or alpha where it has none) is chosen on validation scenes,
    looking at the boxes that the model itself writes; it is then frozen for all grounders.

    Raises:
        CofError: a grounder or focus is unknown, or a detector is asked for and none is named.
    """
    _check_names("grounder", sources, {*GROUNDERS, "oracle", "random"} - {"given", "none"})
    _check_names("focus", focuses, set(FOCUSES) - {"none"})
    if "detector" in sources:
        settings.changed(grounder="detector")  # refused without one before anything is asked

    def strengths(focus: str) -> list[Method]:
        base = settings.changed(grounder="prompt", focus=focus)
        if hasattr(FOCUSES[focus], "strength"):
            return make_candidates(base, strength=plan.strengths)
        return make_candidates(base, expand=plan.expands)

    def compare(chosen: Methods) -> dict[str, Method]:
        methods = {"plain": PLAIN}
        for source, (focus, method) in itertools.product(sources, chosen.items()):
            # cropping to the whole image, or drawing a frame around it, changes nothing
            if source != "whole" or hasattr(FOCUSES[focus], "strength"):
                cell = _at(source, method.settings)
                methods[cell.name] = cell
        return methods

    study = Study(
        "Where to look, and how",
        [lambda chosen: {focus: strengths(focus) for focus in focuses}],
        compare,
    )
    grid = {"sources": list(sources), "focuses": list(focuses)}
    return study.run(engine, plan.draw(out), plan, out, console, grid=grid)


def run_synthetic(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Tables I and II of the paper on synthetic MME, POPE and MMBench.

    Lambda, then alpha, are those with which CoF is right most often on validation scenes, the mean
    over the three.
    """
    study = Study(
        "Synthetic MME, POPE and MMBench",
        [
            lambda chosen: {
                "cof": make_candidates(settings, expand=plan.expands[:1], strength=plan.strengths)
            },
            lambda chosen: {"cof": make_candidates(chosen["cof"].settings, expand=plan.expands)},
        ],
        lambda chosen: usual_methods(chosen["cof"].settings),
        max_new_tokens=8,
    )
    style: PromptStyle = "tiny" if engine.dialect.name == "tiny" else "llava"
    return study.run(engine, plan.draw(out, style), plan, out, console)


def _at(source: str, settings: Settings) -> Method:
    if source in ("oracle", "random"):
        return Method(settings, source)  # type: ignore[arg-type]
    return Method(settings.changed(grounder=source))


def _check_names(kind: str, names: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in names if not set(name.split("+")) <= known]
    if unknown or not names:
        raise CofError(
            f"The grid has no {kind} {', '.join(unknown) or 'at all'}; choose of "
            f"{', '.join(sorted(known))}."
        )
