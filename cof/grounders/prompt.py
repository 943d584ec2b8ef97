"""Ask the model itself for the box (the paper)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from cof.engines.base import Engine
from cof.errors import CofError, CofWarning
from cof.geometry.heatmap import expected_mask
from cof.geometry.regions import Region
from cof.grounders.base import Grounder
from cof.options import check_characters, count, flag, fraction, option
from cof.prompting.box_parsing import parse_boxes, parse_released
from cof.prompting.dialects import PAPER_PROMPT, fill
from cof.types import Decoding, Generation, Grounding, Request, confidence

Boxes = Literal["free", "template"]

UNSURE = "A box whose confidence (0..1) is lower counts as not found"


def _template(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value == "paper"):
        return value
    if not isinstance(value, str) or not re.search(r"\{(question|first_line)\}", value):
        raise CofError(
            f"{name} {value!r} does not say where the question goes: write {{question}} or "
            "{first_line} in it, or 'paper' for the paper's prompt."
        )
    check_characters(name, value)
    return value


@dataclass(frozen=True)
class Prompt(Grounder):
    """Ask the model itself for the box (paper, section II-B).

    Asks the engine for one reply for each question, decoded greedily. A box that is decoded by a
    template comes with a heat map: the probability that each point is inside it.

    `released` reads the reply with the released code's regular expression.
    """

    name: ClassVar[str] = "prompt"
    help: ClassVar[str] = "ask the model for the box (the paper); one reply per question"
    engine_calls: ClassVar[int] = 1
    grounding_prompt: str | None = option(
        None,
        "The question that asks for the box: 'paper', or a text that holds {question} or "
        "{first_line}; default: the model family's own",
        _template,
    )
    boxes: Boxes = option(
        "free",
        "How the box is written: free (the paper), or by a template, the format of the model "
        "family, where the model chooses the numbers alone (always readable, and faster)",
        get_args(Boxes),
    )
    grounding_max_new_tokens: int = option(128, "The longest reply of stage 1, in tokens", count)
    min_confidence: float = option(0.0, UNSURE, fraction)
    released: bool = option(False, "Read the reply as the released code does", flag)

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        own = self.grounding_prompt
        template = PAPER_PROMPT if own == "paper" else own or engine.dialect.template
        asked = []
        for request in requests:
            prompt, notation = fill(template, request.prompt)
            asked.append(replace(request.asking(prompt, notation), thinks=False))
        box_template = engine.dialect.box_template if self.boxes == "template" else None
        if self.boxes == "template" and box_template is None:
            warnings.warn(
                f"No box template is known for {engine.dialect.name} models, so boxes='template' "
                "has no effect.",
                CofWarning,
                stacklevel=2,
            )
        decoding = Decoding(self.grounding_max_new_tokens, box_template=box_template)
        replies = engine.generate(asked, decoding)
        return [
            self.read(engine, request.image.size, reply)
            for request, reply in zip(asked, replies, strict=True)
        ]

    def read(self, engine: Engine, image_wh: tuple[int, int], reply: Generation) -> Grounding:
        """The boxes of a reply about an image of this size."""
        frame, dialect = engine.frame(image_wh), engine.dialect
        template = dialect.box_template if self.boxes == "template" else None
        if self.released:
            parsed = parse_released(reply.text, frame)
        else:
            step = float(template.numbers[1]) - float(template.numbers[0]) if template else 0.0
            parsed = parse_boxes(reply.text, frame, dialect.units, dialect.order, step)
        heat_map = None
        if template is not None and reply.likely is not None:
            heat_map = expected_mask(reply.likely, template.numbers, frame, dialect.order)
        region = Region(boxes=parsed.boxes, heat_map=heat_map) if parsed.boxes else None
        reason = parsed.reason
        if reply.reasoning and not reply.text:
            reason = "The reply ended within its thoughts: raise grounding_max_new_tokens."
        found = Grounding(region, reply.text, confidence(reply), reason)
        return found.if_sure(self.min_confidence)
