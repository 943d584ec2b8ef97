"""Ask the model itself for the box (the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from cof.engines.base import Engine
from cof.errors import CofWarning
from cof.geometry.box_distribution import expected_mask
from cof.geometry.regions import Region
from cof.prompting.box_parsing import parse_boxes, parse_released
from cof.prompting.dialects import fill, grounding_template, own_words
from cof.types import Decoding, Generation, Grounding, Request, confidence

Boxes = Literal["free", "template"]
Parser = Literal["tolerant", "released"]


@dataclass(frozen=True)
class PromptGrounder:
    """Ask the model itself for the box (paper, section II-B).

    Asks the engine for one reply for each question, decoded greedily. A box that is decoded by a
    template comes with a heat map: the probability that each point is inside it.

    Attributes:
        grounding_prompt: None: the model family's own; `paper`; or a template that holds
            `{question}` or `{first_line}`.
        parser: `tolerant` or `released` (`box_parsing`).
        grounding_max_new_tokens: the longest reply, in tokens.
        min_confidence: a box with a lower confidence counts as not found.
        boxes: `free` or `template` (`cof.settings.Settings`).
    """

    help: ClassVar[str] = "ask the model for the box (the paper); one reply per question"
    engine_calls: ClassVar[int] = 1
    reads_states: ClassVar[bool] = False
    grounding_prompt: str | None = None
    parser: Parser = "tolerant"
    grounding_max_new_tokens: int = 128
    min_confidence: float = 0.0
    boxes: Boxes = "free"

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        template = grounding_template(self.grounding_prompt, engine.dialect)
        asked = [
            Request(
                request.image,
                fill(template, request.prompt),
                notation=own_words(template, request.prompt),
            )
            for request in requests
        ]
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
        if self.parser == "released":
            parsed = parse_released(reply.text, frame)
        else:
            parsed = parse_boxes(reply.text, frame, units=dialect.units, order=dialect.order)
        probability = confidence(reply)
        reason = parsed.reason
        if parsed.boxes and probability is not None and probability < self.min_confidence:
            reason = f"The box's confidence of {probability:.2f} is below {self.min_confidence:g}."
        heat_map = None
        if reply.likely is not None and dialect.box_template is not None:
            heat_map = expected_mask(
                reply.likely, dialect.box_template.numbers, frame, dialect.order
            )
        region = None if reason else Region(boxes=parsed.boxes, heat_map=heat_map)
        return Grounding(region, text=reply.text, confidence=probability, reason=reason)
