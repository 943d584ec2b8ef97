"""All options of the method as one validated value, and the presets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from cof.errors import CofError
from cof.focuses import FOCUSES, Focus
from cof.focuses.overlay import Overlay
from cof.grounders import GROUNDERS, Grounder
from cof.grounders.prompt import Boxes, Parser
from cof.types import CellRule, Scope

OnMissing = Literal["plain", "whole"]
Edge = Literal["move", "snap"]

T = TypeVar("T")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(name: str, value: Any) -> float:
    if not (_is_number(value) and math.isfinite(value) and value > 0):
        raise CofError(f"{name} must be a finite number above 0, not {value!r}.")
    return float(value)


def _fraction(name: str, value: Any) -> float:
    if not (_is_number(value) and 0 <= value <= 1):
        raise CofError(f"{name} must be a number in 0..1, not {value!r}.")
    return float(value)


def _count(name: str, value: Any) -> int:
    if not (isinstance(value, int) and value >= 1):
        raise CofError(f"{name} must be a whole number above 0, not {value!r}.")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):  # "False" would be true
        raise CofError(f"{name} must be True or False, not {value!r}.")
    return value


def _text(name: str, value: Any) -> str | None:
    return None if value is None else str(value)


def _indices(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    indices = tuple(value) if isinstance(value, (tuple, list, range)) else ()
    if not indices or not all(type(index) is int and index >= 0 for index in indices):
        raise CofError(f"{name} must be a list of numbers from 0 on, or left out, not {value!r}.")
    return indices


def _template(name: str, value: Any) -> str | None:
    if value in (None, "paper") or re.search(r"\{(question|first_line)\}", str(value)):
        return _text(name, value)
    raise CofError(
        f"{name} {value!r} does not say where the question goes: write {{question}} or "
        "{first_line} in it, or 'paper' for the paper's wording."
    )


def _grounders(name: str, value: Any) -> str:
    if isinstance(value, str):
        names = value.split("+")
        known = all(of in GROUNDERS for of in names) and len(set(names)) == len(names)
        if known and (len(names) == 1 or not {"given", "none"} & set(names)):
            return value
    raise CofError(
        f"{name} must be one of {', '.join(GROUNDERS)}, or several joined by + such as "
        f"prompt+attention, not {value!r}."
    )


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise CofError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        return str(value)

    return check


def _setting(default: T, check: Callable[[str, Any], object], help: str, symbol: str = "") -> T:
    """A field of `Settings`.

    Args:
        default: its default.
        check: returns its value, or refuses it.
        help: for the command line and the documentation.
        symbol: the paper's, for messages.
    """
    value: T = field(default=default, metadata={"check": check, "help": help, "symbol": symbol})
    return value


@dataclass(frozen=True)
class Settings:
    """How the two stages are run. The defaults are the paper's, with its 7B model's numbers.

    `fields(Settings)` tell each setting's meaning in `metadata["help"]`; `cof settings` prints
    them.

    Raises:
        CofError: a value is out of range or not among the choices.
    """

    grounder: str = _setting(
        "prompt",
        _grounders,
        "where to look; several joined by +: look at each, keep the answer that is surer by the "
        "probability of its first token",
    )
    focus: str = _setting("attention", _one_of(*FOCUSES), "how to make the model look there")
    expand: float = _setting(
        1.3,
        _positive,
        "alpha, by which a region is scaled about its centre (section II-B)",
        "alpha",
    )
    strength: float = _setting(
        2.0, _positive, "lambda of equation 3; 1 leaves the model as it is", "lambda"
    )
    scope: Scope = _setting(
        "all",
        _one_of(*get_args(Scope)),
        "which queries attend with the bias: all (the paper), or only the text after the image",
    )
    layers: tuple[int, ...] | None = _setting(
        None, _indices, "decoder layers with the bias, such as 0-15,20; default: all (the paper)"
    )
    heads: tuple[int, ...] | None = _setting(
        None, _indices, "attention heads with the bias, such as 0-7; default: all (the paper)"
    )
    guidance: float = _setting(
        1.3, _positive, "focus contrast: how far to guide away from not looking; 1: not at all"
    )
    overlay: Overlay = _setting(
        "frame", _one_of(*get_args(Overlay)), "focus overlay: what is drawn around the region"
    )
    grounding_prompt: str | None = _setting(
        None,
        _template,
        "stage 1's prompt: 'paper', or a template with {question} or {first_line} in it; default: "
        "the model family's own",
    )
    boxes: Boxes = _setting(
        "free",
        _one_of(*get_args(Boxes)),
        "how the model's box is decoded: free (as the model likes, the paper), or template (in its "
        "family's format, of which the model chooses the numbers alone: always readable, and "
        "faster)",
    )
    grounding_max_new_tokens: int = _setting(128, _count, "the longest reply of stage 1")
    parser: Parser = _setting(
        "tolerant",
        _one_of(*get_args(Parser)),
        "how boxes are read: tolerant, or released (the released code's regular expression)",
    )
    on_missing: OnMissing = _setting(
        "plain",
        _one_of(*get_args(OnMissing)),
        "when no box is found: the plain model answers, or the whole image is highlighted (the "
        "released code)",
    )
    min_confidence: float = _setting(
        0.0, _fraction, "boxes less sure than this (0..1) count as not found"
    )
    max_plain_confidence: float = _setting(
        1.0,
        _fraction,
        "look only where the plain answer is at most this sure (0..1), which costs one more "
        "answer; 1: always look",
    )
    min_box: float = _setting(
        0.0,
        _fraction,
        "a box is widened to this side at least, 0..1 of the image, before expansion",
    )
    square: bool = _setting(
        False, _flag, "give a box its longer side both ways (the released code)"
    )
    edge: Edge = _setting(
        "move",
        _one_of(*get_args(Edge)),
        "a box that leaves the image is moved back inside (the paper), or snaps to the border "
        "(the released code)",
    )
    cells: CellRule = _setting(
        "coverage",
        _one_of(*get_args(CellRule)),
        "how a box becomes image tokens: by what they show of it, or by its corners' grid cells "
        "(the released code)",
    )
    grounder_layers: tuple[int, ...] | None = _setting(
        None,
        _indices,
        "grounders attention and relevance: the decoder layers to read, such as 12-16; default: "
        "the method's own",
    )
    detector: str | None = _setting(
        None, _text, "grounder detector: hub id or path of the open-vocabulary detector"
    )

    def __post_init__(self) -> None:
        for of in fields(self):
            symbol = of.metadata["symbol"]
            name = f"{of.name} ({symbol})" if symbol else of.name
            object.__setattr__(self, of.name, of.metadata["check"](name, getattr(self, of.name)))

    @property
    def grounders(self) -> tuple[str, ...]:
        """The names in `grounder`."""
        return tuple(self.grounder.split("+"))

    @property
    def changes_nothing(self) -> str:
        """Why no region is needed, so that stage 1 is skipped; empty if one is."""
        if self.focus == "none":
            return "Nothing was looked for: focus is 'none'."
        if FOCUSES[self.focus].uses_strength and self.strength == 1:
            return "Nothing was looked for: strength (lambda) is 1, which changes nothing."
        return ""

    def make_grounder(self, name: str) -> Grounder:
        """The grounder of that name with these settings.

        Raises:
            CofError: a setting that it needs is missing.
        """
        return GROUNDERS[name](**self.values_of(GROUNDERS[name]))

    def make_focus(self) -> Focus:
        """The focus with these settings."""
        return FOCUSES[self.focus](**self.values_of(FOCUSES[self.focus]))

    def values_of(self, method: type[Any]) -> dict[str, Any]:
        """The settings that a grounder or focus takes, by name."""
        known = {of.name for of in fields(self)}
        return {of.name: getattr(self, of.name) for of in fields(method) if of.name in known}

    def changed(self, **changes: Any) -> Settings:
        """A copy with some values changed.

        Raises:
            CofError: there is no such setting, or the value is refused.
        """
        known = [of.name for of in fields(self)]
        for name in changes:
            if name not in known:
                raise CofError(f"There is no setting {name!r}; there are {', '.join(known)}.")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PresetRow:
    """One model's settings in a preset.

    Attributes:
        model: the model's name in the paper; `tiny`: the embedded ones.
        pattern: a regular expression found in the hub id or path of that model, lower case.
        settings: its settings.
    """

    model: str
    pattern: str
    settings: Settings


_LLAVA_7B = ("LLaVA-1.5-7B", r"llava-?v?1\.5-?(vicuna-)?7b")
_LLAVA_13B = ("LLaVA-1.5-13B", r"llava-?v?1\.5-?(vicuna-)?13b")
_INSTRUCTBLIP_13B = ("InstructBLIP-13B", r"instructblip-?(vicuna-)?13b")

_PARITY = Settings(
    grounding_prompt="paper",
    on_missing="whole",
    square=True,
    edge="snap",
    cells="corners",
    parser="released",
    grounding_max_new_tokens=128,
)

PRESETS: Mapping[str, tuple[PresetRow, ...]] = {
    # section III-A
    "paper": (
        PresetRow(*_LLAVA_7B, Settings(expand=1.3, strength=2.0, grounding_prompt="paper")),
        PresetRow(*_LLAVA_13B, Settings(expand=1.0, strength=4.5, grounding_prompt="paper")),
        PresetRow(
            *_INSTRUCTBLIP_13B, Settings(expand=1.0, strength=22.0, grounding_prompt="paper")
        ),
    ),
    # the released code, which runs LLaVA-1.5 alone, with all that it does otherwise
    "paper-parity": (
        PresetRow(*_LLAVA_7B, _PARITY.changed(expand=1.3, strength=2.0)),
        PresetRow(*_LLAVA_13B, _PARITY.changed(expand=1.0, strength=4.5)),
    ),
    # what `cof eval tiny --model tiny-early` chose on its validation scenes
    "tiny": (PresetRow("tiny", r"tiny", Settings(expand=1.6, strength=16.0, scope="text")),),
}


def preset(name: str, model_name: str = "") -> Settings:
    """The settings of a preset for a model.

    Args:
        name: a key of `PRESETS`; `name:model` asks for one model's row whatever `model_name` is.
        model_name: hub id or path.

    Raises:
        CofError: no such preset, or it has no row for this model.

    Examples:
        >>> preset("paper", "llava-hf/llava-1.5-13b-hf").strength
        4.5
        >>> preset("paper:llava-1.5-7b", "/models/mine").expand
        1.3
    """
    name, _, asked = name.partition(":")
    if name not in PRESETS:
        raise CofError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    rows = PRESETS[name]
    wanted = asked or model_name
    for row in rows:
        if re.search(row.pattern, wanted.lower()):
            return row.settings
    known = ", ".join(row.model for row in rows)
    raise CofError(
        f"Preset {name!r} has no settings for {wanted or 'this model'}, only for {known}: "
        f"name one ({name}:{rows[0].model}), or set expand and strength yourself."
    )


def default_settings(model_name: str, dialect_name: str = "") -> Settings:
    """The settings used when none are named: the embedded model's, the paper's, or the defaults.

    >>> default_settings("llava-hf/llava-1.5-13b-hf").strength
    4.5
    >>> default_settings("somebody/another-model") == Settings()
    True
    """
    if dialect_name == "tiny":
        return PRESETS["tiny"][0].settings
    for row in PRESETS["paper"]:
        if re.search(row.pattern, model_name.lower()):
            return row.settings
    return Settings()
