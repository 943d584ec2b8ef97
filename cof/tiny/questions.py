"""Questions about a scene, in the style of POPE, MME and MMBench, each with its region.

The first line of a question is the question itself; options and answer instruction follow on
lines of their own, as in LLaVA-1.5's evaluations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cof.geometry.boxes import XYXY, centre, union
from cof.prompting.dialects import OPTION_LETTER, SHORT_ANSWER
from cof.tiny.scenes import COLORS, DIGITS, LETTERS, SHAPES, Scene, Thing

YES_NO = " Please answer yes or no."
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class Question:
    """One question about a scene."""

    kind: str  # a key of `cof.tiny.benchmark.KINDS`
    text: str  # the prompt without answer instruction
    answer: str  # one word, digit, letter or option letter
    things: tuple[int, ...]  # that the answer depends on, by number; empty: the whole image
    suffix: str = SHORT_ANSWER  # the answer instruction that LLaVA-1.5's evaluations append

    def region(self, scene: Scene) -> XYXY:
        """The box around all of `things`, of which there are some, 0..1 of the scene."""
        return union(scene.xyxy(scene.things[i]) for i in self.things)


def a(noun: str) -> str:
    """The noun with its indefinite article: `an orange star`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _pick(scene: Scene, rng: random.Random) -> tuple[int, Thing]:
    i = rng.randrange(len(scene.things))
    return i, scene.things[i]


def glyph(scene: Scene, rng: random.Random) -> Question:
    i, t = _pick(scene, rng)
    return Question(t.glyph_kind, f"What {t.glyph_kind} is on the {t.name}?", t.glyph, (i,))


def color(scene: Scene, rng: random.Random) -> Question:
    i, t = _pick(scene, rng)
    noun = rng.choice(("object", t.shape))
    return Question("color", f"What color is the {noun} with the {t.glyph_name}?", t.color, (i,))


def shape(scene: Scene, rng: random.Random) -> Question:
    i, t = _pick(scene, rng)
    noun = rng.choice(("object", f"{t.color} object"))
    return Question("shape", f"What shape is the {noun} with the {t.glyph_name}?", t.shape, (i,))


def size(scene: Scene, rng: random.Random) -> Question:
    i, t = _pick(scene, rng)
    return Question("size", f"Is the {t.name} small or large?", t.size, (i,))


def absent(scene: Scene, rng: random.Random, kind: str = "any") -> str:
    """A "colour shape" that is not in the scene.

    For kind `adversarial` both its colour and its shape occur, on different objects.
    """
    present = {t.name for t in scene.things}
    colors = {t.color for t in scene.things} if kind == "adversarial" else set(COLOR_NAMES)
    shapes = {t.shape for t in scene.things} if kind == "adversarial" else set(SHAPES)
    names = [f"{c} {s}" for c in COLOR_NAMES for s in SHAPES if c in colors and s in shapes]
    free = [n for n in names if n not in present]
    return rng.choice(free) if free else absent(scene, rng)


def existence(scene: Scene, rng: random.Random) -> Question:
    things: tuple[int, ...] = ()
    if rng.random() < 0.5:
        i, t = _pick(scene, rng)
        name, answer, things = t.name, "yes", (i,)
    else:
        name, answer = absent(scene, rng, rng.choice(("any", "adversarial"))), "no"
    return Question("existence", f"Is there {a(name)} in the image?", answer, things, YES_NO)


def glyph_existence(scene: Scene, rng: random.Random) -> Question:
    present = {t.glyph for t in scene.things}
    things: tuple[int, ...] = ()
    if rng.random() < 0.5:
        i, t = _pick(scene, rng)
        g, answer, things = t.glyph, "yes", (i,)
    else:
        g = rng.choice([c for c in DIGITS + LETTERS if c not in present])
        answer = "no"
    kind = "digit" if g in DIGITS else "letter"
    return Question("existence", f"Is the {kind} {g} in the image?", answer, things, YES_NO)


def _countable(scene: Scene, rng: random.Random) -> tuple[str, tuple[int, ...]]:
    if rng.random() < 0.5:
        s = rng.choice(SHAPES) if rng.random() < 0.2 else rng.choice(scene.things).shape
        plural = s + ("es" if s == "cross" else "s")
        return plural, tuple(i for i, t in enumerate(scene.things) if t.shape == s)
    c = rng.choice(COLOR_NAMES) if rng.random() < 0.2 else rng.choice(scene.things).color
    return f"{c} objects", tuple(i for i, t in enumerate(scene.things) if t.color == c)


def count(scene: Scene, rng: random.Random) -> Question:
    what, things = _countable(scene, rng)
    return Question("count", f"How many {what} are in the image?", str(len(things)), things)


def verify_count(scene: Scene, rng: random.Random) -> Question:
    what, things = _countable(scene, rng)
    n, answer = len(things), "yes"
    if rng.random() < 0.5:
        n, answer = rng.choice([m for m in (n - 1, n + 1, n + 2) if m >= 0]), "no"
    return Question("count", f"Are there {n} {what} in the image?", answer, things, YES_NO)


def position(scene: Scene, rng: random.Random) -> Question:
    if len(scene.things) < 2:
        return existence(scene, rng)
    i, j = rng.sample(range(len(scene.things)), 2)
    one, two = scene.things[i], scene.things[j]
    dx, dy = (a - b for a, b in zip(centre(one.xyxy), centre(two.xyxy), strict=True))
    if abs(dx) > abs(dy):
        truth, lie = ("to the left of", "to the right of")[:: 1 if dx < 0 else -1]
    else:
        truth, lie = ("above", "below")[:: 1 if dy < 0 else -1]
    relation, answer = (truth, "yes") if rng.random() < 0.5 else (lie, "no")
    text = f"Is the {one.name} {relation} the {two.name}?"
    return Question("position", text, answer, (i, j), YES_NO)


def _values(thing: Thing, aspect: str) -> Sequence[str]:
    """What a `glyph` (of the same kind), a `color` or a `shape` may be."""
    glyphs = DIGITS if thing.glyph_kind == "digit" else LETTERS
    return {"glyph": glyphs, "color": COLOR_NAMES, "shape": SHAPES}[aspect]


def verify(scene: Scene, rng: random.Random) -> Question:
    i, t = _pick(scene, rng)
    true = rng.random() < 0.5
    aspect = rng.choice(("glyph", "color", "shape"))
    said = getattr(t, aspect)
    if not true:
        said = rng.choice([value for value in _values(t, aspect) if value != said])
    about = f"object with the {t.glyph_name}"
    if aspect == "glyph":
        about = f"{t.glyph_kind} on the {t.name}"
    text = f"Is the {about} {a(said) if aspect == 'shape' else said}?"
    return Question("verify", text, "yes" if true else "no", (i,), YES_NO)


def choice(scene: Scene, rng: random.Random) -> Question:
    """A question with four options; wrong ones come from the scene's other objects if possible."""
    ask = rng.choice((glyph, color, shape))
    q, aspect = ask(scene, rng), ask.__name__
    values = set(_values(scene.things[q.things[0]], aspect))
    seen = {getattr(thing, aspect) for thing in scene.things} & values
    near = sorted(seen - {q.answer})
    far = sorted(values - seen)
    rng.shuffle(near)
    rng.shuffle(far)
    options = [q.answer, *(near + far)[:3]]
    rng.shuffle(options)
    lines = "".join(f"\n{letter}. {o}" for letter, o in zip("ABCD", options, strict=True))
    answer = "ABCD"[options.index(q.answer)]
    return Question("choice", q.text + lines, answer, q.things, OPTION_LETTER)


Asker = Callable[[Scene, random.Random], Question]
_ASKERS: tuple[Asker, ...] = (glyph, color, shape, size, existence, glyph_existence, count)
_ASKERS += (verify_count, position, verify, choice)
KINDS: dict[str, Asker] = {ask.__name__: ask for ask in _ASKERS}
