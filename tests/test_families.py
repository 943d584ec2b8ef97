"""Every family: where boxes land among image tokens, and the bias against the formula.

Placement is held against the model's own features, with attention that mixes nothing in the vision
tower; reweighting against softmax(A + log(lambda) M) written out in transformers' own pipeline,
from pixels to logits, through prefill and three decode steps.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint, picture, prompts_of
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index
from zoo import BUILDERS, CROSS_ATTENTION, zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.families import FAMILIES
from cof.families.token_coverage import INSIDE
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import Region, coverage_image
from cof.pipeline import CoF
from cof.prompting.box_parsing import parse_boxes
from cof.settings import Settings
from cof.types import Decoding, Generation, Highlight, Request

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
RAW = {"paligemma": "<image>{prompt}"}  # the processor adds the start token and the newline itself
EVERY = [*BUILDERS, *CROSS_ATTENTION]
STEPS = 4  # the prefill's token and three decode steps


_hand: dict[str, Any] = {}


def _by_hand(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """softmax(A + log(lambda) M), every query, every layer."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * scaling + mask
    if _hand.setdefault("first", module) is module:
        # sliding windows forget: keys are counted from the end then
        length = query.shape[2]
        _hand["seen"] = length if length > 1 else _hand["seen"] + 1
    keys = _hand["keys"] - (_hand["seen"] - key.shape[2])
    scores[..., keys[keys >= 0]] += math.log(_hand["strength"])
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("test_families_by_hand", _by_hand)
AttentionMaskInterface.register("test_families_by_hand", eager_mask)


def load(name: str, **options: Any) -> TransformersEngine:
    folder = checkpoint(name.split(",")[0]) if name in PAPER else zoo(name)
    return TransformersEngine.from_pretrained(folder, **PAPER.get(name, {}), **options)


@functools.cache
def engine(name: str) -> TransformersEngine:
    return load(name)


@functools.cache
def stock(name: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(zoo(name)).eval()


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


def by_transformers(
    name: str, asked: Request, attention: str | None = None
) -> tuple[list[Tensor], Tensor]:
    """Logits of transformers' own processor and model, and where the image tokens are."""
    made, model = engine(name), stock(name)
    text = RAW.get(name, made.chat.render("{prompt}")).format(prompt=asked.prompt)
    arrays = made.processor(images=asked.image, text=text, return_tensors="np")
    inputs = {key: torch.from_numpy(value) for key, value in arrays.items() if key != "labels"}
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    if attention is not None:
        highlight = asked.highlight
        assert highlight is not None
        mask = torch.from_numpy(made.token_mask(asked.image.size, highlight).ravel())
        _hand.clear()
        _hand.update(keys=is_image.nonzero().ravel()[mask], strength=highlight.strength)
    model.set_attn_implementation({"text_config": attention or "sdpa"})
    with torch.inference_mode():
        logits = model.generate(**inputs, **_plain_decoding()).logits
    return logits, is_image


def _plain_decoding() -> dict[str, Any]:
    return {
        "max_new_tokens": STEPS,
        "min_new_tokens": STEPS,
        "do_sample": False,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }


def ours(name: str, asked: Request) -> list[Tensor]:
    made = engine(name)
    with torch.inference_mode():
        prompts = prompts_of(made, [asked])
        return made.adapter.generate(prompts, **_plain_decoding()).logits


def gap(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def assert_same(one: list[Generation], other: list[Generation]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=5e-5)


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


@pytest.mark.parametrize("name", BUILDERS)
class TestReweighting:
    @pytest.mark.parametrize("size", SIZES)
    def test_idle_is_stock(self, name: str, size: str) -> None:
        expected, _ = by_transformers(name, request(size, 1.0))
        assert gap(ours(name, request(size, 1.0)), expected) <= 1e-5

    @pytest.mark.parametrize("size", ["wide", "tall"])
    def test_bias_is_the_formula(self, name: str, size: str) -> None:
        asked = request(size, 12.0)
        expected, is_image = by_transformers(name, asked, "test_families_by_hand")
        result = ours(name, asked)
        assert gap(result, expected) <= 3e-5
        plain, _ = by_transformers(name, request(size, 1.0))
        assert float((result[0] - plain[0]).abs().max()) > 0.02
        assert int(is_image.sum()) == engine(name).token_mask(SIZES[size], asked.highlight).size


@pytest.mark.parametrize("name", EVERY)
class TestBatches:
    def test_batch_is_single(self, name: str) -> None:
        last = (engine(name).adapter.shape[0] - 1,)
        rows = [
            request("wide", 9.0),
            request("tall", 0.2, "left edge", scope="text"),
            request("tiny", 1.0),
            request("wide", 30.0, "bottom right corner", layers=last, heads=(0, 2)),
        ]
        rows[1] = Request(rows[1].image, "a much longer question?", rows[1].highlight)
        for decoding in (Decoding(max_new_tokens=STEPS), Decoding(STEPS, num_beams=2)):
            together = engine(name).generate(rows, decoding)
            alone = [engine(name).generate([row], decoding)[0] for row in rows]
            assert_same(together, alone)

    def test_attention_shows_the_highlight(self, name: str) -> None:
        made = engine(name)
        before = made.image_attention(request("wide", 1.0))
        after = made.image_attention(request("wide", 12.0))
        inside = made.token_mask(SIZES["wide"], request("wide", 12.0).highlight)
        assert before.shape[2:] == inside.shape
        assert after[..., inside].sum() > before[..., inside].sum()


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
    listed = {kind for family in FAMILIES for kind in family.model_types}
    proved = {kind for name in (*EVERY, *PAPER) for kind in engine(name).family.model_types}
    assert listed == proved


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "paligemma"])
def test_the_pipeline_runs(name: str) -> None:
    cof = CoF(engine(name), Settings(strength=30.0))
    pairs = [(picture(SIZES["wide"]), "which digit?"), (picture(SIZES["tall"]), "which one?")]
    short = Decoding(max_new_tokens=STEPS)
    own = cof.batch(pairs, decoding=short)  # the model itself is asked for the boxes
    assert all(answer.grounding_text for answer in own)
    given = cof.batch([{"image": i, "question": q, "boxes": [BOXES["middle"]]} for i, q in pairs])
    assert [answer.found for answer in given] == [True, True]
    plain = engine(name).generate([Request(*pairs[0])], short)[0].text
    assert own[0].plain() == plain
