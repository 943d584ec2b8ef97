"""What the page is set to: the values of its controls, a link that has them, and the view."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from cof.errors import CofError
from cof.focuses import FOCUSES, Attention
from cof.geometry.regions import region_from_boxes
from cof.grounders import GROUNDERS
from cof.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from cof.geometry.boxes import XYXY

VARIED = ("grounder", "focus", "strength", "expand")
"""The settings that the page has controls for."""

RANGES = {"strength": (0.5, 64.0), "expand": (0.5, 4.0)}
"""Of the sliders."""


@dataclass(frozen=True, eq=False)
class View:
    """All that decides what the page shows, but for the image's pixels."""

    question: str
    settings: tuple[Settings, ...]  # one or two, each with an answer
    boxes: tuple[XYXY, ...] = ()  # the visitor's own, in 0..1 of the image


class Controls(NamedTuple):
    """The values of the controls, in their order on the page."""

    question: str
    boxes: str  # as `read_boxes` takes them; empty: at the place that the model finds
    grounder: str
    focus: str
    strength: float
    expand: float
    compare: bool  # whether a second answer is given, with the settings that follow
    other_grounder: str
    other_focus: str
    other_strength: float
    other_expand: float

    @classmethod
    def of(cls, settings: Settings, question: str = "") -> Controls:
        """Where the controls begin; of a lambda that the focus does not have, the default."""
        values = {"strength": Attention.strength, **settings.as_dict()}
        varied = [values[name] for name in VARIED]
        return cls._make([question, "", *varied, False, *varied])

    def within_ranges(self) -> Controls:
        """As the sliders show them: a number that is being typed may be none, or out of range."""
        held: dict[str, Any] = {}
        for name, (low, high) in RANGES.items():
            for field in (name, f"other_{name}"):
                held[field] = float(min(max(getattr(self, field) or low, low), high))
        return self._replace(**held)

    def view(self, defaults: Settings) -> View:
        """What the page is to show; `defaults` has all settings without a control.

        Raises:
            CofError: a value is refused.
        """
        settings, offered = [], grounder_choices(defaults)
        for chosen in (self[2:6], self[7:11])[: 1 + self.compare]:
            values: dict[str, Any] = dict(zip(VARIED, chosen, strict=True))
            grounder = values["grounder"]
            if grounder not in offered:
                names = ", ".join(offered)
                raise CofError(f"The page offers the grounders {names}, not {grounder!r}.")
            if not hasattr(FOCUSES.get(values["focus"], Attention), "strength"):
                del values["strength"]
            settings.append(defaults.changed(**values))
        return View(self.question, tuple(settings), read_boxes(self.boxes))


def write_query(controls: Controls, image: str, example: bool) -> str:
    """The query of a link to what the page shows, `question=...&grounder=...`."""
    values = {name: _write(value) for name, value in controls._asdict().items() if value != ""}
    if not controls.compare:
        values = {n: v for n, v in values.items() if n != "compare" and not n.startswith("other_")}
    return urlencode({"example" if example else "image": image, **values})


def read_query(query: Mapping[str, str], defaults: Settings) -> Controls:
    """The controls of a link: `defaults` where it leaves them out; what else it has is passed over.

    Raises:
        CofError: a value is refused.
    """
    begin = Controls.of(defaults)
    values: dict[str, Any] = {name: query[name] for name in begin._fields if name in query}
    for name in [each for each in values if isinstance(getattr(begin, each), float)]:
        try:
            values[name] = float(query[name])
        except ValueError:
            raise CofError(f"The link's {name} must be a number, not {query[name]!r}.") from None
    values["compare"] = values.get("compare") == "True"
    for name in VARIED:
        values.setdefault(f"other_{name}", values.get(name, getattr(begin, name)))
    controls = begin._replace(**values).within_ranges()
    controls.view(defaults)
    return controls


def grounder_choices(settings: Settings) -> dict[str, str]:
    """The grounders to choose from, with what each does, but for `given`, which the page's box
    stands for, and `detector` where none is set."""
    out = {"given"} if settings.option("detector") else {"given", "detector"}
    both = {"prompt+attention": "both, and the surer answer of the two"}
    choices = {name: grounder.help for name, grounder in GROUNDERS.items() if name not in out}
    return {"prompt": choices["prompt"], **both, **choices}


def write_commands(view: View, path: str, options: Sequence[str] = ()) -> list[str]:
    """The command lines that give the view's answers, one for each of its settings; `options` say
    how the model is loaded, such as `("--model", "tiny")`."""
    commands = []
    for number, settings in enumerate(view.settings, 1):
        words = ["cof", "ask", path, view.question, *options]
        values = settings.as_dict()
        for name in VARIED[1:] if view.boxes else VARIED:
            if name in values:
                words += [f"--{name}", _write(values[name])]
        for box in view.boxes:
            words += ["--box", *map(_write, box)]
        words += ["--compare", "--save", "look.png" if number == 1 else f"look{number}.png"]
        commands.append(shlex.join(words))
    return commands


def write_boxes(boxes: Sequence[XYXY]) -> str:
    """Boxes as text.

    >>> write_boxes([(0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.5)])
    '0.25 0.5 0.75 1; 0 0 0.5 0.5'
    """
    return "; ".join(" ".join(map(_write, box)) for box in boxes)


def read_boxes(text: str) -> tuple[XYXY, ...]:
    """Boxes from text, as `write_boxes` writes it or with commas; none if it is empty.

    >>> read_boxes("0.25, 0.5, 0.75, 1")
    ((0.25, 0.5, 0.75, 1.0),)

    Raises:
        CofError: it holds something else, or a box that is none.
    """
    boxes = []
    for part in filter(str.strip, text.split(";")):
        words = re.split(r"[\s,]+", part.strip(" \t\n,"))
        try:
            x1, y1, x2, y2 = map(float, words)
        except ValueError:
            raise CofError(
                f"A box is four numbers, x1 y1 x2 y2 in 0..1 of the image, not {part.strip()!r}."
            ) from None
        boxes.append((x1, y1, x2, y2))
    return region_from_boxes(boxes).boxes if boxes else ()


def read_strokes(layers: Sequence[Image]) -> XYXY | None:
    """The box around what was brushed over, in 0..1 with three decimals; None if nothing was.

    `layers` are RGBA of one size over the whole image, transparent where nothing is drawn.
    """
    drawn = [box for layer in layers if (box := layer.convert("RGBA").getchannel("A").getbbox())]
    if not drawn:
        return None
    (width, height), edges = layers[0].size, list(zip(*drawn, strict=True))
    x1, y1 = (math.floor(min(edges[i]) / n * 1000) / 1000 for i, n in ((0, width), (1, height)))
    x2, y2 = (math.ceil(max(edges[i]) / n * 1000) / 1000 for i, n in ((2, width), (3, height)))
    return x1, y1, x2, y2


def _write(value: float | str) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
