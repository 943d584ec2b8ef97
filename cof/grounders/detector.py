"""Look where a detector finds the question's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.prompting.noun_phrases import object_words
from cof.types import Grounding, Request


@dataclass(frozen=True)
class DetectorGrounder:
    """An open-vocabulary detector beside the model (OWLv2, arXiv 2306.09683; Grounding DINO,
    arXiv 2303.05499).

    It looks for each object that the question names (`noun_phrases.object_words`); the best box of
    each counts if its score is high enough. The confidence is the lowest score of those.

    Attributes:
        detector: folder or hub id, loaded when it is first needed.
        threshold: the lowest score that counts, 0..1.
        min_confidence: likewise, the caller's.
    """

    help: ClassVar[str] = "where an open-vocabulary detector finds the question's objects"
    engine_calls: ClassVar[int] = 0
    reads_states: ClassVar[bool] = False
    detector: str | None = None
    threshold: float = 0.1
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.detector is None:
            raise CofError(
                "grounder 'detector' needs a detector: pass the folder or hub id of one, such as "
                "detector='google/owlv2-base-patch16-ensemble' (command line: --detector ID)."
            )

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        from cof.grounders.detector_model import load_detector

        assert self.detector is not None
        detector = load_detector(self.detector)
        least = max(self.threshold, self.min_confidence)
        groundings = []
        for request in requests:
            phrases = object_words(request.prompt)
            found = [
                best
                for best in (detector.find(request.pil_image, phrase) for phrase in phrases)
                if best is not None and best[1] >= least
            ]
            if found:
                region = Region(boxes=tuple(box for box, _ in found))
                groundings.append(Grounding(region, confidence=min(score for _, score in found)))
            else:
                named = ", ".join(phrases)
                reason = f"The detector finds no {named} with a score of {least:g} or more."
                groundings.append(Grounding(None, reason=reason))
        return groundings
