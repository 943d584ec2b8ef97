"""`cof verify` on vLLM: held against transformers, and what is broken is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm.version")

from helpers import reference_engine, vllm_engine

from cof import CoF
from cof.engines.vllm import engine as engine_module
from cof.tiny import checkpoint_path
from cof.types import Highlight
from cof.verify import Check, Trial, verify

LAYERS = (0, 3, 5)
TINY = checkpoint_path("tiny-early")
SAME, EFFECT = "answers are transformers'", "a region changes the answer"


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


def test_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Trial(CoF(reference_engine(TINY)), torch.float32, LAYERS)
    cof = CoF(vllm_engine(TINY))
    checks = verify(Trial(cof, torch.float32, LAYERS), reference)
    assert not failed(checks), checks
    assert checks[SAME].passed
    whole = engine_module.highlight_args

    def half(tokens: Any, wh: Any, look: Highlight, image: int) -> Any:
        return whole(tokens, wh, replace(look, strength=look.strength**0.5), image)

    def not_last(tokens: Any, wh: Any, look: Highlight, image: int) -> Any:
        return {} if look.layers == (5,) else whole(tokens, wh, look, image)

    def none(*_: Any) -> Any:
        return {}

    for broken, seen in ((half, {SAME}), (not_last, {SAME}), (none, {SAME, EFFECT})):
        monkeypatch.setattr(engine_module, "highlight_args", broken)
        found = verify(Trial(cof, torch.float32, LAYERS), reference)
        assert failed(found) == seen, found
