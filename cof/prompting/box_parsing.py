"""Read boxes from a model's reply: tolerant, without exceptions, in an explicit frame."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cof.geometry.boxes import XYXY, Frame, area, clip, ordered
from cof.prompting.dialects import SCALE, Order, Units

_OVER = 0.25  # fractions up to this far outside the image are still read as fractions
_LARGEST = 1e6  # larger numbers, which only a looping model writes, would overflow later
_LONGEST = 20_000  # characters read: a box comes early, and a looping model must not cost seconds

# A number and its unit. The patterns are used on lower-case text with single blanks only, so none
# of them can backtrack over long runs of white space.
_NUMBER = (
    r"[\"']?([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?))"
    r"( ?%| ?px)?[\"']?"
)
_COMMA = r"(?: ?[,;] ?| )"
_FOUR = _COMMA.join([_NUMBER] * 4)
_TWO = rf"[\[(] ?{_NUMBER}{_COMMA}{_NUMBER} ?[\])]"
_KEYED = re.compile(
    r"(?<![a-z0-9_])([xy]_?(?:[012]|min|max)|left|top|right|bottom|width|height|[xywh])"
    rf"[\"']? ?[:=] ?{_NUMBER}"
)
_LOCATION = re.compile(r" ?".join([r"<loc_?(\d{1,4})()>"] * 4))
_CELLS = re.compile(r"<patch_index_(\d{4})> ?<patch_index_(\d{4})>")
_LIST = re.compile(rf"[\[({{] ?{_FOUR}(?: ?,)? ?[\])}}]")
_CORNERS = re.compile(rf"{_TWO}[^\[(\d]{{0,40}}{_TWO}")
_BARE = re.compile(rf"(?<![\w.\-+]){_FOUR}(?!\w)")

# The keys of a box, and whether the last two are its width and height.
_SCHEMAS: tuple[tuple[tuple[str, str, str, str], bool], ...] = (
    (("x0", "y0", "x1", "y1"), False),
    (("x1", "y1", "x2", "y2"), False),
    (("xmin", "ymin", "xmax", "ymax"), False),
    (("left", "top", "right", "bottom"), False),
    (("x", "y", "width", "height"), True),
    (("x", "y", "w", "h"), True),
    (("left", "top", "width", "height"), True),
    (("x1", "y1", "width", "height"), True),
)

_RELEASED = re.compile(r"\[(-?\d+\.\d+), (-?\d+\.\d+), (-?\d+\.\d+), (-?\d+\.\d+)\]")

_Number = tuple[float, str]  # value and unit as written: "", "%" or "px"
_Four = tuple[_Number, _Number, _Number, _Number]


@dataclass(frozen=True)
class Parsed:
    """The boxes of a reply, or why there are none.

    Attributes:
        boxes: in 0..1 of the original image, inside it, corners in order, in reading order.
        reason: one sentence when `boxes` is empty; empty otherwise.
    """

    boxes: tuple[XYXY, ...] = ()
    reason: str = ""


def parse_boxes(text: str, frame: Frame, *, units: Units = "unit", order: Order = "xyxy") -> Parsed:
    """All boxes of a reply, in 0..1 of the original image. It never raises.

    The parser reads, in this order of preference: pairs of cells (`<patch_index_0044>`, in
    `cells32` only), location tokens (`<loc0512>`, `<loc_512>`), keys (`x1 y1 x2 y2`,
    `x0 y0 x1 y1`, `xmin ...`, `left top right bottom`, or two of them with `width height`), lists
    of four numbers, two corners, and four bare numbers. So JSON, in a code block or broken, and
    `<box>` tags need no rules of their own. Other text is skipped.

    The scale is never guessed from the size of the numbers, with two unambiguous exceptions: a
    percent sign, and fractions around 0..1 on a scale of tens or more. Corners in the wrong order
    are swapped, and a box partly outside is clipped to the image. A box is refused if it is
    outside, has no area, is not finite, or lies beyond twice the scale.

    Args:
        text: the model's reply.
        frame: the original image's rectangle in the model's native coordinates.
        units: what the model's numbers measure (`dialects.Dialect.units`).
        order: the order of four numbers without keys.

    Examples: a 640x480 image padded to a square; thousandths, y first.

        >>> parse_boxes("It is at [0.25, 0.125, 0.75, 0.5].", Frame.padded_square((640, 480)))
        Parsed(boxes=((0.25, 0.0, 0.75, 0.5),), reason='')
        >>> parse_boxes("[0, 250, 500, 750]", Frame.of_image(1000), units="thousand",
        ...             order="yxyx").boxes
        ((0.25, 0.0, 0.75, 0.5),)
        >>> parse_boxes("I cannot see it.", Frame.of_image()).reason
        'The reply holds no four numbers that could be a box.'
    """
    boxes: list[XYXY] = []
    refusals: list[str] = []
    spaced = re.sub(r"\s+", " ", text[:_LONGEST].lower())
    cells = list(_read_cells(spaced)) if units == "cells32" else []
    for numbers in cells or _candidates(spaced, order):
        outcome = _to_image(numbers, frame, units)
        if isinstance(outcome, str):
            refusals.append(outcome)
        elif outcome not in boxes:
            boxes.append(outcome)
    if boxes:
        return Parsed(tuple(boxes))
    return Parsed(
        reason=refusals[0] if refusals else "The reply holds no four numbers that could be a box."
    )


def native_wh(frame: Frame, units: Units) -> tuple[float, float]:
    """Width and height of what the model's coordinates measure, padding included.

    >>> native_wh(Frame.padded_square((640, 480)), "unit")
    (1.0, 1.0)
    >>> native_wh(Frame.pixels((112, 84)), "pixels")
    (112.0, 84.0)
    """
    # `pixels` have no fixed scale, but the padding is equal on both sides
    return (
        SCALE.get(units, frame.left + frame.right),
        SCALE.get(units, frame.top + frame.bottom),
    )


def parse_released(text: str, frame: Frame) -> Parsed:
    """The first `[d.d, d.d, d.d, d.d]` of a reply, read exactly as by the paper's released code.

    All four numbers need a decimal point, and each separator is a comma and one blank. Corners
    are not swapped, and the box is not clipped, so it may leave 0..1.

        >>> parse_released("[0.25, 0.125, 0.75, 0.5]", Frame.of_image()).boxes
        ((0.25, 0.125, 0.75, 0.5),)
        >>> parse_released("[0, 0.125, 0.75, 0.5]", Frame.of_image()).reason
        'The reply holds no [d.d, d.d, d.d, d.d], the only format that the released code reads.'
    """
    match = _RELEASED.search(text)
    if match is None:
        return Parsed(
            reason="The reply holds no [d.d, d.d, d.d, d.d], the only format that the released "
            "code reads."
        )
    x1, y1, x2, y2 = (float(number) for number in match.groups())
    if max(map(abs, (x1, y1, x2, y2))) > _LARGEST:
        return Parsed(reason=f"The box {match[0][:60]} is far outside the image.")
    return Parsed((frame.to_image((x1, y1, x2, y2)),))


def _candidates(text: str, order: Order) -> list[_Four]:
    """Four numbers each, as x1 y1 x2 y2, in the first format that occurs in the text."""
    for pattern in (_LOCATION, _KEYED, _LIST, _CORNERS, _BARE):
        if pattern is _KEYED:
            fours = list(_read_keys(text))
        else:
            fours = [_read_four(match, order) for match in pattern.finditer(text)]
        if fours:
            return fours
    return []


def _read_cells(text: str) -> Iterator[_Four]:
    """Boxes of a first and a last cell, numbered row by row, as Kosmos-2's authors read them.

    A box reaches from the middle of the one cell to the middle of the other; cells in the same row
    or column are taken whole.
    """
    side = int(SCALE["cells32"])
    for match in _CELLS.finditer(text):
        (y1, x1), (y2, x2) = (divmod(int(number), side) for number in match.groups())
        start, end = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
        yield (x1 + start, ""), (y1 + start, ""), (x2 + end, ""), (y2 + end, "")


def _read_four(match: re.Match[str], order: Order) -> _Four:
    groups = match.groups()
    a, b, c, d = (_number(groups[i], groups[i + 1]) for i in range(0, 8, 2))
    return (b, a, d, c) if order == "yxyx" else (a, b, c, d)


def _number(digits: str, unit: str | None) -> _Number:
    return float(digits), (unit or "").strip()


def _read_keys(text: str) -> Iterator[_Four]:
    """Boxes written as keys and numbers; a repeated key begins the next box."""
    fields: dict[str, _Number] = {}
    for match in _KEYED.finditer(text):
        key = match[1].replace("_", "")
        if key in fields:
            yield from _box_of_keys(fields)
            fields = {}
        fields[key] = _number(match[2], match[3])
    yield from _box_of_keys(fields)


def _box_of_keys(fields: dict[str, _Number]) -> Iterator[_Four]:
    for keys, has_size in _SCHEMAS:
        if all(key in fields for key in keys):
            first, second, third, fourth = (fields[key] for key in keys)
            if has_size:  # a width without a unit has that of the corner
                third = (first[0] + third[0], third[1] or first[1])
                fourth = (second[0] + fourth[0], fourth[1] or second[1])
            yield first, second, third, fourth
            return


def _to_image(numbers: _Four, frame: Frame, units: Units) -> XYXY | str:
    """A box in 0..1 of the original, or one sentence that says why it is refused."""
    shown = "(" + ", ".join(f"{value:g}{unit}" for value, unit in numbers) + ")"
    if not all(math.isfinite(value) for value, _ in numbers):
        return f"The box {shown} has numbers that are not finite."
    if units != "pixels" and any(unit == "px" for _, unit in numbers):
        return f"The box {shown} is in pixels, but this model's boxes are read as {units}."
    width, height = native_wh(frame, units)
    fractions = (
        units != "unit"
        and all(-_OVER <= value <= 1 + _OVER and not unit for value, unit in numbers)
        and any(value != int(value) for value, _ in numbers)
    )
    scales = (width, height, width, height)
    x1, y1, x2, y2 = (
        value / 100 * scale if unit == "%" else value * scale if fractions else value
        for (value, unit), scale in zip(numbers, scales, strict=True)
    )
    if any(not -1 <= v / scale <= 2 for v, scale in zip((x1, y1, x2, y2), scales, strict=True)):
        return f"The box {shown} is far outside this model's scale of 0..{max(width, height):g}."
    box = ordered(frame.to_image((x1, y1, x2, y2)))
    if area(box) <= 0:
        return f"The box {shown} has no area."
    inside = clip(box)
    if area(inside) <= 0:
        return f"The box {shown} lies outside the image."
    return inside
