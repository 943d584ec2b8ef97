"""Look where a detector finds the question's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from PIL import Image

from cof.engines.base import Engine
from cof.errors import CofError
from cof.geometry.boxes import XYXY, Frame, area, clip
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
        assert self.detector is not None
        detector = load_detector(self.detector)
        groundings = []
        for request in requests:
            phrases = object_words(request.prompt)
            detections = [find_best(detector, request.pil_image, phrase) for phrase in phrases]
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


def find_best(
    detector: tuple[Any, Any], image: Image.Image, phrase: str
) -> tuple[XYXY, float] | None:
    """The box that fits a phrase best, in 0..1 of the image, and its score in 0..1.

    Args:
        detector: the model and its processor (`load_detector`).

    Returns:
        None if no box has an area inside the image.

    Raises:
        CofError: the detector's image processor needs a package that is missing.
    """
    model, processor = detector
    config, text = model.config, phrase.lower()
    if config.model_type.startswith("owl"):  # its authors' prompt
        text = f"a photo of a {text}"
    longest = getattr(config, "max_text_len", None) or config.text_config.max_position_embeddings
    cut = {"truncation": True, "max_length": longest}
    try:
        inputs = processor(images=image, text=[[text]], return_tensors="pt", **cut)
    except ImportError as error:
        raise CofError(
            "This detector's image processor needs scipy: pip install 'cof[detector]'."
        ) from error
    (detections,) = processor.post_process_grounded_object_detection(
        model(**inputs.to(model.device)), threshold=0.0, target_sizes=[image.size[::-1]]
    )
    frame = Frame.pixels(image.size)
    boxes = [clip(frame.to_image(tuple(box))) for box in detections["boxes"].tolist()]
    scored = zip(boxes, detections["scores"].tolist(), strict=True)
    inside = [(box, score) for box, score in scored if area(box) > 0]
    return max(inside, key=lambda each: each[1], default=None)


@lru_cache(maxsize=1)
def load_detector(name: str) -> tuple[Any, Any]:
    """A detector from a folder or the hub, on the GPU if there is one, and its processor (with a
    PIL image processor); the last one is cached.

    Raises:
        CofError: it cannot be loaded, or is not an open-vocabulary detector.
    """
    import torch
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(name)  # one small file shows whether it is there
        processor = AutoProcessor.from_pretrained(name, backend="pil")
        model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(name, config=config)
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = str(error).strip()
        raise CofError(
            f"No detector could be loaded from {name!r}: give a folder or a hub id that this "
            "machine can reach of an open-vocabulary detector, such as "
            "google/owlv2-base-patch16-ensemble or IDEA-Research/grounding-dino-tiny "
            f"({text.splitlines()[0] if text else type(error).__name__})."
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device), processor
