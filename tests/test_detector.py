"""The detector grounder on tiny random detectors of the real classes, against their own outputs."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeEngine
from models import checkpoint, picture, tokenizer
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    PreTrainedTokenizerFast,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlv2.processing_owlv2 import Owlv2Processor
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil
from transformers.models.owlvit.processing_owlvit import OwlViTProcessor

from cof.errors import CofError
from cof.geometry.boxes import clip
from cof.grounders import Detector
from cof.grounders.detector import find_best, load_detector
from cof.pipeline import CoF
from cof.settings import Settings
from cof.types import EncodedImage, Request

SIDE = 64
ENGINE = FakeEngine({})


def _owl(config_class: Any, model_class: Any, processor_class: Any, images: Any) -> tuple[Any, Any]:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = tokenizer("right")
    words.model_max_length = 48
    config = config_class(
        text_config={
            **shape,
            "vocab_size": len(words),
            "intermediate_size": 48,
            "max_position_embeddings": 48,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={**shape, "intermediate_size": 48, "image_size": SIDE, "patch_size": 16},
        projection_dim=32,
    )
    size = {"height": SIDE, "width": SIDE}
    return model_class(config), processor_class(images(size=size), words)


def _grounding_dino() -> tuple[Any, Any]:
    words: PreTrainedTokenizerFast = tokenizer("right")
    words.model_max_length = 64
    swin = SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            pad_token_id=0,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=20,
        num_feature_levels=4,
    )
    size = {"shortest_edge": 2 * SIDE, "longest_edge": 4 * SIDE}
    images = GroundingDinoImageProcessorPil(size=size)
    return GroundingDinoForObjectDetection(config), GroundingDinoProcessor(images, words)


OWLV2 = (Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor, Owlv2ImageProcessorPil)
OWLVIT = (OwlViTConfig, OwlViTForObjectDetection, OwlViTProcessor, OwlViTImageProcessorPil)
BUILDERS = {
    "owlv2": functools.partial(_owl, *OWLV2),
    "owlvit": functools.partial(_owl, *OWLVIT),
    "grounding-dino": _grounding_dino,
}


@functools.cache
def folder(name: str) -> Path:
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    path = Path(tempfile.mkdtemp(prefix="cof-test-")) / name
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def best_by_hand(name: str, wh: tuple[int, int], phrase: str) -> tuple[list[float], float]:
    """The highest score and its box in pixels, from the model's raw outputs."""
    model, processor = load_detector(str(folder(name)))
    text = f"a photo of a {phrase}" if name.startswith("owl") else phrase
    inputs = processor(images=picture(wh), text=[[text]], return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    scores = output.logits[0].sigmoid().amax(-1)
    x, y, w, h = output.pred_boxes[0].unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    width, height = wh
    # OWLv2 pads to a square at the right and the bottom; the others see the image alone
    across, down = (max(wh), max(wh)) if name == "owlv2" else wh
    boxes = corners * torch.tensor([across / width, down / height, across / width, down / height])
    inside = boxes.clamp(0, 1)
    seen = ((inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])) > 0
    best = int(torch.where(seen, scores, -1.0).argmax())
    return list(clip(tuple(boxes[best].tolist()))), float(scores[best])


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("wh", [(64, 64), (120, 60), (50, 90)])
def test_the_best_box_in_fractions_of_the_image(name: str, wh: tuple[int, int]) -> None:
    box, score = best_by_hand(name, wh, "red bus")
    found = find_best(load_detector(str(folder(name))), picture(wh), "red bus")
    assert found[0] == pytest.approx(box, abs=1e-4)
    assert found[1] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_box_for_every_object(name: str) -> None:
    detector = load_detector(str(folder(name)))
    image = picture((120, 60))
    expected = [find_best(detector, image, phrase) for phrase in ("red bus", "dog")]
    request = Request(EncodedImage(image), "Is the red bus near the dog?")
    grounder = Detector(str(folder(name)), min_confidence=0.0)
    (grounding,) = grounder.locate(ENGINE, [request])
    assert grounding.region.boxes == tuple(of[0] for of in expected)
    assert grounding.confidence == min(of[1] for of in expected)


@pytest.mark.parametrize("name", BUILDERS)
def test_phrases_longer_than_it_reads_are_cut(name: str) -> None:
    """A question in a language without blanks is one phrase; OWLv2 reads 16 tokens."""
    detector = load_detector(str(folder(name)))
    long, longer = ("red bus " * times for times in (100, 110))
    assert find_best(detector, picture((64, 64)), long) == find_best(
        detector, picture((64, 64)), longer
    )


def test_low_scores_do_not_count() -> None:
    grounder = Detector(str(folder("owlvit")), min_confidence=1.0)
    (grounding,) = grounder.locate(ENGINE, [Request(picture((64, 64)), "Any bus or dog?")])
    assert grounding.region is None
    assert grounding.reason == "The detector finds no bus, dog with a score of 1 or more."


def test_in_the_pipeline() -> None:
    settings = Settings(grounder="detector", detector=str(folder("owlv2")), expand=1.0)
    answer = CoF(FakeEngine(lambda request: "yes"), settings)(picture((64, 64)), "Any bus?")
    found = find_best(load_detector(str(folder("owlv2"))), picture((64, 64)), "bus")
    assert answer.raw_boxes == (found[0],)
    assert answer.confidence == found[1]


@pytest.mark.parametrize("name", ["/nowhere/at/all", "llava"])
def test_what_is_no_detector(name: str) -> None:
    path = str(checkpoint("llava")) if name == "llava" else name
    with pytest.raises(CofError, match=r"No detector could be loaded from .*owlv2-base"):
        load_detector(path)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load_detector(str(folder("owlv2")))
    resizing = sys.modules[Owlv2ImageProcessorPil.__module__]

    def missing(*_: object) -> None:
        raise ImportError("scipy")

    monkeypatch.setattr(resizing, "requires_backends", missing)
    with pytest.raises(CofError, match=r"pip install 'cof\[detector\]'"):
        find_best(detector, picture((64, 64)), "bus")
