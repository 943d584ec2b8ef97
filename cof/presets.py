"""Settings by name: the paper's for its models, the released code's, the embedded model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cof.errors import CofError
from cof.settings import Settings


@dataclass(frozen=True)
class PresetRow:
    """One model's settings in a preset."""

    model: str  # its name in the paper; `tiny`: the embedded ones
    pattern: str  # a regular expression found in its hub id or path, lower case
    settings: Settings


_LLAVA = Settings(grounding_prompt="paper", system="vicuna_v1")
_BLIP = Settings(grounding_prompt="paper", expand=1.0, strength=22.0)

_PAPER = (
    PresetRow("LLaVA-1.5-7B", r"llava-?v?1\.5-?(vicuna-)?7b", _LLAVA.changed(strength=2.0)),
    PresetRow(
        "LLaVA-1.5-13B", r"llava-?v?1\.5-?(vicuna-)?13b", _LLAVA.changed(expand=1.0, strength=4.5)
    ),
    PresetRow("InstructBLIP-13B", r"instructblip-?(vicuna-)?13b", _BLIP),
)

PRESETS: Mapping[str, tuple[PresetRow, ...]] = {
    # section III-A
    "paper": _PAPER,
    # the released code, which runs LLaVA-1.5 alone, with all that it does otherwise
    "paper-parity": tuple(
        replace(row, settings=row.settings.changed(released=True)) for row in _PAPER[:2]
    ),
    # what `make eval` chose for it on its validation scenes
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
        >>> preset("paper", "llava-hf/llava-1.5-13b-hf").option("strength")
        4.5
        >>> preset("paper:llava-1.5-7b", "/models/mine").expand
        1.3
    """
    name, _, asked = name.partition(":")
    if name not in PRESETS:
        raise CofError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    rows, wanted = PRESETS[name], asked or model_name
    if found := _find(rows, wanted):
        return found
    known = ", ".join(row.model for row in rows)
    raise CofError(
        f"Preset {name!r} has no settings for {wanted or 'this model'}, only for {known}: "
        f"name one ({name}:{rows[0].model}), or set expand and strength yourself."
    )


def _find(rows: tuple[PresetRow, ...], model: str) -> Settings | None:
    return next((row.settings for row in rows if re.search(row.pattern, model.lower())), None)


def default_settings(
    model_name: str, dialect_name: str = "", preset_name: str | None = None
) -> Settings:
    """The settings of a preset; without one the embedded model's, the paper's, or the defaults.

    >>> default_settings("llava-hf/llava-1.5-13b-hf").option("strength")
    4.5
    >>> default_settings("somebody/another-model") == Settings()
    True
    """
    if preset_name:
        return preset(preset_name, model_name)
    if dialect_name == "tiny":
        return PRESETS["tiny"][0].settings
    return _find(PRESETS["paper"], model_name) or Settings()
