"""Tables I and II of the paper on the embedded benchmark's three faces.

Lambda, then alpha, are those with which CoF, looking at its own boxes, is right most often on
validation scenes, the mean over the three faces; they are then frozen, for every other source of
boxes too, and the test scenes are read after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.eval import facets
from cof.eval.clusters import changed, compared
from cof.eval.compare import Comparison
from cof.eval.data.base import Benchmark, PromptStyle
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.methods import PLAIN, Method, Where
from cof.eval.store import Store
from cof.settings import Settings
from cof.tiny.benchmark import NUM_OBJECTS
from cof.tiny.faces import VALIDATION, write_faces
from cof.tiny.scenes import SIDE

FACES: Mapping[str, type[Benchmark]] = {"mme": MME, "pope": POPE, "mmbench": MMBench}

COMPARED: tuple[Where, ...] = ("whole", "cof", "oracle", "random")


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Attributes:
        scenes: test scenes of each num_objects level, for each face.
        validation_scenes: the same for choosing settings.
        num_objects: numbers of objects.
        side: of the scenes' canvases, pixels (`cof.tiny.scenes.make_scene`).
        strengths: lambda, tried with the first alpha.
        expands: alpha, tried with the best lambda.
        limit: about so many questions of each face and split; None: all.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.
        seed: of the control's boxes and of the bootstrap.
    """

    scenes: int = 16
    validation_scenes: int = 4
    num_objects: tuple[int, ...] = NUM_OBJECTS
    side: int = SIDE
    strengths: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0, 32.0)
    expands: tuple[float, ...] = (1.0, 1.3, 1.6)
    limit: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 8
    seed: int = 0

    @classmethod
    def quick(cls) -> Plan:
        """A look at whether everything runs: too few questions to conclude anything."""
        return cls(
            scenes=1,
            validation_scenes=1,
            num_objects=(4, 12),
            strengths=(4.0,),
            expands=(1.0,),
        )


def run_faces(
    engine: Engine, settings: Settings, plan: Plan, out: Path, *, console: Console
) -> dict[str, Any]:
    """Choose settings on the validation scenes, and compare all methods on the test scenes.

    Args:
        engine: the model.
        settings: all that is not chosen here, such as stage 1's prompt.
        plan: how much.
        out: scenes and answers go to `work/` in it; a run that was killed goes on from there.
        console: for progress.

    Returns:
        What `results.json` holds: `faces`, `{face: {figures: {figure: {method: numbers}}}}`.

    Raises:
        CofError: `out` holds answers of another model or other questions.
    """
    prompt_style: PromptStyle = "tiny" if engine.dialect.name == "tiny" else "llava"
    work = out / "work"
    for split, scenes, first in (
        ("validation", plan.validation_scenes, VALIDATION),
        ("test", plan.scenes, 0),
    ):
        data = work / split / "data"
        write_faces(data, num_objects=plan.num_objects, scenes=scenes, first=first, side=plan.side)
    console.print("Choosing lambda and alpha on validation scenes")
    shares: dict[str, float] = {}

    def best(cells: list[Settings]) -> Settings:
        shares.update(_validated(engine, settings, cells, plan, prompt_style, work, console))
        return max(cells, key=lambda cell: shares[Method.of("cof", cell).key])

    mildest = settings.changed(expand=plan.expands[0])
    chosen = best([mildest.changed(strength=strength) for strength in plan.strengths])
    chosen = best([chosen.changed(expand=expand) for expand in plan.expands])
    methods = {"plain": PLAIN} | {where: Method.of(where, chosen) for where in COMPARED}
    console.print(f"Comparing on test scenes with {methods['cof'].key}")
    faces: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for task, folder in _tasks(work / "test", plan, prompt_style):
        comparison = _comparison(chosen, methods, plan)
        results = comparison.run(engine, task, folder, console=console)
        about = results["about"]
        faces[task.name] = _face(task, methods, results, folder, plan.seed)
    del about["benchmark"], about["data"]
    return {
        "about": about,
        "plan": asdict(plan),
        "choice": {
            "rule": "highest accuracy on validation scenes, the mean over the faces; of equals "
            "the mildest setting",
            "strength": chosen.strength,
            "expand": chosen.expand,
            "scope": chosen.scope,
            "validation": shares,
        },
        "methods": {name: method.key for name, method in methods.items()},
        "faces": faces,
    }


def _validated(
    engine: Engine,
    settings: Settings,
    cells: list[Settings],
    plan: Plan,
    prompt_style: PromptStyle,
    work: Path,
    console: Console,
) -> dict[str, float]:
    """Accuracy of the plain model and of CoF with each settings, the mean over the faces."""
    methods = {Method.of("cof", cell).key: Method.of("cof", cell) for cell in cells}
    found: dict[str, list[float]] = {}
    for task, folder in _tasks(work / "validation", plan, prompt_style):
        comparison = _comparison(settings, {"plain": PLAIN} | methods, plan)
        results = comparison.run(engine, task, folder, console=console)
        for key, row in results["groups"]["all"].items():
            found.setdefault(key, []).append(row["accuracy"])
    return {key: round(sum(values) / len(values), 6) for key, values in found.items()}


def _tasks(folder: Path, plan: Plan, prompt_style: PromptStyle) -> Iterator[tuple[Benchmark, Path]]:
    """Each face of a split, and where its answers go."""
    for name, reader in FACES.items():
        yield (
            reader(folder / "data" / name, "official", prompt_style, None, plan.limit),
            folder / name,
        )


def _comparison(settings: Settings, methods: Mapping[str, Method], plan: Plan) -> Comparison:
    return Comparison(
        settings,
        methods,
        batch_size=plan.batch_size,
        max_new_tokens=plan.max_new_tokens,
        seed=plan.seed,
    )


def _face(
    task: Benchmark,
    methods: Mapping[str, Method],
    results: Mapping[str, Any],
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """All numbers of one face."""
    examples = task.examples
    places = facets.drawn(task.path, examples)
    store = Store(folder / "answers.jsonl")
    said = {name: store.method(method.key) for name, method in methods.items()}

    def table(read: Any) -> dict[str, Any]:
        by_method = {name: read(examples, replies, places) for name, replies in said.items()}
        return {
            figure: compared({name: by_method[name][figure] for name in said}, seed=seed)
            for figure in by_method["plain"]
        }

    everything = {name: facets.levels(examples, replies, places) for name, replies in said.items()}
    plain = everything["plain"]["all"]
    return {
        "questions": len(examples),
        "images": len({place.scene for place in places.values()}),
        "figures": table(facets.FIGURES[task.name]),
        "levels": table(facets.levels),
        "unparsed": {
            name: sum(record.parsed is None for record in replies.values())
            for name, replies in said.items()
        },
        "found": results["found"],
        "grounding": results["grounding"],
        "changed": {
            name: dict(zip(("fixed", "broken"), changed(figures["all"], plain), strict=True))
            for name, figures in everything.items()
            if name != "plain"
        },
        "seconds": results["seconds"],
    }
