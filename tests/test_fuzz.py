"""Arbitrary input: whatever cannot be used is refused with a `CofError`, and nothing hangs."""

from __future__ import annotations

import functools
import io
import json
import math
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cof.errors import CofError
from cof.families.token_coverage import corner_cells
from cof.geometry.boxes import XYXY, Frame, area
from cof.geometry.regions import (
    coverage_image,
    region_from_boxes,
    region_from_mask,
    region_from_polygon,
)
from cof.images import load_image
from cof.options import indices
from cof.pipeline import CoF
from cof.presets import PRESETS
from cof.prompting.box_parsing import parse_boxes, parse_released
from cof.prompting.dialects import SCALE, Dialect, Order, Units, native_wh
from cof.query import Query, Sample
from cof.settings import Settings
from cof.web.view import read_boxes

fuzz = functools.partial(
    settings,
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=5),  # for a loaded machine; each takes milliseconds
)
UNITS = st.sampled_from([*SCALE, "pixels"])
ORDERS = st.sampled_from(["xyxy", "yxyx"])
FRAMES = st.sampled_from(
    [
        Frame.of_image(),
        Frame.of_image(1000),
        Frame.of_image(32),
        Frame.padded_square((640, 480)),
        Frame.centre_crop((500, 300)),
        Frame.pixels((64, 9)),
    ]
)
FLOATS = st.floats(width=64)  # NaN and infinities among them
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400)]),
    FLOATS,
    st.complex_numbers(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.one_of(st.integers(-3, 40), FLOATS, st.text(max_size=2)), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    hnp.arrays(st.sampled_from(["f4", "i8", "U2", "?"]), hnp.array_shapes(max_dims=2, max_side=3)),
    st.sampled_from([np.float32(0.5), np.int64(3), np.bool_(True), range(3), object()]),
)


def encode(format: str, mode: str, **options: Any) -> bytes:
    """A small image file."""
    noise = np.random.default_rng(0).integers(0, 256, (17, 23, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = Image.fromarray(noise)
    else:
        image = Image.fromarray(noise[..., :3]).convert(mode)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = 6
    data[0x010F] = "somebody"
    return data


FILES = {
    "PNG": encode("PNG", "RGB", exif=exif()),
    "PNG with palette and transparency": encode("PNG", "P", transparency=3),
    "PNG of 16 bits": encode("PNG", "I;16"),
    "PNG with alpha": encode("PNG", "RGBA"),
    "JPEG": encode("JPEG", "RGB", exif=exif()),
    "JPEG, progressive": encode("JPEG", "L", progressive=True),
    "JPEG of CMYK": encode("JPEG", "CMYK"),
    "WebP": encode("WEBP", "RGB", exif=exif()),
    "WebP, lossless": encode("WEBP", "RGBA", lossless=True),
    "GIF": encode("GIF", "P"),
    "GIF, animated": encode(
        "GIF", "P", save_all=True, append_images=[Image.new("P", (23, 17), n) for n in (1, 2)]
    ),
    "TIFF": encode("TIFF", "RGB", exif=exif()),
    "TIFF, LZW": encode("TIFF", "L", compression="tiff_lzw"),
    "TIFF of 16 bits": encode("TIFF", "I;16"),
    "TIFF of floats": encode("TIFF", "F"),
    "BMP": encode("BMP", "RGB"),
    "BMP with palette": encode("BMP", "P"),
}


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of a file with bits flipped, and perhaps cut off or continued."""
    damaged = bytearray(data)
    early = st.integers(0, min(len(data), 64) - 1)  # headers decide most
    flips = st.tuples(early | st.integers(0, len(data) - 1), st.integers(0, 7))
    for position, bit in draw(st.lists(flips, max_size=6)):
        damaged[position] ^= 1 << bit
    end = draw(st.one_of(st.none(), st.integers(0, len(data))))
    return bytes(damaged[:end]) + draw(st.binary(max_size=4))


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_loaded(name: str) -> None:
    assert sorted(load_image(FILES[name]).size) == [17, 23]


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about metadata
@pytest.mark.parametrize("name", FILES)
@fuzz(max_examples=60)
@given(data=st.data())
def test_damaged_files(name: str, data: st.DataObject) -> None:
    file = data.draw(damaged(FILES[name]))
    with suppress(CofError):
        image = load_image(file, max_pixels=1_000_000)
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 1_000_000


ARRAYS = hnp.arrays(
    st.one_of(
        hnp.scalar_dtypes(),
        st.sampled_from(["u1", ">u2", "<u2", "f2", "f4", "f8", "?"]).map(np.dtype),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@fuzz(max_examples=300)
@given(ARRAYS)
def test_arrays_as_images(array: np.ndarray) -> None:
    with suppress(CofError):
        image = load_image(array)
        assert image.mode == "RGB"
        assert image.size == array.shape[1::-1]


@fuzz(max_examples=200)
@given(st.one_of(ANYTHING, st.text(st.characters(), max_size=300)))
def test_anything_as_an_image(source: Any) -> None:
    with suppress(CofError):
        assert load_image(source).mode == "RGB"  # some arrays are images


NUMBERS = st.one_of(
    st.floats(-2, 2).map(lambda value: f"{value:.4g}"),
    st.integers(-5, 1100).map(str),
    FLOATS.map(str),
    st.from_regex(r"-?[0-9]{1,400}\.[0-9]{1,20}", fullmatch=True),
)
PIECES = st.one_of(
    NUMBERS,
    st.sampled_from([*"[](){}<>,;:=%\"'|/_-+.", " ", "\n", "\t", "\x00", "\u0663"]),
    st.sampled_from(["x1", "y_max", "left", "top", "width", "h", "px", " %", "bbox_2d", "<box>"]),
    st.sampled_from(
        [*"、，：［（\u066b\u0660", "center", "cx", "size", "\n1. ", "box 1", '"label": "']
    ),
    st.sampled_from(["<loc0123>", "<loc_99>", "<patch_index_0044>", "nan", "inf", "1e999"]),
    st.lists(NUMBERS, min_size=4, max_size=4).map(lambda four: f"[{', '.join(four)}]"),
    st.text(max_size=5),
)
REPLIES = st.lists(PIECES, max_size=25).map("".join)


@fuzz(max_examples=300)
@given(REPLIES, FRAMES, UNITS, ORDERS)
def test_replies_are_boxes_or_a_reason(text: str, frame: Frame, units: Units, order: Order) -> None:
    parsed = parse_boxes(text, frame, units=units, order=order)
    assert bool(parsed.boxes) != bool(parsed.reason)
    assert all(0 <= value <= 1 for box in parsed.boxes for value in box)
    assert all(area(box) > 0 for box in parsed.boxes)
    released = parse_released(text, frame)
    assert bool(released.boxes) != bool(released.reason)
    assert all(math.isfinite(value) for box in released.boxes for value in box)


BOXES = st.tuples(*[st.floats(0, 1)] * 4)


@fuzz(max_examples=200)
@given(BOXES, FRAMES, UNITS, ORDERS)
def test_boxes_are_read_as_they_were_written(
    box: XYXY, frame: Frame, units: Units, order: Order
) -> None:
    """In every unit and order: native coordinates, written and read."""
    x1, x2 = sorted(box[::2])
    y1, y2 = sorted(box[1::2])
    assume(x2 - x1 > 0.01 and y2 - y1 > 0.01)
    native = frame.from_image((x1, y1, x2, y2))
    scales = native_wh(frame, units) * 2
    # beyond the scale a box is refused; small numbers on a large scale could be fractions
    assume(all(0 <= v <= scale for v, scale in zip(native, scales, strict=True)))
    assume(max(native) > 1.25 or max(scales) <= 1)
    numbers = native if order == "xyxy" else (native[1], native[0], native[3], native[2])
    text = f"It is at [{', '.join(f'{value:.6f}' for value in numbers)}]."
    (read,) = parse_boxes(text, frame, units=units, order=order).boxes
    assert read == pytest.approx((x1, y1, x2, y2), abs=1e-4)


@fuzz(max_examples=200)
@given(REPLIES, st.sampled_from(["paper-parity", "paper", "tiny"]))
def test_the_pipeline_takes_any_reply(reply: str, name: str) -> None:
    """Whatever the model says where a box is asked for, with the released code's parser too."""
    chosen = PRESETS[name][0].settings
    dialect = Dialect("any", "Where? {question}")
    engine = FakeEngine(lambda request: reply if "Where?" in request.prompt else "7", dialect)
    answer = CoF(engine, chosen.changed(grounding_prompt=None))(IMAGE, "Which digit?")
    assert answer.text == "7"
    assert answer.found == bool(answer.raw_boxes)
    json.dumps([answer.boxes, answer.raw_boxes], allow_nan=False)
    corner_cells(answer.boxes, Frame.padded_square(IMAGE.size), (24, 24))
    if answer.region is not None:
        coverage_image(answer.region, IMAGE.size)


IMAGE = Image.new("RGB", (64, 48))
NAMES = [*Settings(focus="contrast").as_dict()]


@fuzz(max_examples=300)
@given(st.sampled_from(NAMES), ANYTHING)
def test_anything_as_a_setting(name: str, value: Any) -> None:
    with suppress(CofError):
        made = Settings(focus="contrast").changed(**{name: value})
        made_again = Settings(**json.loads(json.dumps(made.as_dict(), allow_nan=False)))
        assert made_again == made == made.changed(**{name: made.as_dict()[name]})
        hash(made)


POINTS = st.tuples(st.floats(0, 1), st.floats(0, 1))
MASKS = hnp.arrays(
    st.sampled_from(["?", "u1", "f4", "f8"]).map(np.dtype),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements={"min_value": 0, "max_value": 1},
)
REGIONS: dict[Any, st.SearchStrategy[Any]] = {
    region_from_boxes: st.lists(st.tuples(*[FLOATS] * 4)) | st.lists(BOXES),
    region_from_polygon: st.lists(POINTS, max_size=6) | st.lists(st.tuples(FLOATS, FLOATS)),
    region_from_mask: MASKS | ARRAYS,
}
POST_PROCESSING = st.builds(
    Settings,
    expand=st.floats(0.01, 50),
    min_box=st.floats(0, 1),
    released=st.booleans(),
)


@pytest.mark.parametrize("make", REGIONS)
@fuzz(max_examples=300)
@given(data=st.data(), chosen=POST_PROCESSING)
def test_any_region(make: Any, data: st.DataObject, chosen: Settings) -> None:
    """It stays a region through post-processing."""
    size = [IMAGE.size] if make is region_from_polygon else []
    with suppress(CofError):
        region = make(data.draw(REGIONS[make] | ANYTHING), *size)
        assert all(0 <= value <= 1 for box in region.boxes for value in box)
        for each in (region, chosen.post_process(region, IMAGE.size)):
            assert all(math.isfinite(value) for box in each.boxes for value in box)
            assert all(area(box) > 0 for box in each.boxes)
            assert coverage_image(each, IMAGE.size).getbbox() is not None


@fuzz(max_examples=300)
@given(st.sampled_from([field.name for field in fields(Query)]), ANYTHING)
def test_anything_in_a_query(name: str, value: Any) -> None:
    query = Query(**{"image": IMAGE, "question": "Which?", name: value})
    with suppress(CofError):
        Sample.from_query(query, Settings(), False, {})


@fuzz(max_examples=200)
@given(st.one_of(st.from_regex(r"[0-9+,\- ]*", fullmatch=True), st.text()))
def test_any_text_as_layers(text: str) -> None:
    with suppress(CofError):
        Settings(layers=indices("--layers", text))


@fuzz(max_examples=100)
@given(st.lists(st.lists(NUMBERS, max_size=5).map(",".join), max_size=3))
def test_any_text_as_a_box(texts: list[str]) -> None:
    with suppress(CofError):
        boxes = read_boxes(";".join(texts))
        assert [len(box) for box in boxes] == [4] * len([*filter(None, texts)])
