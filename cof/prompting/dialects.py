"""How a model family is asked for a box, and how it writes one."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

from cof.geometry.boxes import Frame
from cof.prompting.box_template import BoxTemplate, Limits

Order = Literal["xyxy", "yxyx"]
Units = Literal["unit", "percent", "thousand", "loc1024", "cells32", "pixels"]
SCALE: dict[Units, float] = {
    "unit": 1.0,
    "percent": 100.0,
    "thousand": 1000.0,
    "loc1024": 1024.0,
    "cells32": 32.0,
}
"""The end of each scale; `pixels` end where the frame ends."""

PAPER_PROMPT = (
    "{first_line}\n"
    "According to the information in the image and the question, \n"
    "detail the bounding box of the region in the image that contains the answer in JSON format."
)
"""The paper's grounding prompt (section II-B), with the released code's line breaks."""

LLAVA_PROMPT = (
    "Please provide the bounding box coordinate of the region this sentence describes: {first_line}"
)
"""LLaVA-1.5's own prompt, as in its referring-expression training data."""

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's evaluations append this to a question with a short answer (MME, POPE, VQA)."""

OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
"""LLaVA-1.5's evaluations append this to a multiple-choice question (MMBench)."""


@dataclass(frozen=True)
class Dialect:
    """How a model family is asked for a box and how it writes it.

    Attributes:
        name: for messages and settings.
        template: the grounding prompt; `{question}` stands for the whole question, `{first_line}`
            for its first line (so the released code leaves options and answer suffixes out).
        order: the order of a box's four numbers.
        units: the scale of the numbers: `unit` 0..1, `percent` 0..100, `thousand` 0..1000,
            `loc1024` 0..1024 (location tokens), `cells32` cells of a 32 by 32 grid, `pixels`.
            The engine's `Frame` says where the scale begins and ends on the image.
        box_template: how it writes a box, for `Settings.boxes = "template"`; None: not known.
    """

    name: str
    template: str
    order: Order = "xyxy"
    units: Units = "unit"
    box_template: BoxTemplate | None = None

    def limits(self, template: BoxTemplate, frame: Frame) -> Limits | None:
        """The numbers of a box that lies on an image, at least with a part; None for a template
        that is not this dialect's own, whose numbers may measure anything.

        >>> QWEN2_5.limits(QWEN2_5.box_template, Frame.pixels((252, 140)))
        (range(0, 252), range(0, 140), range(1, 253), range(1, 141))
        """
        if template != self.box_template:
            return None
        numbers = list(map(float, template.numbers))
        wh = native_wh(frame, self.units)
        axes = [(frame.left, frame.right, wh[0]), (frame.top, frame.bottom, wh[1])]
        first, last = [], []
        for start, end, scale in axes if self.order == "xyxy" else axes[::-1]:
            stop = bisect_right(numbers, scale + 1e-6)
            first.append(range(min(bisect_left(numbers, end), stop - 1)))
            last.append(range(bisect_right(numbers, start), stop))
        return first[0], first[1], last[0], last[1]


def native_wh(frame: Frame, units: Units) -> tuple[float, float]:
    """Width and height of what the model's coordinates measure, padding included.

    >>> native_wh(Frame.padded_square((640, 480)), "unit")
    (1.0, 1.0)
    >>> native_wh(Frame.pixels((112, 84)), "pixels")
    (112.0, 84.0)
    """
    if units in SCALE:
        return SCALE[units], SCALE[units]
    # `pixels` have no fixed scale, but the padding is equal on both sides
    return frame.left + frame.right, frame.top + frame.bottom


def first_line(question: str) -> str:
    """A question without its options and answer suffix.

    >>> first_line("Which one?\\r\\nA. left\\r\\nB. right")
    'Which one?'
    """
    return question.split("\n", 1)[0].removesuffix("\r")


def fill(template: str, question: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Put a question into a template; other braces, as in JSON examples, stay as they are.

    Returns:
        The text, and the spans `(start, end)` of it that the template itself wrote.

    >>> fill("<ref>{first_line}</ref> {\\"box\\": []}", "a dog\\nA. left")
    ('<ref>a dog</ref> {"box": []}', ((0, 5), (10, 28)))
    """
    values = {"question": question, "first_line": first_line(question)}
    text, spans = "", []
    for number, piece in enumerate(re.split(r"\{(question|first_line)\}", template)):
        start, text = len(text), text + (values[piece] if number % 2 else piece)
        if piece and not number % 2:
            spans.append((start, len(text)))
    return text, tuple(spans)


PAPER = Dialect("paper", PAPER_PROMPT)
"""Models without an established box format: the paper's prompt, fractions."""

_LIST = "[{}, {}, {}, {}]"

LLAVA = Dialect(
    "llava",
    LLAVA_PROMPT,
    box_template=BoxTemplate(_LIST, tuple(f"{i / 100:.2f}" for i in range(100))),
)
"""LLaVA-1.5: `[0.dd, 0.dd, 0.dd, 0.dd]`, fractions of the padded square. (Its box template
ends at 0.99: a 1.00 would cost a choice in front of every number.)"""

TINY = Dialect(
    "tiny",
    "{first_line}\nWhere?",
    box_template=BoxTemplate(_LIST, tuple(f"{i / 50:.2f}" for i in range(51))),
)
"""The embedded model: `[0.10, 0.24, 0.40, 0.56]`, fractions of the padded square."""

_THOUSANDTHS = tuple(map(str, range(1001)))
_JSON = '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}]}}\n]\n```'

_REGION = 'the region that contains the answer to the question "{first_line}"'

QWEN2 = Dialect(
    "qwen2-vl",
    f"Please provide the bounding box coordinate of {_REGION}.",
    units="thousand",
    box_template=BoxTemplate("<|box_start|>({},{}),({},{})<|box_end|>", _THOUSANDTHS),
)
"""Qwen2-VL: `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, thousandths of the image."""

QWEN2_5 = Dialect(
    "qwen2.5-vl",
    f"Locate {_REGION}, output its bbox coordinates using JSON format.",
    units="pixels",
    box_template=BoxTemplate(_JSON, tuple(map(str, range(4096)))),
)
"""Qwen2.5-VL: `{"bbox_2d": [x1, y1, x2, y2], "label": ...}`, pixels of the resized image, of which
a square one has no more than 3584 in a row. (The box template has no label.)"""

QWEN3 = Dialect(
    "qwen3-vl",
    f"Locate {_REGION}, output its bbox coordinates using JSON format.",
    units="thousand",
    box_template=BoxTemplate(_JSON, _THOUSANDTHS),
)
"""Qwen3-VL: `{"bbox_2d": [x1, y1, x2, y2], "label": ...}`, thousandths of the image."""

INTERNVL = Dialect(
    "internvl",
    "Please provide the bounding box coordinate of the region this sentence describes: "
    "<ref>the answer to the question: {first_line}</ref>",
    units="thousand",
    box_template=BoxTemplate("<ref>the answer</ref><box>[[{}, {}, {}, {}]]</box>", _THOUSANDTHS),
)
"""InternVL: `<ref>...</ref><box>[[x1, y1, x2, y2]]</box>`, thousandths of the image."""

PALIGEMMA = Dialect(
    "paligemma",
    "detect {first_line}",
    order="yxyx",
    units="loc1024",
    box_template=BoxTemplate("<loc{}>" * 4, tuple(f"{i:04d}" for i in range(1024))),
)
"""PaliGemma: `<loc0123><loc0456><loc0789><loc1012> ...`, y first, 1024ths of the image."""

GLM = Dialect(
    "glm-4v",
    f"Please provide the bounding box of {_REGION}, as [[x1, y1, x2, y2]].",
    units="thousand",
    box_template=BoxTemplate("<|begin_of_box|>[[{}, {}, {}, {}]]<|end_of_box|>", _THOUSANDTHS),
)
"""GLM-4.1V: `<|begin_of_box|>[[x1, y1, x2, y2]]<|end_of_box|>`, thousandths of the image."""

GEMMA4 = Dialect(
    "gemma-4",
    f"Detect {_REGION}. Output only JSON, with box_2d as [ymin, xmin, ymax, xmax] normalized to "
    "0-1000.",
    order="yxyx",
    units="thousand",
    box_template=BoxTemplate('```json\n[\n  {{"box_2d": [{}, {}, {}, {}]}}\n]\n```', _THOUSANDTHS),
)
"""Gemma 4: `{"box_2d": [y1, x1, y2, x2], "label": ...}`, y first, thousandths of the image."""

KOSMOS2 = Dialect(
    "kosmos-2",
    "<grounding><phrase> the answer to the question: {first_line}</phrase>",
    units="cells32",
)
"""Kosmos-2: `<object><patch_index_0044><patch_index_0863></object>`, the numbers of the first and
the last cell of a 32 by 32 grid. (No box template: two tokens stand for four numbers.)"""
