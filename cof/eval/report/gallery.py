"""Questions that a method fixed or broke, with their images and the boxes drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from string import ascii_uppercase

from PIL import Image

from cof.errors import CofError
from cof.eval.examples import Embedded, Example
from cof.eval.images import open_image
from cof.eval.methods import Method, grounding_key
from cof.eval.replies import Replies
from cof.eval.report.document import Block, Card, Gallery, Heading, Text
from cof.eval.results import judge_box
from cof.eval.store import Record
from cof.geometry.boxes import FULL
from cof.geometry.regions import Region
from cof.prompting.dialects import OPTION_LETTER, SHORT_ANSWER
from cof.viz.panels import overlay

Images = Mapping[str, Path | Embedded]
"""The image of each question, by its id; empty where the data is no longer there."""

_MOST = 12  # fixed questions, and broken ones, of a run
_SIDE = 420  # of an image's longer side in the page, pixels
_QUALITY = 80  # of its WebP file


@dataclass(frozen=True)
class Kept:
    """The replies and images of a task.

    Attributes:
        replies: scored.
        methods: by name.
        images: those that are still there.
    """

    replies: Replies
    methods: Mapping[str, Method]
    images: Images

    @property
    def grounding(self) -> Mapping[str, Record]:
        """The boxes of `cof` in stage 1, of several grounders the first's; empty without one."""
        settings = self.methods["cof"].settings
        key = grounding_key(settings.grounders[0])
        return self.replies.records.get(key, {})


Changed = Mapping[str, Mapping[str, Sequence[str]]]
"""`{method: {"fixed": [id, ...], "broken": [id, ...]}}`."""


def make_gallery(kept: Kept, changed: Changed, title: str) -> list[Block]:
    """Fixed and broken questions of `cof`, the first ones of each kind in turn.

    Args:
        kept: the run's replies and images.
        changed: the ids of the questions.
        title: over it.

    Returns:
        Nothing where `cof` is not among the methods or changed no answer.
    """
    changed_by_cof = changed.get("cof", {})
    if not any(changed_by_cof.values()):
        return []
    by_id = {example.id: example for example in kept.replies.examples}
    cards: list[Card] = []
    parts: list[str] = []
    for outcome, ids in changed_by_cof.items():
        examples = take_turns([by_id[id] for id in ids])[:_MOST]
        cards += [_make_card(kept, example, outcome) for example in examples]
        parts.append(f"{len(ids)} {outcome}, {len(examples)} shown")
    gone = sum(card.image is None for card in cards)
    missing = f" {gone} of the {len(cards)} images are no longer there." if gone else ""
    return [
        Heading(title),
        Text(
            f"Against the plain model: {'; '.join(parts)}; the first ones of each kind in turn. "
            "Dashed: the box found. Solid: where the model was made to look. Dotted: the true "
            f"region, where the data has it.{missing}"
        ),
        Gallery(cards),
    ]


def take_turns(examples: Sequence[Example]) -> list[Example]:
    """The first one of every kind, then the second ones, and so on."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    return [e for e in chain.from_iterable(zip_longest(*kinds.values())) if e is not None]


def _make_card(kept: Kept, example: Example, outcome: str) -> Card:
    grounding = kept.grounding.get(example.id)
    records = {
        name: kept.replies.records[kept.methods[name].key][example.id] for name in ("plain", "cof")
    }
    data, size = _draw_image(kept.images.get(example.id), example, grounding, records["cof"])
    return Card(
        outcome=outcome,
        kind=example.kind,
        question=write_question(example),
        truth=write_truth(example),
        answers=[(name, r.text, bool(r.right)) for name, r in records.items()],
        note=_note(example, grounding),
        image=data,
        image_wh=size,
    )


def write_question(example: Example) -> str:
    """The question as a person would ask it, with its options.

    >>> write_question(Example("1", Path("a.png"), "What is it?" + SHORT_ANSWER, "cat"))
    'What is it?'
    """
    if not example.question:
        return example.prompt.removesuffix(SHORT_ANSWER).removesuffix(OPTION_LETTER)
    options = zip(ascii_uppercase, example.options, strict=False)
    return "\n".join([example.question, *(f"{letter}. {text}" for letter, text in options)])


def write_truth(example: Example) -> str:
    """The true answer, with the text of the option if it is one's letter."""
    chosen = dict(zip(ascii_uppercase, example.options, strict=False)).get(example.answer)
    return f"{example.answer}. {chosen}" if chosen else example.answer


def _note(example: Example, reply: Record | None) -> str:
    if reply is None:
        return ""
    if not reply.boxes:
        return f"No box found: {reply.text!r}." if reply.text else "No box found."
    parts = []
    if reply.confidence is not None:
        parts.append(f"confidence {reply.confidence:.2f}")
    if example.region is not None:
        parts.append(f"IoU with the true region {judge_box(example, reply).iou:.2f}")
    return f"Box found: {', '.join(parts)}." if parts else "Box found."


def _draw_image(
    source: Path | Embedded | None, example: Example, reply: Record | None, cof: Record
) -> tuple[bytes | None, tuple[int, int]]:
    if source is None or (isinstance(source, Path) and not source.is_file()):
        return None, (0, 0)
    try:
        image = open_image(source)
    except CofError:
        return None, (0, 0)
    panel = overlay(
        image,
        Region(boxes=cof.boxes, whole=cof.boxes == (FULL,)) if cof.boxes else None,
        found=reply.boxes if reply else (),
        true=example.region,
    )
    panel.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    panel.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue(), panel.size
