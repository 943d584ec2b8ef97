"""How the two stages are run: a grounder, the post-processing of its region, a focus.

Grounders and focuses are named, or made of options given by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

from cof.errors import CofError
from cof.focuses import FOCUSES, Focus
from cof.geometry.boxes import expand_snapped, widen
from cof.geometry.regions import Region, expand_region
from cof.grounders import GROUNDERS, Grounder
from cof.options import Options, check_text, flag, fraction, option, options_of, positive

GrounderLike: TypeAlias = "str | Grounder | Sequence[Grounder]"
FocusLike: TypeAlias = "str | Focus"


@dataclass(frozen=True, init=False)
class Settings(Options):
    """Where to look, what becomes of the region, and how to make the model look there.

    The defaults are the paper's, with its 7B model's numbers. Options of the grounder and of the
    focus may be given in their objects or beside them, by name: these two are equal.

        >>> from cof import Attention, Prompt
        >>> given = Settings(Prompt(boxes="template"), Attention(strength=4.5), expand=1.0)
        >>> given == Settings(boxes="template", strength=4.5, expand=1.0)
        True

    Attributes:
        grounders: where to look; of several the surest answer is kept.
        focus: how to make the model look.

    Raises:
        CofError: no such option, or a value that is refused.
    """

    grounders: tuple[Grounder, ...]
    focus: Focus
    max_plain_confidence: float = option(
        1.0, "Look only if the plain answer is at most this sure (0..1); 1: always look", fraction
    )
    min_box: float = option(
        0.0, "Widen a box to at least this side (0..1 of the image) before it is expanded", fraction
    )
    expand: float = option(
        1.3, "alpha: scale the region about its centre by this factor (section II-B)", positive
    )
    system: str = option(
        "", "The system message of chats without one of their own; vicuna_v1: LLaVA's", check_text
    )
    released: bool = option(
        False,
        "Do all that the paper's released code does otherwise: how boxes are read, squared, "
        "expanded and made image tokens, and the whole image where no box is found",
        flag,
    )

    def __init__(
        self, grounder: GrounderLike = "prompt", focus: FocusLike = "attention", **options: Any
    ) -> None:
        """
        Args:
            grounder: a grounder, several, or a name; names may be joined: `prompt+attention`.
            focus: a focus or its name.
            options: of the settings, of the grounders and of the focus, by name;
                `attention.min_confidence` is the one of several grounders.
        """
        grounders, method = find_grounders(grounder), find_focus(focus)
        methods = [*grounders, method]
        if any(getattr(each, "released", False) for each in methods):
            options.setdefault("released", True)
        owned = {name for each in (Settings, *methods) for name in values_of(each)}
        for name in options:
            if name not in owned:
                raise CofError(explain_unknown(name, methods, _OWN))
            if name in _OWN:
                object.__setattr__(self, name, options[name])
        self.__post_init__()
        options["released"] = self.released
        object.__setattr__(self, "grounders", tuple(make(each, options) for each in grounders))
        object.__setattr__(self, "focus", make(method, options))

    @property
    def grounder_name(self) -> str:
        """The names of the grounders, joined by +."""
        return "+".join(each.name for each in self.grounders)

    def option(self, name: str) -> Any:
        """The value of an option; None if no method in use has it."""
        owners = (self, *self.grounders, self.focus)
        return next((values_of(each)[name] for each in owners if name in values_of(each)), None)

    @property
    def changes_nothing(self) -> str:
        """Why no region is needed, so that stage 1 is skipped; empty if one is."""
        reason = self.focus.changes_nothing
        return f"Nothing was looked for: {reason[0].lower()}{reason[1:]}" if reason else ""

    def changed(
        self,
        grounder: GrounderLike | None = None,
        focus: FocusLike | None = None,
        **options: Any,
    ) -> Settings:
        """A copy with some options changed. A method named anew keeps the options that it shares.

            >>> Settings(strength=8.0).changed(focus="soft", scope="text").focus.strength
            8.0

        Raises:
            CofError: no such option, or a value that is refused.
        """
        known: dict[str, Any] = {}
        for each in (*self.grounders, self.focus):
            known |= values_of(each)
        known |= options
        kept = {name: getattr(self, name) for name in _OWN if name != "released" or self.released}
        grounders = self.grounders if grounder is None else find_grounders(grounder)
        chosen = self.focus if focus is None else find_focus(focus)
        made = [make(each, known) if isinstance(each, type) else each for each in grounders]
        chosen = make(chosen, known) if isinstance(chosen, type) else chosen
        return Settings(made, chosen, **{**kept, **options})

    def as_dict(self) -> dict[str, Any]:
        """All options by name, ready for JSON; `Settings(**settings.as_dict())` reads them."""
        values: dict[str, Any] = {"grounder": self.grounder_name, "focus": self.focus.name}
        for owner in (self, *self.grounders, self.focus):
            for each in options_of(owner):
                value = getattr(owner, each.name)
                same = values.setdefault(each.name, value) == value
                values |= {} if same else {f"{owner.name}.{each.name}": value}
        return values

    def post_process(self, region: Region, image_wh: tuple[int, int]) -> Region:
        """A region ready for stage 2: widened and expanded (paper, section II-B).

        With `released` boxes follow the released code and may leave 0..1 (into the padding).

        Example: alpha = 2 about the centre, moved inside.

            >>> corner = Region(boxes=((0.0, 0.75, 0.25, 1.0),))
            >>> Settings(expand=2.0).post_process(corner, (100, 100)).boxes
            ((0.0, 0.5, 0.5, 1.0),)
        """
        if region.whole or region.mask is not None:
            return expand_region(region, self.expand)
        boxes = region.boxes
        if self.min_box > 0:
            boxes = tuple(widen(box, self.min_box) for box in boxes)
        if self.released:
            boxes = tuple(expand_snapped(box, self.expand, image_wh) for box in boxes)
            return replace(region, boxes=boxes)
        return expand_region(replace(region, boxes=boxes), self.expand)


_OWN = tuple(each.name for each in options_of(Settings))


def find_grounders(given: GrounderLike) -> list[Any]:
    """Grounders, or their classes where they are named."""
    if isinstance(given, Grounder):
        return [given]
    names: Sequence[Any] = given.split("+") if isinstance(given, str) else given
    if isinstance(names, (list, tuple)) and names:
        methods = [each if isinstance(each, Grounder) else GROUNDERS.get(each) for each in names]
        used = {each.name for each in methods if each is not None}
        if len(used) == len(names) and (len(names) == 1 or not used & {"given", "none"}):
            return methods
    raise CofError(
        f"grounder must be one of {', '.join(GROUNDERS)}, or several joined by + such as "
        f"prompt+attention, not {given!r}."
    )


def find_focus(given: FocusLike) -> Any:
    """A focus, or its class where it is named."""
    if isinstance(given, Focus):
        return given
    if isinstance(given, str) and given in FOCUSES:
        return FOCUSES[given]
    raise CofError(f"focus must be one of {', '.join(FOCUSES)}, not {given!r}.")


def values_of(owner: Any) -> dict[str, Any]:
    """The options of an object or class by name, each also as `method.option`, with its value."""
    values = {each.name: getattr(owner, each.name) for each in options_of(owner)}
    if owner.name:
        values |= {f"{owner.name}.{name}": value for name, value in values.items()}
    return values


def make(method: Any, options: Mapping[str, Any]) -> Any:
    """The method with those of the options that are its own."""
    own = {
        each.name: options[name]
        for each in options_of(method)
        for name in (each.name, f"{method.name}.{each.name}")
        if name in options
    }
    return method(**own) if isinstance(method, type) else replace(method, **own)


def explain_unknown(name: str, methods: Sequence[Any], own: Sequence[str]) -> str:
    """The sentence about an option that none of the methods in use has."""
    known: dict[str, list[str]] = {}
    for kind, registry in (("grounder", GROUNDERS), ("focus", FOCUSES)):
        for owner, method in registry.items():
            for each in values_of(method):
                known.setdefault(each, []).append(f"{kind} {owner}")
    if name in known:
        used = " and ".join(method.name for method in methods)
        return f"{name} is an option of {', '.join(known[name])}, not of {used}."
    symbol = {"lambda": "strength", "lambda_": "strength", "alpha": "expand"}.get(name)
    near = [symbol] if symbol else get_close_matches(name, [*known, *own, "grounder", "focus"], 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"There is no option {name!r}; {meant}`cof settings` lists them."
