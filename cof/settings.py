"""All options of the method as one validated value, and the presets."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args

from cof.errors import CofError
from cof.focuses import FOCUSES, Focus
from cof.focuses.overlay import Overlay
from cof.grounders import GROUNDERS, Grounder
from cof.grounders.prompt import Boxes, Parser
from cof.types import CellRule, Scope

OnMissing = Literal["plain", "whole"]
Edge = Literal["move", "snap"]

WHERE, HOW = "Where to look", "How to look"
"""The groups of settings: those of stage 1 and of the region, and those of stage 2."""

T = TypeVar("T")
Check = Callable[[str, Any], object]


def check_characters(name: str, text: str) -> None:
    """
    Raises:
        CofError: the text holds half of a surrogate pair, which no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CofError(
            f"{name} holds half of a surrogate pair, which is not a character: remove it."
        ) from None


def _as_float(value: Any) -> float:
    """NaN for what is not a number, or too large for a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _as_index(value: Any) -> int:
    """-1 for what is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return -1
    return int(value)


def _positive(name: str, value: Any) -> float:
    number = _as_float(value)
    if not 0 < number < math.inf:
        raise CofError(f"{name} must be a finite number above 0, not {value!r}.")
    return number


def _fraction(name: str, value: Any) -> float:
    number = _as_float(value)
    if not 0 <= number <= 1:
        raise CofError(f"{name} must be a number in 0..1, not {value!r}.")
    return number


def _count(name: str, value: Any) -> int:
    if _as_index(value) < 1:
        raise CofError(f"{name} must be a whole number above 0, not {value!r}.")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):  # "False" would be true
        raise CofError(f"{name} must be True or False, not {value!r}.")
    return value


def _path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise CofError(f"{name} must be a hub id or a path, not {value!r}.")
    return os.fsdecode(value)


def _indices(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    indices = tuple(map(_as_index, value)) if isinstance(value, (tuple, list, range)) else ()
    if not indices or min(indices) < 0:
        raise CofError(f"{name} must be a list of numbers from 0 on, or left out, not {value!r}.")
    return indices


def _template(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value == "paper"):
        return value
    if not isinstance(value, str) or not re.search(r"\{(question|first_line)\}", value):
        raise CofError(
            f"{name} {value!r} does not say where the question goes: write {{question}} or "
            "{first_line} in it, or 'paper' for the paper's prompt."
        )
    check_characters(name, value)
    return value


def _grounders(name: str, value: Any) -> str:
    if isinstance(value, str):
        names = value.split("+")
        known = all(each in GROUNDERS for each in names) and len(set(names)) == len(names)
        if known and (len(names) == 1 or not {"given", "none"} & set(names)):
            return value
    raise CofError(
        f"{name} must be one of {', '.join(GROUNDERS)}, or several joined by + such as "
        f"prompt+attention, not {value!r}."
    )


def _one_of(choices: tuple[str, ...]) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise CofError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        return value

    return check


def _setting(
    group: str,
    default: T,
    help: str,
    check: Check | None = None,
    *,
    choices: tuple[str, ...] = (),
    symbol: str = "",
) -> T:
    """A field of `Settings`; its metadata hold all but the default.

    Args:
        group: `WHERE` or `HOW`.
        default: its default.
        help: for the command line and the documentation.
        check: returns its value, or refuses it; None: it must be one of `choices`.
        choices: the values that it may have, where they can be listed.
        symbol: the paper's symbol, for messages.
    """
    metadata = {
        "group": group,
        "help": help,
        "check": check or _one_of(choices),
        "choices": choices,
        "symbol": symbol,
    }
    value: T = field(default=default, metadata=metadata)
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
        WHERE,
        "prompt",
        "Where to look. Several joined by + (prompt+attention): look at each region, and keep the "
        "answer whose first token is more probable",
        _grounders,
        choices=tuple(GROUNDERS),
    )
    grounding_prompt: str | None = _setting(
        WHERE,
        None,
        "Prompt of stage 1: 'paper', or a template that holds {question} or {first_line}; default: "
        "the model family's own",
        _template,
    )
    boxes: Boxes = _setting(
        WHERE,
        "free",
        "How the model's box is decoded: free (the paper), or by a template, the format of the "
        "model family, where the model chooses the numbers alone (always readable, and faster)",
        choices=get_args(Boxes),
    )
    grounding_max_new_tokens: int = _setting(
        WHERE, 128, "The longest reply of stage 1, in tokens", _count
    )
    parser: Parser = _setting(
        WHERE,
        "tolerant",
        "How boxes are read from the reply: tolerant, or released (the released code's regular "
        "expression)",
        choices=get_args(Parser),
    )
    grounder_layers: tuple[int, ...] | None = _setting(
        WHERE,
        None,
        "Grounders attention and relevance: the decoder layers to read, such as 12-16; default: "
        "the method's own",
        _indices,
    )
    detector: str | None = _setting(
        WHERE, None, "Grounder detector: hub id or path of the open-vocabulary detector", _path
    )
    min_confidence: float = _setting(
        WHERE, 0.0, "A box whose confidence (0..1) is lower counts as not found", _fraction
    )
    max_plain_confidence: float = _setting(
        WHERE,
        1.0,
        "Answer plainly first, and look only if the plain answer's confidence (0..1) is at most "
        "this; 1: always look, without the plain answer",
        _fraction,
    )
    on_missing: OnMissing = _setting(
        WHERE,
        "plain",
        "If no box is found: answer plainly, or highlight the whole image (the released code)",
        choices=get_args(OnMissing),
    )
    min_box: float = _setting(
        WHERE,
        0.0,
        "Widen a box to at least this side, in 0..1 of the image, before it is expanded",
        _fraction,
    )
    square: bool = _setting(
        WHERE, False, "Give a box its longer side in both directions (the released code)", _flag
    )
    expand: float = _setting(
        WHERE,
        1.3,
        "alpha: scale the region about its centre by this factor (section II-B)",
        _positive,
        symbol="alpha",
    )
    edge: Edge = _setting(
        WHERE,
        "move",
        "A box that leaves the image is moved back inside (the paper), or snaps to the border "
        "(the released code)",
        choices=get_args(Edge),
    )
    focus: str = _setting(
        HOW, "attention", "How to make the model look there", choices=tuple(FOCUSES)
    )
    strength: float = _setting(
        HOW,
        2.0,
        "lambda of equation 3; 1 leaves the model as it is",
        _positive,
        symbol="lambda",
    )
    scope: Scope = _setting(
        HOW,
        "all",
        "Which queries attend with the bias: all (the paper), or only the text after the image",
        choices=get_args(Scope),
    )
    layers: tuple[int, ...] | None = _setting(
        HOW,
        None,
        "Decoder layers with the bias, such as 0-15,20; default: all (the paper)",
        _indices,
    )
    heads: tuple[int, ...] | None = _setting(
        HOW, None, "Attention heads with the bias, such as 0-7; default: all (the paper)", _indices
    )
    cells: CellRule = _setting(
        HOW,
        "coverage",
        "How a region becomes image tokens: by its coverage of what each token shows, or by the "
        "grid cells of its corners (the released code)",
        choices=get_args(CellRule),
    )
    guidance: float = _setting(
        HOW,
        1.3,
        "Focus contrast: how far to guide away from not looking; 1: not at all",
        _positive,
    )
    overlay: Overlay = _setting(
        HOW,
        "frame",
        "Focus overlay: draw a frame around the region, or blur or dim the rest",
        choices=get_args(Overlay),
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            symbol = each.metadata["symbol"]
            name = f"{each.name} ({symbol})" if symbol else each.name
            value = each.metadata["check"](name, getattr(self, each.name))
            object.__setattr__(self, each.name, value)

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
        return {name: getattr(self, name) for name in settings_of(method)}

    def changed(self, **changes: Any) -> Settings:
        """A copy with some values changed.

        Raises:
            CofError: there is no such setting, or the value is refused.
        """
        known = [each.name for each in fields(self)]
        for name in changes:
            if name not in known:
                raise CofError(f"There is no setting {name!r}; there are {', '.join(known)}.")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return asdict(self)


def settings_of(method: type[Any]) -> tuple[str, ...]:
    """The names of the settings that a grounder or focus takes: those of its fields.

    >>> settings_of(GROUNDERS["relevance"])
    ('grounder_layers', 'min_confidence')
    """
    own = {each.name for each in fields(method)}
    return tuple(each.name for each in fields(Settings) if each.name in own)


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
