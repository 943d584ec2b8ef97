"""Text in drawings: a font that has the characters, and lines that fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_WIDER = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
)
"""System fonts with more characters than Pillow's own, which has those of English only."""

ELLIPSIS = "…"


@lru_cache(maxsize=512)
def font_for(text: str, size: int) -> Font:
    """Pillow's own font; if it lacks a character of `text`, the first font that has all of them,
    and Pillow's own if none has."""
    default = ImageFont.load_default(size)
    if _has_all(default, text):
        return default
    for name in (*_WIDER, *_of_matplotlib()):
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if _has_all(font, text):
            return font
    return default


def wrapped(text: str, size: int, width: float, most: int) -> list[str]:
    """`text` in at most `most` lines of at most `width` pixels, the last one cut short if need be.

    Its own line breaks are kept; words longer than a line are broken anywhere.
    """
    font = font_for(text, size)
    found = [line for own in text.strip().splitlines() for line in _broken(own, font, width)]
    if len(found) <= most:
        return found or [""]
    last = found[most - 1]
    while last and font.getlength(last + ELLIPSIS) > width:
        last = last[:-1]
    return [*found[: most - 1], last + ELLIPSIS]


def _broken(line: str, font: Font, width: float) -> list[str]:
    found: list[str] = []
    for word in line.split() or [""]:
        joined = f"{found[-1]} {word}" if found else word
        if found and font.getlength(joined) <= width:
            found[-1] = joined
            continue
        rest = word
        while len(rest) > 1 and font.getlength(rest) > width:
            cut = max(1, bisect_right(range(len(rest)), width, key=_length_of(rest, font)) - 1)
            found.append(rest[:cut])
            rest = rest[cut:]
        found.append(rest)
    return found


def _length_of(text: str, font: Font) -> Callable[[int], float]:
    """How many pixels the first n characters take."""
    return lambda n: font.getlength(text[:n])


def _has_all(font: Font, text: str) -> bool:
    missing = _shape(font, "\uffff")  # no character, so drawn as every missing one is
    return all(_shape(font, letter) != missing for letter in set(text) if not letter.isspace())


def _shape(font: Font, letter: str) -> tuple[bytes, tuple[int, int]]:
    mask = font.getmask(letter)
    return bytes(mask), mask.size


def _of_matplotlib() -> list[str]:
    """DejaVu Sans comes with matplotlib, which need not be imported for it."""
    spec = find_spec("matplotlib")
    folders = spec.submodule_search_locations if spec else None
    return [str(Path(folders[0], "mpl-data/fonts/ttf/DejaVuSans.ttf"))] if folders else []
