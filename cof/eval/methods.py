"""Methods to compare: the settings of the pipeline, or regions given in the grounder's place."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cof.errors import CofError
from cof.eval.examples import Example
from cof.geometry.boxes import FULL, XYXY, clip, intersection
from cof.geometry.regions import Region
from cof.grounders import Grounder
from cof.options import Options, options_of
from cof.settings import Settings

Given = Literal["", "oracle", "random"]

_SHOWN = ("strength", "expand", "scope")  # in every key of a method that uses them


@dataclass(frozen=True)
class Method:
    """One way of answering.

    Attributes:
        settings: the pipeline's.
        given: regions in the grounder's place: `oracle`: the true ones; `random`: boxes of the
            true ones' size elsewhere, the control; empty: there are none.
    """

    settings: Settings
    given: Given = ""

    @property
    def is_plain(self) -> bool:
        """Whether the plain model answers every question."""
        none = self.settings.grounder_name == "none" and not self.given
        return none or bool(self.settings.changes_nothing)

    @property
    def name(self) -> str:
        """Where to look, and how: the name of its cell in a grid.

        >>> Method(Settings(focus="crop"), "oracle").name
        'oracle x crop'
        """
        if self.is_plain:
            return "plain"
        return f"{self.given or self.settings.grounder_name} x {self.settings.focus.name}"

    @property
    def key(self) -> str:
        """Names the method in records; it differs wherever any setting may change an answer.

        >>> Method(Settings(strength=4.0, scope="text")).key
        'prompt x attention expand=1.3 scope=text strength=4'
        >>> Method(Settings(grounder="whole", expand=2.0, layers=(0, 1))).key
        'whole x attention layers=0,1 scope=all strength=2'
        """
        if self.is_plain:
            return "plain"
        settings = self.settings
        grounders = () if self.given else settings.grounders
        own = {"released"}
        if settings.grounder_name != "whole" or self.given:
            own |= {"expand", "min_box"}
        if grounders:
            own |= {"max_plain_confidence"}
        return f"{self.name}{_write_options([*grounders, settings.focus], settings, own)}"

    @property
    def without_threshold(self) -> Method:
        """The method that looks whatever the plain answer's confidence."""
        return replace(self, settings=self.settings.changed(max_plain_confidence=1.0))

    def region(self, example: Example, seed: int) -> Region | None:
        """The region that is given for a question, xyxy in 0..1 of the image; None: none is.

        A question without a true region is about the whole image; a region is cut at its edge.
        """
        true = clip(example.region or FULL)
        if self.given == "oracle":
            return Region(boxes=(true,))
        if self.given == "random":
            return Region(boxes=(sample_box_elsewhere(true, f"{seed}-{example.id}"),))
        return None


PLAIN = Method(Settings(grounder="none"))


def system_of(methods: Iterable[Method], grounded: Sequence[Settings] = ()) -> str:
    """The system message of a run, with which the plain model is asked too.

    Raises:
        CofError: methods have different ones.
    """
    asked = [method.settings for method in methods if not method.is_plain]
    systems = {settings.system for settings in (*asked, *grounded)}
    if len(systems) > 1:
        raise CofError("All methods of a run have one system message: run others by themselves.")
    return systems.pop() if systems else ""


def box_grounders(settings: Settings) -> list[Grounder]:
    """The grounders of the settings that look for boxes.

    >>> [each.name for each in box_grounders(Settings(grounder="prompt+whole"))]
    ['prompt']
    """
    return [each for each in settings.grounders if each.name not in ("given", "whole", "none")]


def grounding_key(grounder: Grounder) -> str:
    """Names the outcomes of a grounder in records.

    >>> from cof import Prompt
    >>> grounding_key(Prompt(min_confidence=0.5))
    'grounding prompt min_confidence=0.5'
    """
    return f"grounding {grounder.name}{_write_options([grounder])}"


def sample_box_elsewhere(xyxy: XYXY, seed: str) -> XYXY:
    """Of 64 random boxes of the same size the first that overlaps the given one least.

    >>> box = sample_box_elsewhere((0.0, 0.0, 0.25, 0.5), "any")
    >>> round(box[2] - box[0], 6), round(box[3] - box[1], 6), box[0] >= 0.25 or box[1] >= 0.5
    (0.25, 0.5, True)
    """
    rng = random.Random(seed)
    width, height = xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]
    corners = [(rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)) for _ in range(64)]
    boxes = [(x, y, x + width, y + height) for x, y in corners]
    return min(boxes, key=lambda box: intersection(box, xyxy))


def _write_options(
    methods: Sequence[Options], settings: Settings | None = None, own: Collection[str] = ()
) -> str:
    """` name=value` of each option that is not at its default, and of those always shown: all
    options of the methods, and of the settings those named in `own`."""
    shown: dict[str, str] = {}
    for owner in filter(None, (*methods, settings)):
        for each in options_of(owner):
            value = getattr(owner, each.name)
            counts = owner is not settings or each.name in own
            if counts and (each.name in _SHOWN or value != each.default):
                text = f" {each.name}={_write_value(value)}"
                if shown.setdefault(each.name, text) != text:  # of two grounders
                    shown[f"{owner.name}.{each.name}"] = f" {owner.name}.{text[1:]}"
    return "".join(sorted(shown.values()))


def _write_value(value: Any) -> str:
    """A setting's value, different for different ones."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    text = str(value)
    return text if re.fullmatch(r"[\w./{}-]+", text) else repr(text)
