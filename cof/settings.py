"""Everything the paper has as one validated value, and the presets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from cof.adaptive import Rule
from cof.errors import CofError
from cof.prompts import PAPER_PROMPT
from cof.types import CellRule, Scope

GrounderName = Literal[
    "prompt", "attention", "relevance", "logits", "detector", "given", "whole", "none"
]
FocusName = Literal["attention", "soft", "contrast", "crop", "beside", "overlay", "none"]
Overlay = Literal["frame", "blur", "dim"]
OnMissing = Literal["plain", "whole"]
Edge = Literal["move", "snap"]
Parser = Literal["tolerant", "released"]
Boxes = Literal["free", "template"]


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise CofError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _above_zero(name: str, value: float) -> None:
    if not (_is_number(value) and math.isfinite(value) and value > 0):
        raise CofError(f"{name} must be a finite number above 0, not {value!r}.")


def _fraction(name: str, value: float) -> None:
    if not (_is_number(value) and 0 <= value <= 1):
        raise CofError(f"{name} must be a number in 0..1, not {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _indices(name: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    indices = tuple(value) if isinstance(value, (tuple, list, range)) else ()
    if not indices or not all(type(index) is int and index >= 0 for index in indices):
        raise CofError(f"{name} must be a list of numbers from 0 on, or left out, not {value!r}.")
    return indices


@dataclass(frozen=True)
class Settings:
    """How the two stages are run. The defaults are the paper's, with its 7B model's numbers.

    Attributes:
        grounder: where to look. `prompt`: ask the model (the paper's stage 1); `attention`: where
            its attention goes; `relevance`: where its states resemble those of the question's
            objects; `logits`: where image tokens say them; `detector`: where a detector finds
            them; `given`: the caller's region; `whole`: every image token (Table II, "reweight"
            alone); `none`. See `cof.grounders`.
        focus: how to make the model look there. `attention`: equation 3; `soft`: the same by
            degrees; `contrast`: the same against not looking; `crop`: show it the region alone;
            `beside`: the region after the image; `overlay`: draw the region into the image;
            `none`. See `cof.focuses`.
        guidance: how far `contrast` leads away from not looking; 1: not at all.
        overlay: how `overlay` draws it: a `frame` around it, or all else `blur`red or `dim`med.
        expand: alpha, by which a region is scaled about its centre (section II-B).
        strength: lambda of equation 3; 1 leaves the model as it is.
        scope: `all` queries attend with the bias (the paper), or only `text` after the image.
        layers: decoder layers with the bias; None: all (the paper).
        heads: attention heads with it; None: all (the paper).
        grounding_prompt: None: the model family's own; `paper`: the paper's; or a template with
            `{question}` or `{first_line}` in it.
        on_missing: what happens when stage 1 finds nothing: the `plain` model answers, or
            `whole` (the released code: every image token is highlighted).
        min_box: a box is widened to this side at least, 0..1 of the image, before expansion.
        min_confidence: stage 1's boxes below this confidence count as not found.
        square: boxes get their longer side both ways (the released code does so).
        edge: a box over the border is moved inside (`move`, the paper), or set to the border
            (`snap`, the released code's defect: `cof.boxes.expand_snapped`).
        cells: `coverage` or `corners`: see `cof.types.Highlight`.
        parser: `tolerant`, or `released` (the released code's one form).
        grounding_max_new_tokens: the longest reply of stage 1.
        grounder_layers: decoder layers that a grounder reads which reads states; None: its own.
        detector: folder or hub id of the open-vocabulary detector of that grounder.
        boxes: how stage 1's reply is decoded. `free`: as the model likes (the paper);
            `template`: in the form its family writes boxes in, of which the model chooses the
            numbers alone, in a few forward passes.
        adaptive: a rule that keeps the plain answer where looking would not pay, and chooses
            lambda (`cof.adaptive`); None: always look, with `strength`. A region that the caller
            gives is always looked at; where none is found, the plain answer stays.

    Raises:
        CofError: a value is out of range or not among the choices.
    """

    grounder: GrounderName = "prompt"
    focus: FocusName = "attention"
    guidance: float = 1.3
    overlay: Overlay = "frame"
    expand: float = 1.3
    strength: float = 2.0
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    grounding_prompt: str | None = None
    on_missing: OnMissing = "plain"
    min_box: float = 0.0
    min_confidence: float = 0.0
    square: bool = False
    edge: Edge = "move"
    cells: CellRule = "coverage"
    parser: Parser = "tolerant"
    grounding_max_new_tokens: int = 128
    grounder_layers: tuple[int, ...] | None = None
    detector: str | None = None
    boxes: Boxes = "free"
    adaptive: Rule | None = None

    def __post_init__(self) -> None:
        _one_of("grounder", self.grounder, get_args(GrounderName))
        _one_of("focus", self.focus, get_args(FocusName))
        _one_of("overlay", self.overlay, get_args(Overlay))
        _one_of("scope", self.scope, get_args(Scope))
        _one_of("on_missing", self.on_missing, get_args(OnMissing))
        _one_of("edge", self.edge, get_args(Edge))
        _one_of("cells", self.cells, get_args(CellRule))
        _one_of("parser", self.parser, get_args(Parser))
        _one_of("boxes", self.boxes, get_args(Boxes))
        if self.adaptive is not None and not isinstance(self.adaptive, Rule):
            raise CofError(f"adaptive must be a cof.adaptive.Rule, not {self.adaptive!r}.")
        _above_zero("expand (alpha)", self.expand)
        _above_zero("strength (lambda)", self.strength)
        _above_zero("guidance", self.guidance)
        _fraction("min_box", self.min_box)
        _fraction("min_confidence", self.min_confidence)
        object.__setattr__(self, "layers", _indices("layers", self.layers))
        object.__setattr__(self, "heads", _indices("heads", self.heads))
        layers = _indices("grounder_layers", self.grounder_layers)
        object.__setattr__(self, "grounder_layers", layers)
        if not isinstance(self.square, bool):  # "False" would be true
            raise CofError(f"square must be True or False, not {self.square!r}.")
        tokens = self.grounding_max_new_tokens
        if not isinstance(tokens, int) or tokens < 1:
            raise CofError(
                f"grounding_max_new_tokens must be a whole number above 0, not {tokens}."
            )
        if self.grounding_prompt is not None:
            self._check_template(self.grounding_prompt)

    def _check_template(self, template: str) -> None:
        if template == "paper" or re.search(r"\{(question|first_line)\}", str(template)):
            return
        raise CofError(
            f"grounding_prompt {template!r} does not say where the question goes: write "
            "{question} or {first_line} in it, or 'paper' for the paper's wording."
        )

    @property
    def grounding_template(self) -> str | None:
        """The template of stage 1's prompt; None: the model family's own."""
        return PAPER_PROMPT if self.grounding_prompt == "paper" else self.grounding_prompt

    def changed(self, **changes: Any) -> Settings:
        """A copy with some values changed.

        Raises:
            CofError: there is no such setting, or the value is refused.
        """
        known = [field.name for field in fields(self)]
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
