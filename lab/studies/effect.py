"""When looking closer pays: the effect over the training of the embedded model.

`python -m lab.studies effect CHECKPOINT... --out results/effect` measures each checkpoint (a folder
that `lab.training.export` wrote, `tiny` or `tiny-early`) on the same test scenes, with the same
settings, and draws the gain over the plain model against how often the model finds the object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.eval.evaluate import Evaluation, usual_methods
from cof.eval.json_files import write_atomically
from cof.eval.methods import Method, grounding_key
from cof.eval.report.blocks import STATISTICS
from cof.eval.report.charts import draw
from cof.eval.report.document import Block, Cell, Heading, Number, Table, Text, markdown
from cof.pipeline import CoF
from cof.tiny.benchmark import FINE, write_benchmark
from lab.studies.charts import errorbars, name_lines
from lab.studies.scenes import SomeScenes

COMPARED = ("cof", "two looks", "oracle", "random")
ENDS = {"value": "", "low": "_low", "high": "_high"}


def measure(
    checkpoints: Sequence[Path], out: Path, *, scenes: int, console: Console
) -> list[dict[str, Any]]:
    """The numbers of each checkpoint, by how well they find the object.

    Args:
        checkpoints: folders, or names of embedded models.
        out: a folder for each checkpoint goes into it; an interrupted run goes on.
        scenes: test scenes of each number of objects; questions about small details are asked.
        console: for progress.
    """
    data = out / "data"
    write_benchmark(data, "test", scenes=scenes)
    task = SomeScenes(data, prompt_style="tiny", kinds=FINE)
    points = []
    for checkpoint in checkpoints:
        cof = CoF.from_pretrained(checkpoint, dtype="bfloat16", preset="tiny:tiny")
        settings = cof.settings
        methods = usual_methods(settings)
        methods["two looks"] = Method(settings.changed(grounder="prompt+attention"))
        evaluation = Evaluation(methods, (settings,), batch_size=48, max_new_tokens=16)
        folder = out / checkpoint.name
        results = evaluation.run(cof.engine, {"scenes": task}, folder, console=console)
        numbers = results["tasks"]["scenes"]
        boxes = numbers["grounding"][grounding_key(settings.grounders[0])]["fine"]
        points.append(
            {
                "checkpoint": checkpoint.name,
                "weights": results["about"]["weights"],
                "questions": numbers["questions"],
                "centre": boxes["centre"],
                "methods": numbers["groups"]["fine"],
                "versions": results["about"]["versions"],
                "settings": results["methods"]["cof"],
            }
        )
    return sorted(points, key=lambda point: float(point["centre"]["value"]))


def write_effect(points: Sequence[Mapping[str, Any]], out: Path) -> None:
    """`effect.json`, `table.md` and `effect.svg` in a folder."""
    head, rows = ["checkpoint", "plain", "centre inside"], []
    for name in COMPARED:
        head += [name, "fixed/broken", "p"]
    for point in points:
        figures = (point["methods"]["plain"], point["centre"])
        row: list[Cell] = [point["checkpoint"], *(Number.of(each, ".3f") for each in figures)]
        for method in (point["methods"][name] for name in COMPARED):
            tested = f"{method['fixed']}/{method['broken']}", Number(method["p"], "p")
            row += [Number.of(method, "+.3f", "difference"), *tested]
        rows.append(row)
    about = (
        f"{points[0]['questions']} questions about small details of test scenes, checkpoints of "
        f"the embedded model's training, all with `{points[0]['settings']}`. "
        "centre inside: how often the box that the model writes has its centre in the object."
    )
    blocks: list[Block] = [Heading("When looking closer pays", 1), Text(about)]
    blocks += [Table("effect", head, rows), Text(STATISTICS)]

    def plot(figure: Any) -> None:
        axes, at = figure.subplots(), [point["centre"]["value"] for point in points]
        for name in COMPARED:
            gains = [
                {end: point["methods"][name][f"difference{part}"] for end, part in ENDS.items()}
                for point in points
            ]
            errorbars(axes, at, gains, name)
        axes.axhline(0, color="#555555", linewidth=1)
        axes.set(
            xlabel="boxes with their centre in the object", ylabel="accuracy gained over plain"
        )
        name_lines(axes)

    chart = draw("effect", "Gain on small details over the model's training", plot)
    write_atomically(out / "effect.json", json.dumps(list(points), indent=1) + "\n")
    write_atomically(out / "table.md", markdown(blocks))
    write_atomically(out / "effect.svg", f"{chart.svg}\n")
