"""Text and images put together on white paper."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from cof.viz.text import font_for, wrapped

PAPER = (255, 255, 255)
INK = (28, 30, 38)
FAINT = (104, 108, 120)

MARGIN = 28
GAP = 24  # between panels
QUESTION, VALUE, TITLE, SMALL = 34, 34, 26, 22  # font sizes in pixels
NARROWEST = 440  # a panel's column: wide enough for its title
MOST_LINES = 6  # of one text


def draw_text(text: str, size: int, ink: tuple[int, int, int], width: int) -> Image.Image:
    """A text in lines of at most `width` pixels."""
    lines = wrapped(text, size, width, MOST_LINES)
    font, step = font_for(text, size), round(size * 1.3)
    used = max(1, *(round(font.getlength(line) + 0.5) for line in lines))
    image = Image.new("RGB", (min(used, width), step * len(lines)), PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, step * number + step // 2), line, fill=ink, font=font, anchor="lm")
    return image


def draw_labelled(label: str, text: str, ink: tuple[int, int, int], width: int) -> Image.Image:
    """A value after its name, on one base line."""
    name = draw_text(label, SMALL, FAINT, width)
    value = draw_text(text, VALUE, ink, width - name.width - 10)
    image = Image.new("RGB", (name.width + 10 + value.width, value.height), PAPER)
    image.paste(value, (name.width + 10, 0))
    image.paste(name, (0, round(VALUE * 1.3) - name.height - 5))
    return image


def stack(parts: Sequence[Image.Image], gap: int, width: int = 0) -> Image.Image:
    """Images below one another, left edges aligned."""
    width = max([width, *(part.width for part in parts)])
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    image, y = Image.new("RGB", (width, height), PAPER), 0
    for part in parts:
        image.paste(part, (0, y))
        y += part.height + gap
    return image


def line_up(parts: Sequence[Image.Image], gap: int, *, top: bool = False) -> Image.Image:
    """Images beside one another, centred vertically, or aligned at the top."""
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    height = max(part.height for part in parts)
    image, x = Image.new("RGB", (width, height), PAPER), 0
    for part in parts:
        image.paste(part, (x, 0 if top else (height - part.height) // 2))
        x += part.width + gap
    return image
