"""The lmms-eval plugin without lmms-eval: two small classes stand in for its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cof.adaptive import RULE_FILE, Rule, load_rule, save_rule
from models import checkpoint
from PIL import Image
from rich.console import Console

from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval.compare import Comparison
from cof.eval.data.pope import POPE
from cof.eval.methods import PLAIN, Method
from cof.eval.store import Store
from cof.images import load_image
from cof.lmms.adapter import Asked, answers, pipeline
from cof.pipeline import CoF
from cof.settings import Settings
from cof.tiny import checkpoint_path
from cof.tiny.faces import write_faces
from cof.types import Decoding

BOX = "[0.1, 0.1, 0.5, 0.5]"


@dataclass
class Instance:
    args: tuple[Any, ...]


@dataclass
class Hook:
    seen: list[tuple[str, Any, str]] = field(default_factory=list)

    def add_partial(self, kind: str, request: Any, reply: str) -> None:
        self.seen.append((kind, request, reply))


class Lmms:
    """What `lmms_eval.api.model.lmms` does for its subclasses."""

    rank = 0

    def __init__(self) -> None:
        self.cache_hook = Hook()
        self.task_dict: dict[str, Any] = {}

    def clean(self) -> None:
        self.cleaned = True


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`cof.lmms.model` over the stand-ins."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.models", "cof.lmms.model")
    for name in names[:3]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, known in (
        ("lmms_eval.api.model", {"lmms": Lmms}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": Manifest}),
    ):
        module = ModuleType(name)
        vars(module).update(known)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "cof.lmms.model", raising=False)
    import cof.lmms.model

    yield cof.lmms.model
    sys.modules.pop("cof.lmms.model")


def instance(documents: list[Any], number: int, prompt: str, **options: Any) -> Instance:
    def pictures(document: Any) -> list[Image.Image]:
        return document["pictures"]

    return Instance((prompt, options, pictures, number, "task", "test"))


def document(*colors: str) -> dict[str, Any]:
    return {"pictures": [Image.new("RGB", (8, 8), color) for color in colors]}


def asked(prompt: str, images: int = 1, **options: Any) -> Asked:
    pictures = [Image.new("RGB", (8, 8), (40 * n, 0, 0)) for n in range(images)]
    return Asked(prompt, options, lambda: pictures)


def test_found_by_its_entry_point(plugin: Any) -> None:
    (found,) = entry_points(group="lmms_eval.models", name="cof")
    manifest = found.load()()
    assert manifest == Manifest("cof", "cof.lmms.model.CoFModel")
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert getattr(sys.modules[module], name) is plugin.CoFModel
    assert plugin.CoFModel.is_simple


def test_same_answers_as_the_runner(plugin: Any, tmp_path: Path) -> None:
    """POPE-like questions to a random LLaVA, batches of other sizes and company."""
    write_faces(tmp_path / "data", num_objects=(4,), scenes=1)
    task = POPE(tmp_path / "data" / "pope", prompt_style="lmms-eval")
    # a random model finds no boxes, and looks at the whole image then
    options = {"pretrained": str(checkpoint("llava")), "strength": 500, "on_missing": "whole"}
    model = plugin.CoFModel(batch_size="4", device="cpu", **options)
    comparison = Comparison(
        model.cof.settings,
        {"plain": PLAIN, "cof": Method.of("cof", model.cof.settings)},
        max_new_tokens=3,
    )
    comparison.run(model.cof.engine, task, tmp_path / "out", console=Console(quiet=True))
    store = Store(tmp_path / "out" / "answers.jsonl")
    documents = [{"pictures": [load_image(Path(str(e.image)))]} for e in task.examples]
    model.task_dict = {"task": {"test": documents}}
    requests = [
        instance(documents, number, example.prompt, max_new_tokens=3, temperature=0, until=["\n\n"])
        for number, example in enumerate(task.examples)
    ]
    ours = store.method(comparison.methods["cof"].key)
    expected = [ours[example.id].text for example in task.examples]
    assert model.generate_until(requests) == expected
    assert expected != [store["plain", example.id].text for example in task.examples]
    assert [reply for _, _, reply in model.cache_hook.seen] == expected
    model.clean()
    assert model.cleaned
    assert not hasattr(model, "cof")


def test_what_it_does_not_offer(plugin: Any) -> None:
    model = plugin.CoFModel(pretrained=str(checkpoint("llava")), grounder="none")
    for method, message in (
        ("loglikelihood", "output_type is generate_until"),
        ("generate_until_multi_round", "no conversations"),
    ):
        with pytest.raises(CofError, match=message):
            getattr(model, method)([])
    with pytest.raises(CofError, match="--batch_size takes a number with cof, not 'auto'"):
        plugin.CoFModel(batch_size="auto")


def test_decoded_alike_run_together_and_answers_keep_their_places() -> None:
    engine = FakeEngine(lambda request: BOX if "box" in request.prompt else request.prompt)
    cof = CoF(engine, Settings())
    requests = [
        asked("one", max_new_tokens=4),
        asked("two", max_new_tokens=9, num_beams=3),
        asked("three\n\nmore", max_new_tokens=4, until=["\n\n", "re"]),
        asked("four"),
    ]
    found = dict(answers(cof, requests, batch_size=8))
    assert [found[n] for n in range(4)] == ["one", "two", "th", "four"]
    decodings = [decoding for call, decoding in engine.calls if call[0].highlight]
    assert decodings == [
        Decoding(max_new_tokens=4),
        Decoding(max_new_tokens=9, num_beams=3),
        Decoding(),
    ]


def test_decoding() -> None:
    usual = {"temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False}
    assert asked("x", max_new_tokens=16, **usual).decoding == Decoding(max_new_tokens=16)
    sampled = asked("x", temperature=0.5, top_p=0.9).decoding
    assert (sampled.temperature, sampled.top_p) == (0.5, 0.9)
    assert asked("x", until="b").ended("abc") == "a"
    assert asked("x", until=[""]).ended("abc") == "abc"


@pytest.mark.parametrize("images", [0, 2])
def test_one_picture_each(images: int) -> None:
    with pytest.raises(CofError, match=f"one picture each, and this one has {images}"):
        _ = asked("x", images=images).query


def test_options(tmp_path: Path) -> None:
    model = str(checkpoint("llava"))
    cof = pipeline(pretrained=model, layers="0-1", grounder="whole", strength=4)
    assert cof.settings == cof.settings.changed(layers=(0, 1), grounder="whole", strength=4)
    assert pipeline(pretrained=model, layers=1).settings.layers == (1,)
    own = pipeline(pretrained=model, grounder="attention", grounder_layers="0-1").settings
    assert own.grounder_layers == (0, 1)
    save_rule(tmp_path / "rule.json", Rule(plain_at_most=0.5), {})
    ruled = pipeline(pretrained=model, adaptive=str(tmp_path / "rule.json"))
    assert ruled.settings.adaptive == Rule(plain_at_most=0.5)
    assert pipeline(pretrained=model, adaptive="off").settings.adaptive is None
    assert pipeline(adaptive="on").settings.adaptive == load_rule(checkpoint_path() / RULE_FILE)
    with pytest.raises(CofError, match="No rule comes with"):
        pipeline(pretrained=model, adaptive="on")
    with pytest.raises(CofError, match=r"knows no 'lambda', but pretrained, .*strength"):
        pipeline(**{"pretrained": model, "lambda": 2})
    with pytest.raises(CofError, match="grounder must be one of"):
        pipeline(pretrained=model, grounder="mine")
