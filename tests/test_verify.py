"""`cof verify` passes what is whole, and sees whatever is broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from processes import KEY, Server, free_port
from transformers import AttentionInterface
from typer.testing import CliRunner
from zoo import EVERY, engine, folder

from cof import CoF, cli
from cof.attention import registry
from cof.client import RemoteCoF
from cof.engines.transformers import engine as engine_module
from cof.engines.transformers import prompt_builder
from cof.engines.transformers.engine import TransformersEngine
from cof.prompting.box_template import BoxTemplate
from cof.verify import Check, Trial, verify

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot decode boxes by a template")

LAYERS, PLACES = "each layer's bias is the formula's", "a box marks the tokens of its pixels"
CACHE, TEMPLATE = "the prefix cache changes nothing", "a box by template is readable"
EFFECT, IDLE = "a region changes the answer", "strength 1 is the plain model"
BATCH, STREAM, ASKED = (
    "a batch is its rows one by one",
    "a stream is the whole answer",
    "a region is looked at as asked",
)


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


@pytest.mark.parametrize("name", EVERY)
def test_every_family_passes(name: str) -> None:
    checks = verify(Trial(CoF(engine(name)), torch.float32))
    assert not failed(checks), checks
    other = {check for check, of in checks.items() if of.passed is None}
    assert other <= {CACHE, TEMPLATE}
    assert all(checks[name].note for name in other)
    assert (CACHE in other) == (not engine(name).encode([Trial.picture()], prefill=True)[0].prefix is not None)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*options: str) -> Any:
        return CliRunner().invoke(cli.app, ["verify", "tiny-early", "--dtype", "bfloat16", *options])

    result = run("--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["model"], told["dtype"]) == ("tiny-early", "bfloat16")
    assert {check["passed"] for check in told["checks"].values()} == {True}
    monkeypatch.setattr("cof.families.image_tokens.ImageTokens.bias", lambda *_: np.zeros(64))
    result = run()
    assert result.exit_code == 1
    assert result.stdout.count("FAILED") == 2
