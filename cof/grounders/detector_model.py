"""Open-vocabulary detectors from transformers: the box of what a phrase names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from cof.errors import CofError
from cof.geometry.boxes import XYXY, Frame, area, clip

_PROMPTS = {"owlvit": "a photo of a {}", "owlv2": "a photo of a {}"}
"""The prompt of a model type for an object, where its authors do not use the bare phrase."""


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector and its processor (with a PIL image processor)."""

    model: Any
    processor: Any

    def find(self, image: Image.Image, phrase: str) -> tuple[XYXY, float] | None:
        """The box that fits a phrase best, in 0..1 of the image, and its score in 0..1.

        None if no box has an area inside the image.

        Raises:
            CofError: the detector's image processor needs a package that is missing.
        """
        config = self.model.config
        max_length = (
            getattr(config, "max_text_len", None) or config.text_config.max_position_embeddings
        )
        text = _PROMPTS.get(config.model_type, "{}").format(phrase.lower())
        try:
            inputs = self.processor(
                images=image,
                text=[[text]],
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
        except ImportError as error:
            raise CofError(
                "This detector's image processor needs scipy: pip install 'cof[detector]'."
            ) from error
        with torch.inference_mode():
            output = self.model(**inputs.to(self.model.device))
        (detections,) = self.processor.post_process_grounded_object_detection(
            output, threshold=0.0, target_sizes=[image.size[::-1]]
        )
        frame = Frame.pixels(image.size)
        boxes = [clip(frame.to_image(tuple(box))) for box in detections["boxes"].tolist()]
        scored = zip(boxes, detections["scores"].tolist(), strict=True)
        inside = [(box, score) for box, score in scored if area(box) > 0]
        return max(inside, key=lambda each: each[1], default=None)


@lru_cache(maxsize=1)
def load_detector(name: str) -> Detector:
    """A detector from a folder or the hub, on the GPU if there is one; the last one is cached.

    Raises:
        CofError: it cannot be loaded, or is not an open-vocabulary detector.
    """
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
    return Detector(model.eval().to(device), processor)
