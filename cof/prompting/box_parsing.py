"""Read boxes from a model's reply: tolerant, without exceptions, in an explicit frame."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from cof.geometry.boxes import XYXY, Frame, area, clip, ordered
from cof.prompting.dialects import SCALE, Order, Units, native_wh

_OVER = 0.25  # fractions up to this far outside the image are still read as fractions
_LARGEST = 1e6  # larger numbers, which only a looping model writes, would overflow later
_LONGEST = 20_000  # characters read: a box comes early, and a looping model must not cost seconds

_WIDE = re.compile("[\ufe10-\ufe6f\uff01-\uffee]")  # ASCII's characters, in other widths
_MARKS = str.maketrans("、،؛٫٪−【】", ",,;.%-[]", "\u200b\u200e\u200f\u2066\u2069\ufeff")

# A number and its unit. The patterns are used on lower-case text with single blanks only, so none
# of them can backtrack over long runs of white space.
_NUMBER = (
    r"[\"']?([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|[-+]?\b(?:nan|inf(?:inity)?)\b)"
    r"( ?%| ?px)?[\"']?"
)
_COMMA = r"(?: ?[,;] ?| )"
_FOUR = _COMMA.join([_NUMBER] * 4)
_CENTRE = r"cent(?:er|re)"
_KEY = (
    rf"(?<![a-z0-9_])([xy]_?(?:[012]|min|max|c|{_CENTRE})|(?:c|{_CENTRE})[_ ]?[xy]|left|top|right"
    r"|bottom|width|height|[xywh])"
)
_KEYED = re.compile(rf"{_KEY}[\"']? ?[:=] ?{_NUMBER}")
_LEGEND = re.compile(" ?, ?".join([_KEY] * 4))
_LOCATION = re.compile(" ?".join([r"<loc_?\d{1,4}>"] * 4))
_CELLS = re.compile(r"<patch_index_(\d{4})> ?<patch_index_(\d{4})>")
_LIST = re.compile(rf"[\[({{] ?{_FOUR}(?: ?,)? ?[\])}}]")
_TWO = rf"[\[({{] ?(?:[\"']?x[\"']?: ?)?{_NUMBER}{_COMMA}(?:[\"']?y[\"']?: ?)?{_NUMBER} ?[\])}}]"
_POINTS = re.compile(rf"{_TWO}(?:(?:{_COMMA})?{_TWO}){{2,}}|{_TWO}[^\[(\d]{{0,40}}{_TWO}")
_VALUE = re.compile(_NUMBER)
_RUN = re.compile(rf"(?:[\[({{] ?|(?<![\w.\-+])){_NUMBER}(?:{_COMMA}{_NUMBER}){{3,}}(?!\w)")

# What counts the boxes: `1. 0.1, ...`, `Box 1, 0.1, ...`, `1, 0.1, 0.2, 0.3, 0.4`.
_BARE = r"(?<![\w.\-+\[({])(?<![,;\[({] )[1-9]\d?"
_FRACTIONS = _COMMA.join([r"0?\.\d+"] * 4)
_NUMBERED = re.compile(
    rf"{_BARE}\. (?={_FOUR})(?!\d+\. )"
    rf"|(?:\b(?:box|region|object|item|answer|option|number) ?|#)[1-9]{_COMMA}"
    rf"(?={_FOUR}(?!{_COMMA}?[\d.]))"
    rf"|(?<!\d ){_BARE}{_COMMA}(?={_FRACTIONS}(?!{_COMMA}?[\d.]))"
)

# Two numbers after what they are, and the keys that stand for it.
_PAIR = (
    rf"[^\d\[({{]{{0,25}}?[\[({{]? ?{_NUMBER}(?: ?[,;x×*] ?| (?:and|by) (?:an? )?| )"
    rf"(?:[\"']?(?:h|height)[\"']? ?(?:[:=]|of|is)? ?)?{_NUMBER}"
)
_NAMED = tuple(
    (re.compile(rf"(?<![a-z])(?<!image[ _])(?:{names}){_PAIR}"), rf" {x}: \1\2 {y}: \3\4 ")
    for names, x, y in (
        (rf"{_CENTRE}|middle|中心", "cx", "cy"),
        (r"size|dimensions?|width|w(?![a-z])|宽", "w", "h"),
        (r"(?:top|upper).?left(?!.*right)|position|origin|左上(?!.*右下)", "x", "y"),
    )
)
_CENTRE_KEYS = re.compile(
    rf"({_CENTRE}[\"']? ?[:=]? ?{{ ?[\"']?)x([\"']? ?[:=] ?{_NUMBER}{_COMMA}[\"']?)y"
)

# Text about a box, such as its label, which may hold numbers of its own.
_STRING = re.compile(r"(?<![\w.])([\"'])((?:\\.|(?!\1)[^\\])*)(\1(?!\w)|$)")
_BOX_KEY = re.compile(r"(?:box|coord|rect|region|corner|loc|pos|point|poly|area)\w*[\"']? ?[:=]")
_TAGGED = re.compile(r"<\|?(?:ref|phrase|p|object_ref_start)\|?>[^<]*")

# The keys of a box: of its left and right, and of its top and bottom.
_SIDES = (
    ("x0 x1", "y0 y1"),
    ("x1 x2", "y1 y2"),
    ("xmin xmax", "ymin ymax"),
    ("left right", "top bottom"),
    ("cx w", "cy h"),
    ("x w", "y h"),
    ("left w", "top h"),
    ("x1 w", "y1 h"),
    ("xmin w", "ymin h"),
)

_RELEASED = re.compile(r"\[(-?\d+\.\d+), (-?\d+\.\d+), (-?\d+\.\d+), (-?\d+\.\d+)\]")

_Number = tuple[float, str]  # value and unit as written: "", "%" or "px"
_Four = tuple[_Number, _Number, _Number, _Number]


@dataclass(frozen=True)
class Parsed:
    """The boxes of a reply, or why there are none."""

    boxes: tuple[XYXY, ...] = ()  # in 0..1 of the image, corners in order, in reading order
    reason: str = ""  # one sentence where there are none


def parse_boxes(
    text: str, frame: Frame, units: Units = "unit", order: Order = "xyxy", step: float = 0.0
) -> Parsed:
    """All boxes of a reply, in 0..1 of the original image. It never raises.

    The parser reads, in this order of preference: pairs of cells (`<patch_index_0044>`, in
    `cells32` only), location tokens (`<loc0512>`, `<loc_512>`), keys (`x1 y1 x2 y2`,
    `x0 y0 x1 y1`, `xmin ...`, `left top right bottom`, or a corner or the centre with `width
    height`), lists of four numbers, two numbers each for the centre or a corner and for the size,
    two corners or the points of a polygon, and four or more bare numbers. So JSON, in a code block
    or broken, and `<box>` tags need no rules of their own. Other text is skipped: numbers in a
    label count only if there are no others. Digits and punctuation may be those of any script.

    The scale is never guessed from the size of the numbers, with two unambiguous exceptions: a
    percent sign, and fractions around 0..1 on a scale of tens or more. Corners in the wrong order
    are swapped, and a box partly outside is clipped to the image. A box is refused if it is
    outside, has no area, is not finite, or lies beyond twice the scale.

    Args:
        frame: the original image's rectangle in the model's native coordinates.
        units: what the model's numbers measure (`dialects.Dialect.units`).
        order: the order of four numbers without keys.
        step: what a box without a width or height gets as such, in native coordinates.

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
    plain = _plain(text)
    cells = list(_read_cells(plain)) if units == "cells32" else []
    shown = _TAGGED.sub("<>", _STRING.sub(_hide, plain))
    for numbers in cells or _candidates(shown, order) or _candidates(plain, order):
        outcome = _to_image(numbers, frame, units, step)
        if isinstance(outcome, str):
            refusals.append(outcome)
        elif outcome not in boxes:
            boxes.append(outcome)
    refusals.append("The reply holds no four numbers that could be a box.")
    return Parsed(tuple(boxes), reason="" if boxes else refusals[0])


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


def _plain(text: str) -> str:
    """In lower case, with single blanks, and with ASCII's punctuation for that of other scripts."""
    # not all of NFKC, which makes a digit of "²" and points of "…"
    narrow = _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), text[:_LONGEST])
    return re.sub(r"\s+", " ", narrow.translate(_MARKS).lower())


def _hide(string: re.Match[str]) -> str:
    """Nothing in place of a quoted text that holds numbers but is no box, such as a label."""
    before, content = string.string[max(0, string.start() - 30) : string.start()], string[2]
    is_value = before.rstrip().endswith((":", "="))
    is_text = is_value or (string[3] and re.search(r"[^\W\d_]{3}", content))
    boxed = is_value and _BOX_KEY.search(before.rsplit(",", 1)[-1])
    hidden = is_text and not boxed and len(re.findall(r"[\d.]+", content)) > 1
    return '""' if hidden else string[0]


def _candidates(text: str, order: Order) -> list[_Four]:
    """Four numbers each, as x1 y1 x2 y2, in the first format that occurs in the text."""
    named = text
    for pattern, keys in _NAMED:
        named = pattern.sub(keys, named)
    ways: tuple[Iterator[_Four], ...] = (
        _read_rows(_LOCATION, text, order),
        _read_keys(_CENTRE_KEYS.sub(r"\1cx\2cy", text)),
        _read_rows(_LIST, text, order),
        _read_keys(named),
        _read_rows(_POINTS, text, order),
        _read_rows(_RUN, _NUMBERED.sub("| ", text), order),
    )
    return next((fours for way in ways if (fours := list(way))), [])


def _read_cells(text: str) -> Iterator[_Four]:
    """Boxes of a first and a last cell, numbered row by row, as Kosmos-2's authors read them.

    A box reaches from cell middle to cell middle; cells in the same row or column are taken whole.
    """
    side = int(SCALE["cells32"])
    for match in _CELLS.finditer(text):
        (y1, x1), (y2, x2) = (divmod(int(number), side) for number in match.groups())
        start, end = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
        yield (x1 + start, ""), (y1 + start, ""), (x2 + end, ""), (y2 + end, "")


def _read_rows(pattern: re.Pattern[str], text: str, order: Order) -> Iterator[_Four]:
    """Boxes written as numbers in a row, a polygon as the box around it.

    A list may stand after what its numbers are, such as `[x, y, width, height]`.
    """
    legend = _LEGEND.search(text) if pattern is _LIST else None
    for match in pattern.finditer(text):
        values = [(float(digits), unit.strip()) for digits, unit in _VALUE.findall(match[0])]
        told = dict(zip(map(_short, legend.groups() if legend else ()), values, strict=False))
        fours = [values[at : at + 4] for at in range(0, len(values) - 3, 4)]
        flat = [a[0] == c[0] or b[0] == d[0] for a, b, c, d in fours]
        directions = {(a < c, b < d) for a, b, c, d in fours}  # opposite edges of a polygon differ
        bent = len(values) % 4 or any(flat) or len(directions) > 1
        together = pattern is _POINTS or (match[0][0] in "[({" and len(values) >= 8)
        if len(values) >= 6 and len(values) % 2 == 0 and (all(flat) or (together and bent)):
            xs, ys = values[::2], values[1::2]
            fours = [[min(xs), min(ys), max(xs), max(ys)]]
        swapped = [(b, a, d, c) if order == "yxyx" else (a, b, c, d) for a, b, c, d in fours]
        yield from list(_box_of_keys(told)) or swapped


def _read_keys(text: str) -> Iterator[_Four]:
    """Boxes written as keys and numbers; a repeated key begins the next box."""
    fields: dict[str, _Number] = {}
    for match in _KEYED.finditer(text):
        key = _short(match[1])
        if key in fields:
            yield from _box_of_keys(fields)
            fields = {}
        fields[key] = float(match[2]), (match[3] or "").strip()
    yield from _box_of_keys(fields)


def _short(key: str) -> str:
    """A key as in `_SCHEMAS`; only those of a centre have a c."""
    key = re.sub("[_ ]", "", key)
    if "c" in key:
        return "cx" if "x" in key else "cy"
    return key[0] if key in ("width", "height") else key


def _box_of_keys(fields: dict[str, _Number]) -> Iterator[_Four]:
    for sides in _SIDES:
        if all(key in fields for keys in sides for key in keys.split()):
            (x1, x2), (y1, y2) = (_ends(fields, *keys.split()) for keys in sides)
            yield x1, y1, x2, y2
            return


def _ends(fields: dict[str, _Number], start: str, end: str) -> tuple[_Number, _Number]:
    """Where a box starts and ends on an axis; its end may be a size."""
    (low, unit), (high, own) = fields[start], fields[end]
    if end in ("w", "h"):
        low -= high / 2 if start in ("cx", "cy") else 0
        high, own = low + high, own or unit  # a size without a unit has that of the corner
    return (low, unit), (high, own)


def _to_image(numbers: _Four, frame: Frame, units: Units, step: float) -> XYXY | str:
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
    x2, y2 = x2 + step * (x1 == x2), y2 + step * (y1 == y2)
    if any(not -1 <= v / scale <= 2 for v, scale in zip((x1, y1, x2, y2), scales, strict=True)):
        return f"The box {shown} is far outside this model's scale of 0..{max(width, height):g}."
    box = ordered(frame.to_image((x1, y1, x2, y2)))
    if area(box) <= 0:
        return f"The box {shown} has no area."
    inside = clip(box)
    if area(inside) <= 0:
        return f"The box {shown} lies outside the image."
    return inside
