"""Checkpoints that are not what they seem are refused in one sentence."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from models import checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from zoo import engine, stock, zoo

from cof import CoF, Settings
from cof.engines.transformers import loading
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.types import Decoding, Request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(checkpoint("llava"), tmp_path / "model"))


def load(path: Path, **options: object) -> TransformersEngine:
    return TransformersEngine.from_pretrained(path, **options)  # type: ignore[arg-type]


PHOTO = Image.linear_gradient("L").convert("RGB")


def answer(engine: TransformersEngine) -> tuple[int, ...]:
    return engine.generate([Request(PHOTO, "What?")], Decoding(max_new_tokens=8))[0].token_ids


def test_weights_that_lack_are_counted_and_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lacking = [name for name in weights if "layers.1.self_attn" in name and "language" in name]
    for name in lacking:
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CofError, match=rf"lacks {len(lacking)} of .*layers\.1\.self_attn\.k_proj"):
        load(folder)


def test_tied_weights_are_no_lack() -> None:
    folder = zoo("gemma3")
    assert "lm_head.weight" not in "".join(load_file(folder / "model.safetensors"))
    load(folder)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"?" * 99])
def test_damaged_weights(folder: Path, damage: object) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CofError, match="damaged or not complete"):
        load(folder)


def test_pickled_weights_are_loaded_only_where_allowed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CofError, match="allow_pickle"):
        load(folder)
    assert load(folder, allow_pickle=True).name == str(folder)


def test_an_adapter_is_loaded_with_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    base = load(Path(checkpoint("llava")))
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    wrapped = peft.get_peft_model(base.model, config)
    wrapped.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert answer(loaded) == answer(TransformersEngine(wrapped, base.processor))
    monkeypatch.setattr(loading, "is_peft_available", lambda: False)
    with pytest.raises(CofError, match=r"adapter of .*pip install 'cof\[peft\]'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "converted"),
    [
        ({"hidden_size": 4096}, "1.5-7b"),
        ({"hidden_size": 5120}, "1.5-13b"),
        ({"hidden_size": 4096, "image_aspect_ratio": "anyres"}, "v1.6-vicuna-7b"),
    ],
)
def test_the_authors_layout_is_told_the_converted_one(
    tmp_path: Path, fields: dict[str, object], converted: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama", **fields}))
    with pytest.raises(CofError, match=f"llava-hf/llava-{converted}-hf"):
        load(tmp_path)


def test_a_model_that_is_loaded_already() -> None:
    """Alone and wrapped by PEFT, whose adapter begins as no change."""
    peft = pytest.importorskip("peft")
    image, asked = Image.new("RGB", (90, 60), "red"), {"boxes": [(0.1, 0.1, 0.6, 0.6)]}
    made, options = engine("llava"), {"strength": 8.0, "expand": 1.0}
    want = CoF(made, Settings(**options))(image, "which digit?", **asked)
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    model = copy.deepcopy(stock("llava"))
    for own in (model, peft.get_peft_model(copy.deepcopy(model), config)):
        cof = CoF(own, made.processor, **options)
        answer = cof(image, "which digit?", **asked)
        assert (answer.text, answer.plain()) == (want.text, want.plain())
        assert answer.settings == want.settings
    assert want.text != want.plain()
    with pytest.raises(CofError, match="strengt"):
        CoF(model, made.processor, strengt=8.0)
    for given in ((model,), (torch.nn.Linear(2, 2), made.processor)):
        with pytest.raises(CofError, match=r"CoF\(model, processor\)"):
            CoF(*given)
