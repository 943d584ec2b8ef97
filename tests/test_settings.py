"""Settings refuse what makes no sense; presets hold the paper's rows."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cof.errors import CofError
from cof.focuses import FOCUSES, AttentionFocus
from cof.grounders import GROUNDERS, PromptGrounder
from cof.settings import PRESETS, Settings, default_settings, preset


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grounder": "guess"}, "prompt, attention"),
        ({"focus": "zoom"}, "attention, soft"),
        ({"scope": "image"}, "all, text"),
        ({"on_missing": "crash"}, "plain, whole"),
        ({"edge": "clip"}, "move, snap"),
        ({"cells": "all"}, "coverage, corners"),
        ({"parser": "json"}, "tolerant, released"),
        ({"strength": float("nan")}, "lambda"),
        ({"strength": -2}, "lambda"),
        ({"strength": 0}, "lambda"),
        ({"strength": "2"}, "lambda"),
        ({"strength": True}, "lambda"),
        ({"strength": 10**400}, "lambda"),
        ({"min_box": np.ones(2)}, "min_box"),
        ({"focus": np.ones(2)}, "attention, soft"),
        ({"detector": 3}, "hub id or a path"),
        ({"expand": float("inf")}, "alpha"),
        ({"expand": 0}, "alpha"),
        ({"min_box": 2}, "min_box"),
        ({"min_confidence": -0.1}, "min_confidence"),
        ({"layers": []}, "layers"),
        ({"layers": 3}, "layers"),
        ({"heads": [-1]}, "heads"),
        ({"heads": [0.5]}, "heads"),
        ({"heads": [True]}, "heads"),
        ({"grounding_prompt": "Where?"}, "where the question goes"),
        ({"grounding_prompt": 3}, "grounding_prompt"),
        ({"grounding_prompt": ["{question}"]}, "grounding_prompt"),
        ({"grounding_prompt": "\ud800 {question}"}, "surrogate"),
        ({"grounding_max_new_tokens": 0}, "grounding_max_new_tokens"),
        ({"grounding_max_new_tokens": True}, "grounding_max_new_tokens"),
        ({"square": "False"}, "square must be True or False"),
        ({"lambda_": 3}, "no setting 'lambda_'"),
    ],
)
def test_refusals(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CofError, match=says):
        Settings().changed(**changes)


def test_numbers_of_numpy_and_paths_are_plain_values() -> None:
    made = Settings(
        strength=np.float32(4),
        layers=[np.int64(3)],
        grounding_max_new_tokens=np.int32(5),
        detector=Path("some/model"),
    )
    assert json.loads(json.dumps(made.as_dict()))["strength"] == 4
    assert made == Settings(
        strength=4.0, layers=(3,), grounding_max_new_tokens=5, detector="some/model"
    )


def test_changes_leave_the_original_alone() -> None:
    first = Settings()
    second = first.changed(strength=5, layers=[0, 2])
    assert first == Settings()
    assert (second.strength, second.layers) == (5, (0, 2))


def test_settings_are_json() -> None:
    assert json.loads(json.dumps(Settings(layers=(1, 2)).as_dict()))["layers"] == [1, 2]


def test_every_name_of_a_registry_is_a_setting() -> None:
    for name in GROUNDERS:
        assert Settings(grounder=name).grounders == (name,)
    for name in FOCUSES:
        assert type(Settings(focus=name).make_focus()) is FOCUSES[name]


def test_methods_take_the_settings_that_their_fields_name() -> None:
    settings = Settings(grounding_prompt="paper", min_confidence=0.5, scope="text", strength=3)
    assert settings.make_grounder("prompt") == PromptGrounder("paper", min_confidence=0.5)
    assert settings.make_focus() == AttentionFocus(3.0, "text")
    assert all(field.metadata["help"] for field in fields(Settings))


@pytest.mark.parametrize("several", ["prompt+attention", "attention+relevance+logits"])
def test_several_grounders(several: str) -> None:
    assert Settings(grounder=several).grounders == tuple(several.split("+"))


@pytest.mark.parametrize("several", ["prompt+prompt", "prompt+given", "prompt+", "none+attention"])
def test_grounders_that_do_not_go_together(several: str) -> None:
    with pytest.raises(CofError, match="joined by"):
        Settings(grounder=several)


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
    assert (found.expand, found.strength) == (expand, strength)
    assert found == default_settings(model)
    assert found.changed(expand=1.3, strength=2.0) == Settings(grounding_prompt="paper")


def test_parity_has_every_quirk() -> None:
    parity = preset("paper-parity", "llava-1.5-13b")
    paper = preset("paper", "llava-1.5-13b")
    assert parity == paper.changed(
        on_missing="whole", square=True, edge="snap", cells="corners", parser="released"
    )


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


def test_defaults() -> None:
    assert default_settings("mine") == Settings(expand=1.3, strength=2.0)
    assert default_settings("/anything", "tiny") == preset("tiny", "tiny")
