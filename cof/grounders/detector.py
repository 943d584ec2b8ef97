"""Look where a detector finds the question's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.grounders.base import Grounder
from cof.options import fraction, option, path
from cof.prompting.noun_phrases import object_words
from cof.types import Grounding, Request


@dataclass(frozen=True)
class Detector(Grounder):
    """An open-vocabulary detector beside the model (OWLv2, arXiv 2306.09683; Grounding DINO,
    arXiv 2303.05499).

    It looks for each object that the question names (`noun_phrases.object_words`), and takes the
    best box of each whose score is high enough. The confidence is the lowest of their scores.

    Asks nothing of the engine; the detector runs once for each object.

    It is loaded at the first use.
    """

    name: ClassVar[str] = "detector"
    help: ClassVar[str] = (
        "where an open-vocabulary detector finds the question's objects; the model is not asked"
    )
    detector: str | None = option(None, "Hub id or folder of the detector", path)
    min_confidence: float = option(0.1, "The lowest score that counts, 0..1", fraction)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.detector is None:
            raise CofError(
                "grounder 'detector' needs a detector: pass the folder or hub id of one, such as "
                "detector='google/owlv2-base-patch16-ensemble' (command line: --set detector=ID)."
            )

    def locate(self, engine: Engine, requests: Sequence[Request]) -> list[Grounding]:
        from cof.grounders.detector_model import load_detector

        assert self.detector is not None
        detector = load_detector(self.detector)
        groundings = []
        for request in requests:
            phrases = object_words(request.prompt)
            detections = [detector.find(request.pil_image, phrase) for phrase in phrases]
            good = [each for each in detections if each and each[1] >= self.min_confidence]
            if good:
                region = Region(boxes=tuple(box for box, _ in good))
                groundings.append(Grounding(region, confidence=min(score for _, score in good)))
            else:
                reason = (
                    f"The detector finds no {', '.join(phrases)} with a score of "
                    f"{self.min_confidence:g} or more."
                )
                groundings.append(Grounding(None, reason=reason))
        return groundings
