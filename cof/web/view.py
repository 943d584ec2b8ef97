"""What the page shows as a value, and as a link, a command line and JSON that reproduce it."""

from __future__ import annotations

import base64
import binascii
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from cof.errors import CofError
from cof.focuses import FOCUSES, Attention
from cof.geometry.regions import region_from_boxes
from cof.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cof.geometry.boxes import XYXY

MASK_SIDE = 128
"""The longer side of a drawn mask: finer than any model's image tokens, short enough for a link."""

MASK_FILE = "mask.png"
"""Where the command lines expect a drawn mask."""

VARIED = ("grounder", "focus", "strength", "expand")
"""The settings that the page has controls for."""


@dataclass(frozen=True, eq=False)
class View:
    """All that decides what the page shows, but for the image's pixels.

    Attributes:
        image: the image's file name.
        example: whether it is one of the package's own images.
        question: what is asked.
        settings: those to answer with, one or two.
        boxes: the visitor's own boxes, `(x1, y1, x2, y2)` in 0..1 of the image; or none.
        mask: or the visitor's own `(H, W)` mask over the whole image, True inside.
    """

    image: str
    example: bool
    question: str
    settings: tuple[Settings, ...]
    boxes: tuple[XYXY, ...] = ()
    mask: NDArray[np.bool_] | None = None


def write_query(view: View) -> str:
    """The view as the query of a link, `question=...&grounder=...`."""
    query = {"example" if view.example else "image": view.image, "question": view.question}
    for number, settings in enumerate(view.settings, 1):
        for name in VARIED:
            value = value_of(settings, name)
            query[_key(name, number)] = value if isinstance(value, str) else f"{value:.12g}"
    if view.boxes:
        query["boxes"] = write_boxes(view.boxes)
    if view.mask is not None:
        query["mask"] = pack_mask(view.mask)
    return urlencode(query)


def read_query(query: Mapping[str, str], defaults: Settings) -> View:
    """The view that a link describes.

    Args:
        query: its parameters; those that no view has are passed over.
        defaults: the settings that the link does not name.

    Raises:
        CofError: a value is refused.
    """
    settings = [vary(defaults, _read_settings(query, 1))]
    if other := _read_settings(query, 2):
        settings.append(vary(settings[0], other))
    mask = query.get("mask")
    return View(
        image=query.get("example") or query.get("image", ""),
        example=bool(query.get("example")),
        question=query.get("question", ""),
        settings=tuple(settings),
        boxes=read_boxes(query.get("boxes", "")),
        mask=unpack_mask(mask) if mask else None,
    )


def value_of(settings: Settings, name: str) -> Any:
    """The value of a control; of a strength that the focus does not have, the default."""
    return {"strength": Attention.strength, **settings.as_dict()}[name]


def vary(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with values of controls; a strength that the focus does not have is left out."""
    focus = FOCUSES.get(str(values.get("focus", settings.focus.name)), Attention)
    kept = {n: v for n, v in values.items() if n != "strength" or hasattr(focus, "strength")}
    return settings.changed(**kept)


def write_commands(view: View, path: str, options: Sequence[str] = ()) -> list[str]:
    """The command lines that give the view's answers, one for each of its settings.

    Args:
        view: what is shown.
        path: where the image is.
        options: how the model is loaded, such as `("--model", "tiny")`.
    """
    commands = []
    for number, settings in enumerate(view.settings, 1):
        words = ["cof", "ask", path, view.question, *options]
        for name in VARIED:
            value = value_of(settings, name)
            if name == "grounder" and (view.boxes or view.mask is not None):
                continue
            words += [f"--{name}", value if isinstance(value, str) else f"{value:.12g}"]
        for box in view.boxes:
            words += ["--box", *(f"{value:.12g}" for value in box)]
        if view.mask is not None:
            words += ["--mask", MASK_FILE]
        words += ["--compare", "--save", "look.png" if number == 1 else f"look{number}.png"]
        commands.append(shlex.join(words))
    return commands


def write_boxes(boxes: Sequence[XYXY]) -> str:
    """Boxes as text.

    >>> write_boxes([(0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.5)])
    '0.25 0.5 0.75 1; 0 0 0.5 0.5'
    """
    return "; ".join(" ".join(f"{value:.12g}" for value in box) for box in boxes)


def read_boxes(text: str) -> tuple[XYXY, ...]:
    """Boxes from text, as `write_boxes` writes it or with commas; none if it is empty.

    >>> read_boxes("0.25, 0.5, 0.75, 1")
    ((0.25, 0.5, 0.75, 1.0),)

    Raises:
        CofError: it holds something else, or a box that is none.
    """
    boxes = []
    for part in filter(str.strip, text.split(";")):
        words = [word for word in re.split(r"[\s,]+", part.strip()) if word]
        try:
            boxes.append([float(word) for word in words])
        except ValueError:
            boxes.append([])
        if len(boxes[-1]) != 4:
            raise CofError(
                f"A box is four numbers, x1 y1 x2 y2 in 0..1 of the image, not {part.strip()!r}."
            )
    return region_from_boxes(boxes).boxes if boxes else ()


def pack_mask(mask: NDArray[np.bool_]) -> str:
    """A mask as text for a link: its width and height, and its packed pixels.

    >>> text = pack_mask(np.array([[True, False, False], [True, True, False]]))
    >>> text[:4], unpack_mask(text).tolist()
    ('3x2:', [[True, False, False], [True, True, False]])
    """
    height, width = mask.shape
    bits = zlib.compress(np.packbits(mask).tobytes(), level=9)
    return f"{width}x{height}:{base64.urlsafe_b64encode(bits).decode().rstrip('=')}"


def unpack_mask(text: str) -> NDArray[np.bool_]:
    """The `(H, W)` mask that `pack_mask` wrote.

    Raises:
        CofError: it is damaged, larger than `MASK_SIDE`, or empty.
    """
    size = re.match(r"(\d{1,3})x(\d{1,3}):", text)
    width, height = (int(size[1]), int(size[2])) if size else (0, 0)
    if not (size and 0 < width <= MASK_SIDE and 0 < height <= MASK_SIDE):
        raise CofError("The link's mask is damaged: draw it anew.")
    length = (width * height + 7) // 8
    data = text[size.end() :]
    try:
        packed = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
        bits = zlib.decompressobj().decompress(packed, length)  # no more, whatever it claims
    except (binascii.Error, ValueError, zlib.error):
        bits = b""
    pixels = np.unpackbits(np.frombuffer(bits, np.uint8))[: width * height]
    if pixels.size != width * height or not pixels.any():
        raise CofError("The link's mask is damaged: draw it anew.")
    return pixels.reshape(height, width).astype(bool)


def _read_settings(query: Mapping[str, str], number: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in VARIED:
        value = query.get(_key(name, number))
        if value is not None:
            settings[name] = _number(name, value) if name in ("strength", "expand") else value
    return settings


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CofError(f"The link's {name} must be a number, not {text!r}.") from None


def _key(name: str, number: int) -> str:
    return name if number == 1 else f"{name}{number}"
