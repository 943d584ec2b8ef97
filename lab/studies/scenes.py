"""Studies on the scenes: the questions, the candidates, and the methods compared."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from cof.eval.examples import Example
from cof.eval.json_files import write_atomically
from cof.eval.methods import PLAIN, Method, grounding_key
from cof.eval.results import judge_box
from cof.eval.runs import RESULTS, Run
from cof.eval.store import Replies
from cof.eval.sweep import Choice, choose, make_candidates, tabulate_choices
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.settings import Settings
from cof.tiny.benchmark import NUM_OBJECTS, write_benchmark
from cof.tiny.scenes import SIDE
from cof.types import Scope
from lab.studies.charts import draw_objects
from lab.studies.synthetic import FIRST, write_synthetic

Tasks = dict[str, dict[str, Benchmark]]
"""By name, of each split."""

HEADLINE = "headline"
"""The split that figures are quoted from: it is asked whole, and nothing is chosen on it."""

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
class SomeScenes(Scenes):
    """Only questions of these kinds; empty: all."""

    kinds: tuple[str, ...] = ()

    def read(self, problems: list[str]) -> list[Example]:
        return [e for e in super().read(problems) if not self.kinds or e.kind in self.kinds]


@dataclass(frozen=True)
class Plan:
    """The size of a study, and the values that it tries.

    Attributes:
        scenes: of each number of objects, to measure on.
        split: whose scenes these are.
        validation_scenes: of each number of objects, to choose settings on.
        chosen_on: whose scenes these are.
        num_objects: in the scenes.
        side: of the scenes' canvases, pixels (`cof.tiny.scenes.make_scene`).
        kinds: of questions to measure on; empty: all.
        chosen_kinds: of questions to choose settings on.
        limit: about so many questions of each task and split; None: all.
        strengths, expands, scopes: values of lambda, alpha and scope that are tried.
        batch_size: questions in one forward pass.
        seed: of the control's boxes and of the bootstrap.
    """

    scenes: int = 32
    split: str = "test"
    validation_scenes: int = 8
    chosen_on: str = "validation"
    num_objects: tuple[int, ...] = NUM_OBJECTS
    side: int = SIDE
    kinds: tuple[str, ...] = ()
    chosen_kinds: tuple[str, ...] = ()
    limit: int | None = None
    strengths: tuple[float, ...] = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
    expands: tuple[float, ...] = (1.0, 1.3, 1.6)
    scopes: tuple[Scope, ...] = ("all", "text")
    batch_size: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if self.chosen_on in (HEADLINE, self.split):
            raise CofError(f"Settings are not chosen on {self.chosen_on} scenes: choose on others.")
        if self.split == HEADLINE and self.limit is not None:
            raise CofError("The headline scenes are asked whole: no limit, or the split test.")

    def draw(self, out: Path, style: PromptStyle | None = None) -> Tasks:
        """The questions of both splits, drawn into `data/` of a folder.

        Args:
            out: the folder.
            style: of the prompts of synthetic MME, POPE and MMBench; None: the scenes themselves.
        """
        tasks: Tasks = {}
        sizes = {self.chosen_on: self.validation_scenes, self.split: self.scenes}
        for split, scenes in sizes.items():
            folder = out / "data" / split
            size: Any = {"num_objects": self.num_objects, "scenes": scenes, "side": self.side}
            if style is None:
                write_benchmark(folder, split, **size)
                kinds = self.kinds if split == self.split else self.chosen_kinds
                task = SomeScenes(folder, prompt_style="tiny", limit=self.limit, kinds=kinds)
                tasks[split] = {"scenes": task}
            else:
                write_synthetic(folder, first=FIRST[split], **size)
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
        out: folder of everything; a study that was interrupted goes on.
        choices: by what they are for.
    """

    name: str
    engine: Engine
    tasks: Tasks
    plan: Plan
    out: Path
    console: Console
    max_new_tokens: int = 16
    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def _how(self) -> dict[str, Any]:
        return {"batch_size": self.plan.batch_size, "max_new_tokens": self.max_new_tokens}

    def choose(self, name: str, candidates: Sequence[Method]) -> Settings:
        """The best settings for something, kept in a file of its name."""
        path = self.out / f"chosen-{re.sub(r'[^a-z]+', '-', name)}.json"
        questions, console = self.tasks[self.plan.chosen_on], self.console
        choice = choose(self.engine, questions, candidates, path, console=console, **self._how)
        self.choices[name] = choice
        return choice.settings

    def measure(self, methods: Mapping[str, Method]) -> dict[str, Any]:
        """The results of the methods, by name, on scenes that chose none of them."""
        tasks, console = self.tasks[self.plan.split], self.console
        evaluation = Evaluation(methods, seed=self.plan.seed, **self._how)
        more: Any = {"plan": asdict(self.plan), "study": self.name}
        return evaluation.run(self.engine, tasks, self.out, console=console, **more)

    def write(self, results: dict[str, Any], *tables: dict[str, Any]) -> dict[str, Any]:
        """`results.json`, with tables of the study's own."""
        results["tables"] = [*tables, tabulate_choices(self.choices)]
        write_atomically(self.out / RESULTS, json.dumps(results, indent=1) + "\n")
        return results


def run_effect(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Does it help? The plain model against CoF and its controls, on held-out scenes.

    Lambda, alpha and scope are those with which CoF answers most validation questions rightly; all
    other methods have them too. Then a threshold on the plain answer's confidence is chosen for
    `cof, if unsure`.
    """
    study = Study("Does it help?", engine, plan.draw(out), plan, out, console)
    candidates = make_candidates(
        settings, expand=plan.expands, strength=plan.strengths, scope=plan.scopes
    )
    cof = study.choose("cof", candidates)
    limits = make_candidates(cof, max_plain_confidence=CONFIDENCES)
    unsure = study.choose("cof, if unsure", limits)
    usual = usual_methods(cof)
    methods = {
        **{name: usual[name] for name in ("plain", "whole", "cof")},
        "attention": Method(cof.changed(grounder="attention")),
        "two looks": Method(cof.changed(grounder="prompt+attention")),
        "cof, if unsure": Method(unsure),
        **{name: usual[name] for name in ("oracle", "random")},
    }
    results = study.measure(methods)
    task, replies = Run(out, "", results).read_task("scenes")
    write_atomically(out / "objects.svg", f"{draw_objects(results).svg}\n")
    return study.write(results, *tabulate_boxes(task, replies.score(task.score), methods))


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
    study = Study("Where to look, and how", engine, plan.draw(out), plan, out, console)
    chosen: dict[str, Settings] = {}
    for focus in focuses:
        base = settings.changed(grounder="prompt", focus=focus)
        has_strength = hasattr(FOCUSES[focus], "strength")
        tried = {"strength": plan.strengths} if has_strength else {"expand": plan.expands}
        chosen[focus] = study.choose(focus, make_candidates(base, **tried))
    methods = {"plain": PLAIN}
    for source, (focus, own) in itertools.product(sources, chosen.items()):
        # cropping to the whole image, or drawing a frame around it, changes nothing
        if source != "whole" or hasattr(FOCUSES[focus], "strength"):
            given: Any = source if source in ("oracle", "random") else None
            cell = Method(own if given else own.changed(grounder=source), given)
            methods[cell.name] = cell
    results = study.measure(methods)
    return study.write(results, tabulate_grid(results, sources, focuses))


def run_synthetic(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Tables I and II of the paper on synthetic MME, POPE and MMBench.

    Lambda, then alpha, are those with which CoF is right most often on validation scenes, the mean
    over the three.
    """
    style: PromptStyle = "tiny" if engine.dialect.name == "tiny" else "llava"
    name, tasks = "Synthetic MME, POPE and MMBench", plan.draw(out, style)
    study = Study(name, engine, tasks, plan, out, console, max_new_tokens=8)
    strengths = make_candidates(settings, expand=plan.expands[:1], strength=plan.strengths)
    base = study.choose("cof, its lambda", strengths)
    cof = study.choose("cof", make_candidates(base, expand=plan.expands))
    return study.write(study.measure(usual_methods(cof)))


def _check_names(kind: str, names: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in names if not set(name.split("+")) <= known]
    if unknown or not names:
        wrong, there_are = ", ".join(unknown) or "at all", ", ".join(sorted(known))
        raise CofError(f"The grid has no {kind} {wrong}; choose of {there_are}.")


def tabulate_grid(
    results: Mapping[str, Any], sources: Sequence[str], focuses: Sequence[str]
) -> dict[str, Any]:
    """One row for each grounder, one column for each focus."""
    cells = next(iter(results["tasks"]["scenes"]["groups"].values()))
    rows = [["(plain)", *[f"{cells['plain']['value']:.3f}"] * len(focuses)]]
    for source in sources:
        row = [cells.get(f"{source} x {focus}") for focus in focuses]
        shown = [f"{c['value']:.3f} ({c['difference']:+.3f})" if c else "" for c in row]
        rows.append([source, *shown])
    return {
        "name": "grid",
        "title": "Accuracy, and how much above the plain model",
        "text": "Small details; the settings of each focus are the same for all grounders.",
        "head": ["looking at", *focuses],
        "rows": rows,
    }


def tabulate_boxes(
    task: Benchmark, replies: Replies, methods: Mapping[str, Method]
) -> list[dict[str, Any]]:
    """Whether the plain answer and the box of `cof` are right, together, and what each method makes
    of it: of the task's first group, questions about one object; empty: there are none."""
    answers = replies.answers({name: method.key for name, method in methods.items()})
    boxes = replies.records.get(grounding_key(methods["cof"].settings.grounders[0]), {})
    cells = {
        f"plain {answer}, box {box}": dict.fromkeys(["n", *answers], 0)
        for answer in ("right", "wrong")
        for box in ("right", "wrong")
    }
    for e in next(iter(task.groups(replies.examples).values())):
        if e.single and e.id in boxes:
            right = (answers["plain"][e.id].right, judge_box(e, boxes[e.id])[0])
            answer, box = ("right" if each else "wrong" for each in right)
            cell = cells[f"plain {answer}, box {box}"]
            cell["n"] += 1
            for name, records in answers.items():
                cell[name] += bool(records[e.id].right)
    table = {
        "name": "scenes-two-by-two",
        "title": "right or wrong answers, right or wrong boxes",
        "text": "A box is right when its centre is in the one object asked about. Numbers: how "
        "many of the cell's questions each method answers rightly.",
        "head": ["cell", "n", *answers],
        "rows": [[name, *cell.values()] for name, cell in cells.items()],
    }
    return [table] if any(cell["n"] for cell in cells.values()) else []
