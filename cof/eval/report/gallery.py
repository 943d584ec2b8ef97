"""Questions that a method fixed or broke, with their images and the boxes drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
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
from cof.prompting.dialects import OPTION_LETTER, SHORT_ANSWER
from cof.viz.panels import overlay

_MOST = 12  # fixed questions of a run that are shown, and broken ones
_SIDE = 420  # of an image's longer side in the page, pixels


def make_gallery(run: Run, task: str) -> list[Block]:
    """Fixed and broken questions of `cof`, the first ones of each kind in turn; a sentence
    where the replies are not there."""
    changed = run.results["tasks"][task]["changed"].get("cof")
    if not changed or not any(changed.values()):
        return []
    kept = run.read_scored(task)
    if kept is None:
        return [Text("The replies are not there, so no questions are shown.")]
    replies, images = kept
    methods = run.methods
    answers = replies.answers({name: methods[name].key for name in ("plain", "cof")})
    # of several grounders the first one's
    boxes = replies.records.get(grounding_key(methods["cof"].settings.grounders[0]), {})
    by_id = {example.id: example for example in replies.examples}
    cards = []
    for outcome, ids in changed.items():
        for id in ids[:_MOST]:
            said = {name: records[id] for name, records in answers.items()}
            image = _draw_image(images.get(id), by_id[id], boxes.get(id), said["cof"])
            cards.append(_make_card(by_id[id], outcome, said, image))
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


def _make_card(example: Example, outcome: str, said: Mapping[str, Record], image: str) -> Card:
    options = dict(zip(ascii_uppercase, example.options, strict=False))
    asked = example.prompt.removesuffix(SHORT_ANSWER).removesuffix(OPTION_LETTER)
    listed = f"{example.question}\n{list_options(example.options)}".rstrip("\n")
    true = options.get(example.answer)
    return Card(
        outcome=outcome,
        kind=example.kind,
        question=listed if example.question else asked,
        truth=f"{example.answer}. {true}" if true else example.answer,
        answers=[(name, record.text, bool(record.right)) for name, record in said.items()],
        image=image,
    )


def _draw_image(
    source: Path | Embedded | None, example: Example, found: Record | None, cof: Record
) -> str:
    """A WebP file in base64; empty where the image is no longer there."""
    try:
        image = None if source is None else open_image(source)
    except CofError:
        image = None
    if image is None:
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
