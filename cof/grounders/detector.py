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

    It looks for each object that the question names (`noun_phrases.object_words`), and takes the
    best box of each whose score is high enough. The confidence is the lowest of their scores.

    Asks nothing of the engine; the detector runs once for each object.

    Attributes:
        detector: folder or hub id of the detector, which is loaded at the first use.
        threshold: the lowest score that counts, 0..1.
        min_confidence: likewise, from the settings; the higher of the two holds.
    """

    help: ClassVar[str] = (
        "where an open-vocabulary detector finds the question's objects; the model is not asked"
    )
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
        threshold = max(self.threshold, self.min_confidence)
        groundings = []
        for request in requests:
            phrases = object_words(request.prompt)
            detections = [detector.find(request.pil_image, phrase) for phrase in phrases]
            good = [each for each in detections if each is not None and each[1] >= threshold]
            if good:
                region = Region(boxes=tuple(box for box, _ in good))
                groundings.append(Grounding(region, confidence=min(score for _, score in good)))
            else:
                named = ", ".join(phrases)
                reason = f"The detector finds no {named} with a score of {threshold:g} or more."
                groundings.append(Grounding(None, reason=reason))
        return groundings
