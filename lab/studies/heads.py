"""Are a few heads better than a layer? `python -m lab.studies.heads OUT MODEL`.

Heads of an embedded model are chosen by the rule of arXiv 2503.06287, which needs no labels, and by
labels. On fresh scenes, which chose nothing, the attention grounder reads them in place of its
layer. OUT/heads-MODEL.json has the figures; answers go to OUT/data/; an interrupted study goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cof import CoF
from cof.engines.base import Engine, Layers
from cof.eval.evaluate import Evaluation
from cof.eval.figures import Figure, compare, find_clusters, share
from cof.eval.heads import Maps, choose_heads, read_maps
from cof.eval.json_files import write_atomically
from cof.eval.methods import PLAIN, Method, grounding_key
from cof.eval.results import judge_box
from cof.eval.runs import Run
from cof.geometry.boxes import centre, contains_point
from cof.geometry.heatmap import HeatMap, sliding_window
from cof.tiny.benchmark import FINE, write_benchmark
from cof.types import Request, pil_image
from lab.studies.scenes import SomeScenes

CHOSEN_ON = ("validation", 5000, 20)
MEASURED_ON = ("test", 9220, 440)
COUNTS = (3, 4)  # the paper's; the best one of 1 to 6 on development scenes


def main(out: Path, model: str, chosen_on: Any = CHOSEN_ON, measured_on: Any = MEASURED_ON) -> None:
    """Choose, ask and compare."""
    cof, console = CoF.from_pretrained(model, dtype="bfloat16"), Console(stderr=True)
    run, tasks = out / "data" / f"heads-{model}", []
    for split, first, scenes in (chosen_on, measured_on):
        folder = run / "data" / split
        write_benchmark(folder, split, scenes=scenes, first=first)
        tasks.append(SomeScenes(folder, prompt_style="tiny", kinds=FINE))
    maps = [*read_maps(cof.engine, tasks[0].examples)]
    boxes = [example.region or (0.0, 0.0, 1.0, 1.0) for example in tasks[0].examples]
    chosen = {
        "without labels": choose_heads(maps, 8),
        "with labels": choose_by_labels(maps, boxes, 8),
    }
    console.print(json.dumps(chosen))
    local, product = chosen["without labels"], cof.settings.changed(grounder="attention")
    mean = product.changed(average="arithmetic")
    methods = {"plain": PLAIN, "attention": Method(mean)} | {
        "heads, sum": Method(mean.changed(grounder_heads=local[: COUNTS[0]])),
        "heads, product": Method(product.changed(grounder_heads=local[: COUNTS[1]])),
        "layer, product": Method(product),
    }
    remember_attention(cof.engine)
    evaluation = Evaluation(methods, batch_size=48, max_new_tokens=16)
    results = evaluation.run(cof.engine, {"scenes": tasks[1]}, run, console=console)
    report = {
        "about": results["about"],
        "chosen_on": [*chosen_on, len(maps)],
        "measured_on": [*measured_on, len(tasks[1].examples)],
        "chosen": chosen,
        "methods": results["methods"],
        **measure(Run(run, "", results), methods),
    }
    write_atomically(out / f"heads-{model}.json", json.dumps(report, indent=1) + "\n")


def choose_by_labels(
    maps: Sequence[Maps], boxes: Sequence[tuple[float, float, float, float]], count: int
) -> list[int]:
    """The heads whose own boxes have their centre in the true one most often, the best first."""
    right: NDArray[np.int_] = np.zeros(len(maps[0]), dtype=int)
    for question, true in zip(maps, boxes, strict=True):
        h, w = question.shape[1:]
        edges = np.linspace(0, 1, w + 1), np.linspace(0, 1, h + 1)
        for number, head in enumerate(question):
            box, _ = sliding_window(HeatMap(head + 1e-12, *edges), (w, h))
            right[number] += contains_point(true, centre(box))
    return [int(head) for head in np.argsort(-right, kind="stable")[:count]]


def remember_attention(engine: Engine) -> None:
    """Let the grounders of one batch read the attention once: they ask the same of it."""
    read: Callable[[Sequence[Request]], list[Any]] = engine.image_attentions  # type: ignore[attr-defined]
    known: dict[tuple[int, str], tuple[Request, Any]] = {}  # the requests keep their ids alive

    def recall(requests: Sequence[Request], layers: Layers | None = None) -> list[Any]:
        keys = [(id(pil_image(request.image)), request.prompt) for request in requests]
        if not all(key in known for key in keys):
            known.clear()
            known.update(zip(keys, zip(requests, read(requests), strict=True), strict=True))
        return [
            maps[list((layers or range)(len(maps)))] for _, maps in map(known.__getitem__, keys)
        ]

    engine.image_attentions = recall  # type: ignore[attr-defined]


def measure(run: Run, methods: Mapping[str, Method]) -> dict[str, Any]:
    """Accuracy over plain and over the layer's mean, and how often the box's centre lies in the
    object; what is called plain in `over_attention` and `centres` is attention."""
    task, replies = run.read_task("scenes")
    clusters = find_clusters(replies.examples)
    answers = replies.score(task.score).answers({name: each.key for name, each in methods.items()})
    right: dict[str, Figure] = {
        name: share({id: bool(record.right) for id, record in each.items()}, clusters)
        for name, each in answers.items()
    }
    centres: dict[str, Figure] = {}
    for name in right.keys() - {"plain"}:
        found = replies.records[grounding_key(methods[name].settings.grounders[0])]
        units = {e.id: judge_box(e, found[e.id])[0] for e in replies.examples}
        centres[name] = share(units, clusters)

    def over_attention(figures: Mapping[str, Figure]) -> Any:
        others = {name: figures[name] for name in methods if name not in ("plain", "attention")}
        return compare({"plain": figures["attention"], **others})

    return {
        "answers": compare(right),
        "over_attention": over_attention(right),
        "centres": over_attention(centres),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
