"""Every family: where boxes land among image tokens, and how they are written.

Placement is held against the model's own features, with attention that mixes nothing in the vision
tower. The bias on these tokens: tests/test_matrix.py.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from models import checkpoint, picture
from PIL import Image
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index
from transformers.utils.import_utils import is_torchvision_available
from zoo import BUILDERS, CROSS_ATTENTION, zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.families import FAMILIES
from cof.families.processors import TORCHVISION
from cof.families.token_coverage import INSIDE
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import Region, coverage_image
from cof.prompting.box_parsing import parse_boxes
from cof.types import Decoding, Highlight, Request

PAPER: dict[str, dict[str, Any]] = {
    "llava": {},
    "llava, cropped": {"pad_to_square": False},
    "blip-2": {},
    "instructblip": {},
}
"""The paper's models (tests/models.py), and how they are loaded; their bias: test_attention.py."""
SIZES = {"wide": (150, 60), "tall": (70, 190), "tiny": (9, 7)}
BOXES: dict[str, XYXY] = {
    "middle": (0.37, 0.41, 0.66, 0.7),
    "left edge": (0.0, 0.3, 0.2, 0.6),
    "bottom edge": (0.3, 0.85, 0.6, 1.0),
    "top left corner": (0.0, 0.0, 0.1, 0.1),
    "bottom right corner": (0.9, 0.9, 1.0, 1.0),
    "smaller than a token": (0.5, 0.5, 0.53, 0.53),
    "a line": (0.1, 0.5, 0.9, 0.5001),
    "all": (0.0, 0.0, 1.0, 1.0),
}
EVERY = [*BUILDERS, *CROSS_ATTENTION]


def load(name: str, **options: Any) -> TransformersEngine:
    folder = checkpoint(name.split(",")[0]) if name in PAPER else zoo(name)
    return TransformersEngine.from_pretrained(folder, **PAPER.get(name, {}), **options)


@functools.cache
def engine(name: str) -> TransformersEngine:
    return load(name)


@functools.cache
def local(name: str) -> TransformersEngine:
    """With attention that mixes nothing: a feature then depends on its own patches alone."""
    made = load(name, dtype="float64")
    made.model.set_attn_implementation({"vision_config": "cof_local"})
    return made


def changes(made: TransformersEngine, one: Image.Image, other: Image.Image) -> Any:
    """`(tokens,)`: how much each image feature differs between two images."""
    before, after = (encoded.features for encoded in made.encode([one, other]))
    differs = (before - after).flatten(1).norm(dim=1)
    return differs[made.family.num_prefix_features(made.model.config) :].numpy()


def request(size: str, strength: float, box: str = "middle", **kwargs: Any) -> Request:
    highlight = Highlight(Region(boxes=(BOXES[box],)), strength, **kwargs)
    return Request(picture(SIZES[size]), "which digit?", highlight)


@pytest.mark.parametrize("name", [*EVERY, *PAPER])
class TestPlacement:
    @pytest.mark.parametrize("size", SIZES)
    def test_coverage_is_where_the_features_change(self, name: str, size: str) -> None:
        made, wh = local(name), SIZES[size]
        noise, black = picture(wh), Image.new("RGB", wh)
        shown = made.tokens.visibility(wh)
        for label, box in BOXES.items():
            region = Region(boxes=(box,))
            share = np.nan_to_num(shown.coverage(region)).ravel()
            white_box = coverage_image(region, wh)
            touched = changes(made, black, white_box.convert("RGB")) > 1e-11
            np.testing.assert_array_equal(share > 1e-9, touched, err_msg=label)

            painted = noise.copy()
            painted.paste((255, 0, 255), mask=white_box)
            moved = changes(made, noise, painted)
            assert moved.max() > 1e-3 or not touched.any(), label
            assert (moved[share >= INSIDE] > 0.02 * moved.max()).all(), label
            # A bicubic kernel's negative lobes, wide where an image is enlarged; float64 noise.
            faint = max((0.35 if size == "tiny" else 0.05) * moved.max(), 1e-11)
            assert (moved[share == 0] < faint).all(), label

    @pytest.mark.parametrize("wh", [(400, 2), (2, 400), (200, 1), (1, 200), (1, 1)], ids=str)
    def test_images_of_any_shape(self, name: str, wh: tuple[int, int]) -> None:
        """As long and thin as `cof.images.MAX_ASPECT` allows, or of a single pixel."""
        made = engine(name)
        halves = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
        if wh[1] > wh[0]:
            halves = [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)]
        highlights = [Highlight(Region(boxes=(half,)), 9.0) for half in halves]
        first, second = (made.token_mask(wh, highlight) for highlight in highlights)
        assert first.any()
        assert second.any()
        assert wh == (1, 1) or (first != second).any()
        for highlight in highlights:
            (reply,) = made.generate([Request(picture(wh), "which?", highlight)], Decoding(1))
            assert math.isfinite(reply.logprobs[0])


NATIVE = {
    "qwen2-vl": "<|object_ref_start|>the digit<|object_ref_end|>"
    "<|box_start|>({0:.0f},{1:.0f}),({2:.0f},{3:.0f})<|box_end|>",
    "qwen2.5-vl": '```json\n[\n\t{{"bbox_2d": [{0:.0f}, {1:.0f}, {2:.0f}, {3:.0f}], '
    '"label": "digit 7"}}\n]\n```',
    "qwen3-vl": '```json\n[\n\t{{"bbox_2d": [{0:.0f}, {1:.0f}, {2:.0f}, {3:.0f}], '
    '"label": "the 2 stars"}}\n]\n```',
    "internvl": "<ref>the digit</ref><box>[[{0:.0f}, {1:.0f}, {2:.0f}, {3:.0f}]]</box>",
    "glm-4v": "The digit is at <|begin_of_box|>[[{0:.0f},{1:.0f},{2:.0f},{3:.0f}]]<|end_of_box|>.",
    "gemma-4": '```json\n[\n  {{"box_2d": [{1:.0f}, {0:.0f}, {3:.0f}, {2:.0f}], '
    '"label": "digit 7"}}\n]\n```',
    "paligemma": "<loc{1:04.0f}><loc{0:04.0f}><loc{3:04.0f}><loc{2:04.0f}> digit",
}
"""How each dialect writes a box; the numbers are x1 y1 x2 y2 in its own frame."""


@pytest.mark.parametrize("size", ["wide", "tall"])
@pytest.mark.parametrize("box", [(0.0, 0.1, 0.25, 0.4), (0.31, 0.52, 0.97, 0.99)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_native_boxes_come_back(name: str, box: XYXY, size: str) -> None:
    """Original -> native text -> original: at most half a native unit off, by rounding."""
    made = engine(name)
    frame, dialect = made.frame(SIZES[size]), made.dialect
    text = NATIVE.get(dialect.name, '{{"box": [{0:.2f}, {1:.2f}, {2:.2f}, {3:.2f}]}}')
    native = frame.from_image(box)
    if name == "kosmos2":  # two cells, from the processor's own rule
        cells = coordinate_to_patch_index(box, 32)
        text = "<phrase> it</phrase><object><patch_index_{:04d}><patch_index_{:04d}></object>"
        parsed = parse_boxes(text.format(*cells), frame, units=dialect.units)
    else:
        parsed = parse_boxes(text.format(*native), frame, units=dialect.units, order=dialect.order)
    unit = 0.01 if dialect.units == "unit" else 1.0
    assert len(parsed.boxes) == 1, parsed.reason
    for ours, theirs in zip(frame.from_image(parsed.boxes[0]), native, strict=True):
        assert abs(ours - theirs) <= (1 if name == "kosmos2" else 0.5) * unit + 1e-9


def test_qwen25_counts_pixels_of_the_resized_image() -> None:
    made = engine("qwen2_5_vl")
    for wh in SIZES.values():
        _, rows, columns = made.tokens.pixels(picture(wh))["image_grid_thw"][0]
        assert made.frame(wh) == Frame.pixels((columns * 14, rows * 14))


def test_every_listed_family_is_proved() -> None:
    kinds = {kind for family in FAMILIES for kind in family.model_types}
    listed = kinds.intersection(CONFIG_MAPPING)  # an older transformers lacks some
    listed -= set() if is_torchvision_available() else {*TORCHVISION}
    proved = {kind for name in (*EVERY, *PAPER) for kind in engine(name).family.model_types}
    assert listed == proved
