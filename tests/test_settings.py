"""Settings refuse what makes no sense; presets hold the paper's rows."""

from __future__ import annotations

import doctest
import json
from typing import Any, get_args

import pytest

from cof import settings as settings_module
from cof.errors import CofError
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.prompts import PAPER_PROMPT
from cof.settings import PRESETS, FocusName, GrounderName, Settings, default_settings, preset


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
        ({"expand": float("inf")}, "alpha"),
        ({"expand": 0}, "alpha"),
        ({"min_box": 2}, "min_box"),
        ({"min_confidence": -0.1}, "min_confidence"),
        ({"layers": []}, "layers"),
        ({"layers": 3}, "layers"),
        ({"heads": [-1]}, "heads"),
        ({"heads": [0.5]}, "heads"),
        ({"grounding_prompt": "Where?"}, "where the question goes"),
        ({"grounding_prompt": 3}, "grounding_prompt"),
        ({"grounding_max_new_tokens": 0}, "grounding_max_new_tokens"),
        ({"square": "False"}, "square must be True or False"),
        ({"lambda_": 3}, "no setting 'lambda_'"),
    ],
)
def test_refusals(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CofError, match=says):
        Settings().changed(**changes)


def test_changes_leave_the_original_alone() -> None:
    first = Settings()
    second = first.changed(strength=5, layers=[0, 2])
    assert first == Settings()
    assert (second.strength, second.layers) == (5, (0, 2))


def test_settings_are_json() -> None:
    assert json.loads(json.dumps(Settings(layers=(1, 2)).as_dict()))["layers"] == [1, 2]


def test_names_are_the_registries() -> None:
    assert tuple(GROUNDERS) == get_args(GrounderName)
    assert tuple(FOCUSES) == get_args(FocusName)


def test_grounding_prompts() -> None:
    assert Settings().grounding_template is None
    assert Settings(grounding_prompt="paper").grounding_template == PAPER_PROMPT
    assert Settings(grounding_prompt="{question} Box?").grounding_template == "{question} Box?"


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


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(settings_module)
    assert result.attempted >= 4
    assert result.failed == 0
