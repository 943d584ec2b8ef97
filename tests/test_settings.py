"""Settings refuse what makes no sense; presets hold the paper's rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_methods import VALUES

from cof import Attention, Contrast, Detector, Prompt, RelativeAttention
from cof.errors import CofError
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.options import options_of
from cof.presets import PRESETS, default_settings, preset
from cof.settings import Settings

TWO_GROUNDERS = [("prompt", "prompt"), ("prompt", "given"), ("prompt", ""), ("none", "attention")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *(({"grounder": value}, "prompt, attention") for value in ("guess", [])),
        *(({"grounder": f"{one}+{two}"}, "joined by") for one, two in TWO_GROUNDERS),
        *(({"focus": value}, "attention, soft") for value in ("zoom", np.ones(2))),
        ({"scope": "image"}, "all, text"),
        ({"released": "False"}, "released must be true or false"),
        *(({"strength": value}, "lambda") for value in (math.nan, -2, 0, "2", True, 10**400)),
        *(({"expand": value}, "alpha") for value in (math.inf, 0)),
        *(({"min_box": value}, "min_box") for value in (2, np.ones(2))),
        ({"grounder": "detector", "detector": 3}, "hub id or a path"),
        ({"min_confidence": -0.1}, "min_confidence"),
        ({"layers": []}, "layers"),
        ({"layers": "5-x"}, "layers takes numbers and ranges such as 0-15,20"),
        *(({"heads": [value]}, "heads") for value in (-1, 0.5, True)),
        ({"grounding_prompt": "Where?"}, "where the question goes"),
        *(({"grounding_prompt": value}, "grounding_prompt") for value in (3, ["{question}"])),
        ({"grounding_prompt": "\ud800 {question}"}, "surrogate"),
        *(({"grounding_max_new_tokens": value}, "_max_new_tokens") for value in (0, True)),
        *(({name: 3}, "did you mean strength?") for name in ("lambda_", "strenght")),
        ({"focus": "crop", "scope": "text"}, "scope is an option of focus attention, .*not of"),
        ({"focus": "crop", "overlay": "dim"}, "overlay is an option of focus overlay, not of"),
        ({"focus": "overlay", "overlay": "x"}, "frame, blur, dim"),
    ],
)
def test_refusals(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CofError, match=says):
        Settings().changed(**changes)
    with pytest.raises(CofError, match=says):
        Settings(**changes)


def test_numbers_of_numpy_paths_and_ranges_are_plain_values() -> None:
    made = Settings(
        "prompt+detector",
        strength=np.float32(4),
        layers=[np.int64(3)],
        heads="0-2,5",
        grounding_max_new_tokens=np.int32(5),
        detector=Path("some/model"),
    )
    assert json.loads(json.dumps(made.as_dict()))["strength"] == 4
    assert made == Settings(
        (Prompt(grounding_max_new_tokens=5), Detector("some/model")),
        Attention(4.0, layers=(3,), heads=(0, 1, 2, 5)),
    )


def test_a_method_named_anew_keeps_what_it_shares() -> None:
    before = Settings(strength=8.0, scope="text", min_confidence=0.25, expand=2.0)
    after = before.changed(grounder="attention", focus="contrast", guidance=2.0)
    assert before == Settings(strength=8.0, scope="text", min_confidence=0.25, expand=2.0)
    assert after.focus == Contrast(8.0, "text", guidance=2.0)
    assert after.grounders == (RelativeAttention(min_confidence=0.25),)
    assert after.expand == 2.0
    own = before.changed(Prompt(), Attention())  # given as objects, they are as they are
    assert own == Settings(expand=2.0)


def grid() -> list[Settings]:
    """A setting with every option away from its default, for every grounder and focus."""
    made = []
    for grounder in [*GROUNDERS, "prompt+detector", "attention+relevance+logits"]:
        for focus in FOCUSES:
            owners = [Settings, *map(GROUNDERS.get, grounder.split("+")), FOCUSES[focus]]
            names = [each.name for owner in owners for each in options_of(owner)]  # type: ignore[arg-type]
            made.append(Settings(grounder, focus, **{name: OTHERS[name] for name in names}))
    return made


DEFAULTS = {
    each.name: each.default
    for owner in (Settings, *GROUNDERS.values(), *FOCUSES.values())
    for each in options_of(owner)
}
OTHERS: dict[str, Any] = {"detector": "some/model", "system": "Be brief."}
OTHERS |= {
    name: next(value for value in values if value != DEFAULTS[name])
    for name, values in VALUES.items()
    if name not in ("grounder", "focus")
}


def test_settings_are_json() -> None:
    for each in grid():
        written = json.loads(json.dumps(each.as_dict()))
        assert Settings(**written) == each
        assert each.grounder_name == written["grounder"]
        for name, value in OTHERS.items():
            assert each.option(name) in (value, None)
    apart = Settings((Prompt(min_confidence=0.5), RelativeAttention(min_confidence=0.25)))
    assert Settings(**apart.as_dict()) == apart


def test_released_is_one_switch() -> None:
    made = Settings(released=True)
    assert made == Settings(Prompt(released=True)) == Settings().changed(released=True)
    assert made.option("released")
    assert all(each.released for each in (*made.grounders, made.focus))  # type: ignore[attr-defined]
    assert made.changed(released=False) == Settings()
    assert made.changed(grounder="whole", focus="crop").released


@pytest.mark.parametrize(
    ("model", "expand", "strength"),
    [
        ("llava-hf/llava-1.5-7b-hf", 1.3, 2.0),
        ("liuhaotian/llava-v1.5-13b", 1.0, 4.5),
        ("/models/LLaVA-1.5-13B/", 1.0, 4.5),
        ("Salesforce/instructblip-vicuna-13b", 1.0, 22.0),
    ],
)
def test_the_papers_rows(model: str, expand: float, strength: float) -> None:
    found = preset("paper", model)
    assert (found.expand, found.option("strength")) == (expand, strength)
    assert found == default_settings(model)
    assert found.changed(expand=1.3, strength=2.0, system="") == Settings(grounding_prompt="paper")
    assert found.system == ("" if "instructblip" in model else "vicuna_v1")
    if "instructblip" not in model:
        assert preset("paper-parity", model) == found.changed(released=True)


@pytest.mark.parametrize(
    ("name", "model", "says"),
    [
        ("paper", "llava-hf/llava-v1.6-mistral-7b-hf", "LLaVA-1.5-7B, LLaVA-1.5-13B"),
        ("paper", "", "this model"),
        ("paper", "instructblip-vicuna-7b", "no settings for"),
        ("paper-parity", "instructblip-vicuna-13b", "no settings for"),
        ("best", "llava-1.5-7b", "paper, paper-parity, tiny"),
    ],
)
def test_presets_refuse(name: str, model: str, says: str) -> None:
    with pytest.raises(CofError, match=says):
        preset(name, model)


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_can_be_named_as_it_is_called(name: str) -> None:
    for row in PRESETS[name]:
        assert preset(f"{name}:{row.model}", "mine") == row.settings
