"""Parsing: the formats that models use, and refusals with reasons."""

from __future__ import annotations

import time

import pytest
from transformers.models.kosmos2.processing_kosmos2 import patch_index_to_coordinate

from cof.geometry.boxes import Frame
from cof.prompting.box_parsing import parse_boxes, parse_released
from cof.prompting.dialects import LLAVA, OPTION_LETTER, PAPER, SCALE, TINY, Dialect, Units, fill

UNIT = Frame.of_image()
BOX = (0.1, 0.2, 0.5, 0.75)

FORMATS = [
    "[0.1, 0.2, 0.5, 0.75]",
    "[0.10,0.20,0.50,0.75]",
    "[.1, .2, .5, .75]",
    "(0.1, 0.2, 0.5, 0.75)",
    "0.1, 0.2, 0.5, 0.75",
    "0.1 0.2 0.5 0.75",
    "The star is at [0.1, 0.2, 0.5, 0.75], I think: 3 of 4 are sure.",
    "Box: [1e-1, 2e-1, 5e-1, 7.5e-1]",
    "[0.5, 0.75, 0.1, 0.2]",
    "[0.5, 0.2, 0.1, 0.75]",
    "[10%, 20%, 50%, 75%]",
    "[10 %, 20 %, 50 %, 75 %]",
    "[[0.1, 0.2, 0.5, 0.75]]",
    "[[0.1, 0.2], [0.5, 0.75]]",
    "(0.1, 0.2) to (0.5, 0.75)",
    "top-left corner at (0.1, 0.2) and bottom-right corner at (0.5, 0.75)",
    '["0.1", "0.2", "0.5", "0.75"]',
    '{"bbox_2d": [0.1, 0.2, 0.5, 0.75], "label": "star"}',
    '```json\n[{"bbox_2d": [0.1, 0.2, 0.5, 0.75], "label": "star"}]\n```',
    '{"bbox": [0.1, 0.2, 0.5, 0.75], "width": 640, "height": 480}',
    '{"x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.75}',
    '{"x_1": 0.1, "y_1": 0.2, "x_2": 0.5, "y_2": 0.75}',
    '{"x0": 0.1, "y0": 0.2, "x1": 0.5, "y1": 0.75}',
    '{"box": {"xmin": "0.1", "ymin": "0.2", "xmax": "0.5", "ymax": "0.75"}}',
    '{"y_max": 0.75, "y_min": 0.2, "x_max": 0.5, "x_min": 0.1}',
    '{"left": 0.1, "top": 0.2, "right": 0.5, "bottom": 0.75}',
    '{"x": 0.1, "y": 0.2, "width": 0.4, "height": 0.55}',
    '{"x": "10%", "y": "20%", "w": "40%", "h": "55%"}',
    '{"left": 0.1, "top": 0.2, "width": 0.4, "height": 0.55}',
    "x1=0.1, y1=0.2, x2=0.5, y2=0.75",
    "Left: 10%, Top: 20%, Right: 50%, Bottom: 75%",
    "<box>[[0.1, 0.2, 0.5, 0.75]]</box>",
    "<ref>star</ref><box>(0.1,0.2),(0.5,0.75)</box>",
    "<box>0.1 0.2 0.5 0.75</box>",
    "<|det|>[[0.1, 0.2, 0.5, 0.75]]<|/det|>",
    '{"bbox_2d": [0.1, 0.2, 0.5, 0.75',  # cut off by the token limit
    "[0.1,\n 0.2,\n 0.5,\n 0.75,\n]",
    # numbered
    "1. 0.1, 0.2, 0.5, 0.75",
    "Box 1, 0.1, 0.2, 0.5, 0.75",
    "Box 2: 0.1, 0.2, 0.5, 0.75",
    "#1 0.1 0.2 0.5 0.75",
    "a) 0.1, 0.2, 0.5, 0.75",
    "① 0.1, 0.2, 0.5, 0.75",
    "1、0.1、0.2、0.5、0.75",
    # with a score, a class
    "0.1 0.2 0.5 0.75 0.9",
    "[0.1, 0.2, 0.5, 0.75, 0.9, 1]",
    # centre or corner, and size
    '{"center": [0.3, 0.475], "size": [0.4, 0.55]}',
    "center (0.3, 0.475), width and height (0.4, 0.55)",
    "Centered at (0.3, 0.475) with a width of 0.4 and a height of 0.55.",
    "centre: 0.3, 0.475; size: 0.4 x 0.55",
    '{"cx": 0.3, "cy": 0.475, "w": 0.4, "h": 0.55}',
    '{"x_center": 0.3, "y_center": 0.475, "width": 0.4, "height": 0.55}',
    '{"center": {"x": 0.3, "y": 0.475}, "size": {"width": 0.4, "height": 0.55}}',
    '{"center": [0.3, 0.475], "height": 0.55, "width": 0.4}',
    '{"top_left": [0.1, 0.2], "size": [0.4, 0.55]}',
    "[x, y, width, height] = [0.1, 0.2, 0.4, 0.55]",
    "In (cx, cy, w, h): (30%, 47.5%, 40%, 55%)",
    "中心（0.3，0.475），宽高（0.4，0.55）",
    "The star in the center, from (0.1, 0.2) to (0.5, 0.75)",
    "Image size 640x480. top-left (0.1, 0.2), bottom-right (0.5, 0.75)",
    '{"bbox": [0.1, 0.2, 0.5, 0.75], "center": [0.3, 0.475], "width": 640, "height": 480}',
    # polygons
    "[[0.1, 0.2], [0.5, 0.2], [0.5, 0.75], [0.1, 0.75]]",
    "[0.1, 0.2, 0.5, 0.2, 0.5, 0.75, 0.1, 0.75]",
    "0.1 0.2 0.5 0.2 0.5 0.75 0.1 0.75",
    "(0.3, 0.2), (0.5, 0.4), (0.3, 0.75), (0.1, 0.4)",
    '[{"x": 0.1, "y": 0.2}, {"x": 0.5, "y": 0.75}, {"x": 0.3, "y": 0.5}]',
    # texts with numbers
    '[{"bbox_2d": [0.1, 0.2, 0.5, 0.75], "label": "route [0.12, 0.34, 0.56, 0.78]"}]',
    "{'label': 'exit (12, 34), (56, 78)', 'bbox': '(0.1, 0.2), (0.5, 0.75)'}",
    '{"bbox": "[0.1, 0.2, 0.5, 0.75]", "text": "route [0.12, 0.34, 0.56, 0.78',
    '{"route [0.12, 0.34, 0.56, 0.78]": [0.1, 0.2, 0.5, 0.75]}',
    "<ref>route [0.12, 0.34, 0.56, 0.78]</ref><box>[[0.1, 0.2, 0.5, 0.75]]</box>",
    '{"answer": "The star is at [0.1, 0.2, 0.5, 0.75]"}',
    # other scripts
    "（0.1，0.2），（0.5，0.75）",
    "［０．１，０．２，０．５，０．７５］",
    "[0.1、0.2、0.5、0.75]",
    "【0.1，0.2，0.5，0.75】",
    "x1：0.1，y1：0.2，x2：0.5，y2：0.75",
    "[\u0660\u066b\u0661\u060c 0\u066b\u0662\u060c \u0660.\u0665\u061b \u0660\u066b\u0667\u0665]",
]


@pytest.mark.parametrize("text", FORMATS)
def test_formats(text: str) -> None:
    parsed = parse_boxes(text, UNIT)
    assert parsed.boxes == (pytest.approx(BOX),)
    assert parsed.reason == ""


@pytest.mark.parametrize(
    ("text", "dialect", "frame"),
    [
        ("<loc0205><loc0102><loc0768><loc0512>", Dialect("p", "", "yxyx", "loc1024"), 1024),
        (
            "detect star <loc205> <loc102> <loc768> <loc512> star",
            Dialect("p", "", "yxyx", "loc1024"),
            1024,
        ),
        ("<loc_100><loc_200><loc_500><loc_750>", Dialect("f", "", "xyxy", "thousand"), 1000),
        ("[100, 200, 500, 750]", Dialect("t", "", "xyxy", "thousand"), 1000),
        ("[200, 100, 750, 500]", Dialect("t", "", "yxyx", "thousand"), 1000),
        ("[0.1, 0.2, 0.5, 0.75]", Dialect("t", "", "xyxy", "thousand"), 1000),
        ("10, 20, 50, 75", Dialect("t", "", "xyxy", "percent"), 100),
        ('{"x1": 10, "y1": 20, "x2": 50, "y2": 75}', Dialect("t", "", "yxyx", "percent"), 100),
    ],
)
def test_units_and_orders(text: str, dialect: Dialect, frame: int) -> None:
    parsed = parse_boxes(text, Frame.of_image(frame), units=dialect.units, order=dialect.order)
    assert parsed.boxes == (pytest.approx(BOX, abs=1e-3),)


@pytest.mark.parametrize("units", ["percent", "thousand", "loc1024", "pixels"])
def test_fractions_that_leave_the_image_are_fractions_all_the_same(units: Units) -> None:
    frame = Frame.of_image(SCALE.get(units, 640.0))
    for text, box in [
        ("[0.1, 0.8, 0.5, 1.02]", (0.1, 0.8, 0.5, 1.0)),
        ("[-0.01, 0.2, 0.5, 0.75]", (0.0, 0.2, 0.5, 0.75)),
        ('{"x": 0.1, "y": 0.8, "w": 0.4, "h": 0.3}', (0.1, 0.8, 0.5, 1.0)),
    ]:
        assert parse_boxes(text, frame, units=units).boxes == (pytest.approx(box),)


def test_pixels_of_a_resized_image() -> None:
    frame = Frame.pixels((640, 400))
    for text in ("[64, 80, 320, 300]", "[64px, 80px, 320px, 300px]", "[10%, 20%, 50%, 75%]"):
        assert parse_boxes(text, frame, units="pixels").boxes == (pytest.approx(BOX),)


def test_several_boxes_in_reading_order_without_repeats() -> None:
    text = "[0.1, 0.2, 0.5, 0.75] and [0.6, 0.6, 0.9, 0.9], again [0.1, 0.2, 0.5, 0.75]"
    assert parse_boxes(text, UNIT).boxes == (BOX, (0.6, 0.6, 0.9, 0.9))
    keyed = (
        '[{"x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.75},'
        ' {"x1": 0.6, "y1": 0.6, "x2": 0.9, "y2": 0.9}]'
    )
    assert parse_boxes(keyed, UNIT).boxes == (BOX, (0.6, 0.6, 0.9, 0.9))

    two = ((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    for text in (
        "1. 0.1, 0.2, 0.3, 0.4\n2. 0.5, 0.6, 0.7, 0.8",
        "Box 1, 0.1, 0.2, 0.3, 0.4\nBox 2, 0.5, 0.6, 0.7, 0.8",
        "(0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8)",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]",
        '["[0.1, 0.2, 0.3, 0.4]", "[0.5, 0.6, 0.7, 0.8]"]',
        "It's 5\" at [0.1, 0.2, 0.3, 0.4] and 6\" at [0.5, 0.6, 0.7, 0.8], isn't it?",
    ):
        assert parse_boxes(text, UNIT).boxes == two
    # whole numbers with points, as numpy writes them
    text = "100. 200. 300. 400. 500. 600. 700. 800."
    assert parse_boxes(text, Frame.of_image(1000), units="thousand").boxes == two

    # a bad one hides no good one
    assert parse_boxes("[0.1, 0.1, 0.1, 0.9], [0.1, 0.2, 0.5, 0.75]", UNIT).boxes == (BOX,)


def test_partly_outside_is_clipped() -> None:
    assert parse_boxes("[-0.2, 0.5, 0.5, 1.2]", UNIT).boxes == ((0.0, 0.5, 0.5, 1.0),)
    # the padding above a wide image: the square's 0..0.25 is half padding
    padded = Frame.padded_square((640, 480))
    assert parse_boxes("[0.0, 0.0, 0.5, 0.5]", padded).boxes == ((0.0, 0.0, 0.5, 0.5),)
    assert "outside the image" in parse_boxes("[0.2, 0.0, 0.8, 0.1]", padded).reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((of, "no four numbers") for of in ("", "I cannot see a star.", "[0.1, 0.2, 0.5]")),
        ('{"x1": 0.1, "y1": 0.2, "x2": 0.5}', "no four numbers"),
        *((f"[0.1, 0.2, {of}, 0.75]", "finite") for of in ("nan", "inf", "-Infinity", "1e999")),
        ("[0.1, 0.2, 5e8, 0.75]", "far outside"),
        ("[64, 80, 320, 300]", "far outside this model's scale of 0..1"),
        ("[64px, 80px, 320px, 300px]", "in pixels"),
        ("[0.1, 0.2, 0.1, 0.75]", "no area"),
        ("[0, 0, 0, 0]", "no area"),
        ("[1.2, 0.2, 1.5, 0.75]", "outside the image"),
    ],
)
def test_refusals_say_why(text: str, says: str) -> None:
    parsed = parse_boxes(text, UNIT)
    assert parsed.boxes == ()
    assert says in parsed.reason
    assert parsed.reason.endswith(".")


def test_a_side_of_no_length_may_count_as_one_step() -> None:
    parsed = parse_boxes("[250, 500, 250, 750]", Frame.of_image(1000), units="thousand", step=1.0)
    assert parsed.boxes == ((0.25, 0.5, 0.251, 0.75),)


@pytest.mark.parametrize(
    "piece",
    [
        *("1", " ", "1 ", "[", "[1,", '"x":', "0.1, ", "(1,1)", "<loc1>", '"', "'a ", "\\"),
        *("1. ", "center ", "w 1 ", "(1,2) a", "x, y, w, ", '"a [1,2]', "box 1, "),
    ],
)
def test_long_loops_are_cheap(piece: str) -> None:
    start = time.perf_counter()
    parse_boxes(piece * 100_000, UNIT)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.1, 0.2, 0.5, 0.75]", (0.1, 0.2, 0.5, 0.75)),
        ("x [-0.1, 0.2, 1.5, 0.75] [0.3, 0.3, 0.4, 0.4]", (-0.1, 0.2, 1.5, 0.75)),
        ("[0.1, 0.2, 0.5, 1]", None),
        ("[0.1,0.2,0.5,0.75]", None),
        ("(0.1, 0.2, 0.5, 0.75)", None),
        ("[ 0.1, 0.2, 0.5, 0.75]", None),
        (f"[0.1, 0.2, {'9' * 400}.0, 0.75]", None),
    ],
)
def test_the_released_parser(text: str, expected: tuple[float, ...] | None) -> None:
    parsed = parse_released(text, UNIT)
    assert parsed.boxes == ((expected,) if expected else ())
    assert bool(parsed.reason) == (expected is None)


@pytest.mark.parametrize(("first", "last"), [(44, 863), (0, 1023), (70, 70), (37, 52), (5, 901)])
def test_cells_are_read_as_kosmos2_reads_them(first: int, last: int) -> None:
    said = f"<phrase> 2 stars</phrase><object><patch_index_{first:04d}><patch_index_{last:04d}>"
    (box,) = parse_boxes(said + "</object> at 12:30.", Frame.of_image(32), units="cells32").boxes
    assert box == pytest.approx(patch_index_to_coordinate(first, last, 32))
    assert not parse_boxes(said, UNIT).boxes  # in other units


def test_the_papers_prompt_to_the_letter() -> None:
    question = "Is there a clock?" + OPTION_LETTER
    assert fill(PAPER.template, question)[0] == (
        "Is there a clock?\nAccording to the information in the image and the question, \n"
        "detail the bounding box of the region in the image that contains the answer in JSON "
        "format."
    )


def test_prompts_keep_braces_of_questions_and_templates() -> None:
    assert fill("{question} {first_line} {}", "a {first_line}\nb") == (
        "a {first_line}\nb a {first_line} {}",
        ((16, 17), (31, 34)),
    )
    assert fill(TINY.template, "Which?\nA. 1")[0] == "Which?\nWhere?"
    assert fill(LLAVA.template, "Which?\nA. 1")[0].endswith("describes: Which?")
