"""Questions that a method fixed or broke, with their images and the boxes drawn."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from string import ascii_uppercase

from PIL import Image

from cof.errors import CofError
from cof.eval.data.choice import list_options
from cof.eval.examples import Embedded, Example, open_image
from cof.eval.methods import grounding_key
from cof.eval.report.document import Block, Card, Heading, Text
from cof.eval.runs import Run
from cof.eval.store import Record
from cof.geometry.boxes import FULL
from cof.geometry.regions import Region
from cof.viz.panels import overlay

_MOST = 12  # fixed questions of a run that are shown, and broken ones
_SIDE = 420  # of an image's longer side in the page, pixels


def make_gallery(run: Run, task: str) -> list[Block]:
    """Fixed and broken questions of `cof`, the first ones; a sentence where the replies are not
    there, or are those of another run."""
    changed = run.results["tasks"][task]["changed"].get("cof")
    if not changed or not any(changed.values()):
        return []
    methods = {name: run.methods[name] for name in ("plain", "cof")}
    try:
        benchmark, replies = run.read_task(task)
        replies = replies.score(benchmark.score)
        answers = replies.answers({name: method.key for name, method in methods.items()})
    except CofError:
        return [Text("The replies are not there, so no questions are shown.")]
    # of several grounders the first one's
    boxes = replies.records.get(grounding_key(methods["cof"].settings.grounders[0]), {})
    by_id, images = {example.id: example for example in replies.examples}, run.find_images(task)
    cards = []
    for outcome, ids in changed.items():
        for id in ids[:_MOST]:
            example, said = by_id[id], {name: records[id] for name, records in answers.items()}
            image = _draw_image(images.get(id), example, boxes.get(id), said["cof"])
            options = dict(zip(ascii_uppercase, example.options, strict=False))
            true = options.get(example.answer)
            listed = f"{example.question or example.prompt}\n{list_options(example.options)}"
            card = Card(
                outcome=outcome,
                kind=example.kind,
                question=listed.rstrip("\n"),
                truth=f"{example.answer}. {true}" if true else example.answer,
                answers=[(name, each.text, bool(each.right)) for name, each in said.items()],
                image=image,
            )
            cards.append(card)
    parts = [f"{len(ids)} {outcome}" for outcome, ids in changed.items()]
    title = "What CoF changed" if len(run.results["tasks"]) == 1 else f"{task}: what CoF changed"
    return [
        Heading(title),
        Text(
            f"Against the plain model: {', '.join(parts)}; of each at most {_MOST} are shown. "
            "Dashed: the box found. Solid: where the model was made to look. Dotted: the true "
            "region, where the data has it."
        ),
        *cards,
    ]


def _draw_image(
    source: Path | Embedded | None, example: Example, found: Record | None, cof: Record
) -> str:
    """A WebP file in base64; empty where the image is no longer there."""
    if source is None:
        return ""
    try:
        image = open_image(source)
    except CofError:
        return ""
    panel = overlay(
        image,
        Region(boxes=cof.boxes, whole=cof.boxes == (FULL,)) if cof.boxes else None,
        found=found.boxes if found else (),
        true=example.region,
    )
    panel.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    panel.save(file, "WEBP", quality=80)
    return base64.b64encode(file.getvalue()).decode()
