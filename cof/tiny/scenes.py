"""Scenes of small objects on noisy backgrounds, made from a seed.

An object has a shape, a colour, a size and one printed digit or letter: tilted, wide or narrow,
thin or bold, dark or light. In a scene every (colour, shape) pair and every glyph occurs at most
once, so that either names an object. Positions are pixels of the canvas; `Scene.xyxy` gives 0..1.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cof.geometry.boxes import XYXY

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = {
    "red": (225, 60, 55),
    "green": (60, 175, 75),
    "blue": (85, 135, 250),
    "yellow": (245, 220, 60),
    "orange": (245, 145, 45),
    "purple": (175, 95, 215),
    "cyan": (75, 210, 215),
    "white": (248, 248, 248),
}
DIGITS = "0123456789"
LETTERS = "ACEFHKLPTX"
SIDE = 160  # longer side of a canvas, pixels; the model's input resolution
DIAMETERS = {"small": (21, 25), "large": (30, 36)}
FONT_PX = {"small": 14, "large": 19}
INKS = {"dark": (12, 12, 12), "light": (250, 250, 250)}
DARK_FILLS = ("red", "green", "blue", "purple")  # light ink is legible on these
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Thing:
    """One object: `xyxy` in canvas pixels, the tight square around its shape."""

    shape: str
    color: str
    size: str
    glyph: str
    xyxy: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def glyph_kind(self) -> str:
        return "digit" if self.glyph in DIGITS else "letter"

    @property
    def glyph_name(self) -> str:
        return f"{self.glyph_kind} {self.glyph}"


@dataclass(frozen=True)
class Scene:
    """A canvas of `wh` pixels with its objects; `seed` also fixes the background."""

    seed: int
    wh: tuple[int, int]
    things: tuple[Thing, ...]

    def xyxy(self, thing: Thing) -> XYXY:
        """The box of a thing in 0..1 of the canvas."""
        w, h = self.wh
        x1, y1, x2, y2 = thing.xyxy
        return x1 / w, y1 / h, x2 / w, y2 / h


def make_scene(seed: int, n_things: int, *, square: bool = True, side: int = SIDE) -> Scene:
    """Place `n_things` (1..16) objects without overlap.

    Args:
        square: False makes a wide or tall canvas (ratio up to 1.6) if there are at most 8 objects,
            so that padding to a square is part of the data.
        side: the canvas's longer side in pixels. Objects keep their size in pixels, and the model
            sees `SIDE` pixels, so at 200 every detail has 0.8 of the size in training.
    """
    if not 1 <= n_things <= 16:
        raise ValueError(f"a scene holds 1 to 16 things, not {n_things}")
    rng = random.Random(f"scene-{seed}")
    wh = (side, side)
    if not square and n_things <= 8:
        short = round(side / rng.uniform(1.15, 1.6))
        wh = (side, short) if rng.random() < 0.5 else (short, side)
    pairs = rng.sample([(c, s) for c in COLORS for s in SHAPES], n_things)
    glyphs = rng.sample(DIGITS + LETTERS, n_things)
    p_large = 0.5 if n_things <= 8 else 0.2
    while True:
        sizes = ["large" if rng.random() < p_large else "small" for _ in range(n_things)]
        boxes = _place([rng.randint(*DIAMETERS[s]) for s in sizes], wh, rng)
        if boxes is not None:
            break
        p_large *= 0.8  # no room: try again with fewer large ones
    things = tuple(
        Thing(shape, color, size, glyph, box)
        for (color, shape), size, glyph, box in zip(pairs, sizes, glyphs, boxes, strict=True)
    )
    return Scene(seed, wh, things)


def _place(
    diameters: list[int], wh: tuple[int, int], rng: random.Random
) -> list[tuple[int, int, int, int]] | None:
    w, h = wh
    placed: dict[int, tuple[int, int, int, int]] = {}
    for i in sorted(range(len(diameters)), key=lambda i: -diameters[i]):
        d = diameters[i]
        for _ in range(60):
            x, y = rng.randint(1, w - d - 1), rng.randint(1, h - d - 1)
            if all(
                x > b[2] + 1 or y > b[3] + 1 or x + d < b[0] - 1 or y + d < b[1] - 1
                for b in placed.values()
            ):
                placed[i] = (x, y, x + d, y + d)
                break
        else:
            return None
    return [placed[i] for i in range(len(diameters))]


def render(scene: Scene, scale: int = 1) -> Image.Image:
    """Draw a scene as RGB, `scale` times its canvas in pixels; equal seeds give equal pixels."""
    w, h = (side * scale for side in scene.wh)
    rng = np.random.default_rng([scene.seed, 7])
    corners = rng.integers(70, 190, size=(3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((w, h), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 10))):  # faint strokes in the background
        x1, x2 = (int(v) for v in rng.integers(0, w, 2))
        y1, y2 = (int(v) for v in rng.integers(0, h, 2))
        stroke = tuple(int(v) for v in rng.integers(60, 200, 3))
        draw.line((x1, y1, x2, y2), fill=stroke, width=scale)
    noise = rng.normal(0, rng.uniform(2, 9), size=(h, w, 1))
    pixels = np.asarray(image, dtype=np.float32) + noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    print_rng = random.Random(f"print-{scene.seed}")  # a separate one: equal at every scale
    for thing in scene.things:
        x1, y1, x2, _ = (v * scale for v in thing.xyxy)
        jitter = [print_rng.randint(-18, 18) for _ in range(3)]
        fill = tuple(int(v) for v in np.clip(np.add(COLORS[thing.color], jitter), 0, 255))
        image.paste(fill, (x1, y1), _shape_mask(thing.shape, x2 - x1))
        grow, squeeze = print_rng.choice((0.9, 1.0, 1.1)), print_rng.choice((0.85, 1.0, 1.15))
        tilt, bold = print_rng.randrange(-25, 26, 5), print_rng.random() < 0.5
        light = thing.color in DARK_FILLS and print_rng.random() < 0.5
        ink = INKS["light" if light else "dark"]
        font_px = FONT_PX[thing.size] * scale
        glyph = _glyph_mask(thing.glyph, font_px, grow, squeeze, tilt, bold)
        height = 0.6 if thing.shape == "triangle" else 0.5  # a triangle is wide only below
        cx, cy = (x1 + x2) // 2, round(y1 + (x2 - x1) * height)
        image.paste(ink, (cx - glyph.width // 2, cy - glyph.height // 2), glyph)
    return image


@lru_cache(maxsize=4096)
def _shape_mask(shape: str, diameter: int) -> Image.Image:
    d = diameter * SUPERSAMPLE
    mask = Image.new("L", (d, d))
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse((0, 0, d - 1, d - 1), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, d, d), fill=255)
    elif shape == "cross":
        a, b = round(d * 0.27), round(d * 0.73)
        draw.rectangle((a, 0, b, d), fill=255)
        draw.rectangle((0, a, d, b), fill=255)
    else:
        draw.polygon([(x * d, y * d) for x, y in _corners(shape)], fill=255)
    return mask.resize((diameter, diameter), Image.Resampling.BOX)


def _corners(shape: str) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "diamond":
        return [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]
    points = [((0.5, 0.25)[k % 2], -math.pi / 2 + k * math.pi / 5) for k in range(10)]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in points]


@lru_cache(maxsize=32768)
def _glyph_mask(
    glyph: str, font_px: int, grow: float, squeeze: float, tilt: int, bold: bool
) -> Image.Image:
    """The printed glyph as a mask, cropped to its ink; `tilt` is in degrees."""
    font = ImageFont.load_default(font_px * grow * SUPERSAMPLE)
    stroke = round(font_px * SUPERSAMPLE / 28) if bold else 0
    left, top, right, bottom = font.getbbox(glyph, stroke_width=stroke)
    mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    draw = ImageDraw.Draw(mask)
    draw.text((-left, -top), glyph, fill=255, font=font, stroke_width=stroke, stroke_fill=255)
    mask = mask.resize((max(1, round(mask.width * squeeze)), mask.height))
    mask = mask.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    w, h = (math.ceil(side / SUPERSAMPLE) for side in mask.size)
    return mask.resize((w, h), Image.Resampling.BOX)
