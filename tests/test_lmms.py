"""The lmms-eval plugin without lmms-eval: two small classes stand in for its own."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fakes import FakeEngine
from models import checkpoint
from PIL import Image

from cof import Contrast, Prompt
from cof.errors import CofError, CofWarning
from cof.lmms.adapter import EvalRequest, answer_requests
from cof.pipeline import CoF
from cof.settings import Settings
from cof.tiny.questions import verify
from cof.tiny.scenes import make_scene, render
from cof.types import Decoding

BOX = "[0.1, 0.1, 0.5, 0.5]"


class Lmms:
    """What `lmms_eval.api.model.lmms` does for its subclasses."""

    rank = 0

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, str]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *reply: self.seen.append(reply))
        self.task_dict: dict[str, Any] = {}

    def clean(self) -> None:
        self.cleaned = True


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`cof.lmms.model` over the stand-ins."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.models", "cof.lmms.model")
    for name in names[:3]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, known in (
        ("lmms_eval.api.model", {"lmms": Lmms}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": SimpleNamespace}),
    ):
        module = ModuleType(name)
        vars(module).update(known)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "cof.lmms.model", raising=False)
    import cof.lmms.model

    yield cof.lmms.model
    sys.modules.pop("cof.lmms.model")


def instance(number: int, prompt: str, **options: Any) -> SimpleNamespace:
    """As `ConfigurableMessagesTask.construct_requests` makes them."""

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        return turns(prompt, document["images"])

    return SimpleNamespace(args=(prompt, messages, options, number, "task", "test"))


def turns(prompt: str, images: list[Image.Image], *before: str) -> list[dict[str, Any]]:
    shown = [{"type": "image", "url": image} for image in images]
    said = [{"role": "system", "content": [{"type": "text", "text": text}]} for text in before]
    return [*said, {"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]


def request(prompt: str, images: int = 1, *before: str, **options: Any) -> EvalRequest:
    loaded = [Image.new("RGB", (8 + n, 8)) for n in range(images)]
    return EvalRequest(prompt, options, lambda: turns(prompt, loaded, *before))


def test_found_by_its_entry_point(plugin: Any) -> None:
    (found,) = entry_points(group="lmms_eval.models", name="cof")
    manifest = found.load()()
    assert manifest.model_id == "cof"
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert getattr(sys.modules[module], name) is plugin.CoFModel
    assert not plugin.CoFModel.is_simple


def test_same_answers_as_the_pipeline(plugin: Any) -> None:
    """Yes/no questions to a random LLaVA; the pipeline runs them in batches of another size."""
    scenes = [make_scene(seed, 4) for seed in range(6)]
    documents = [{"images": [render(scene)]} for scene in scenes]
    prompts = [verify(scene, random.Random(0)).text for scene in scenes]
    # a random model finds no boxes, and looks at the whole image then
    options = {"pretrained": str(checkpoint("llava")), "strength": 500, "released": True}
    model = plugin.CoFModel(batch_size="4", device="cpu", **options)
    model.task_dict = {"task": {"test": documents}}
    requests = [
        instance(number, prompt, max_new_tokens=3, temperature=0, until=["\n\n"])
        for number, prompt in enumerate(prompts)
    ]
    queries = [(doc["images"][0], prompt) for doc, prompt in zip(documents, prompts, strict=True)]
    answers = model.cof.batch(queries, decoding=Decoding(max_new_tokens=3), batch_size=6)
    expected = [answer.text for answer in answers]
    assert model.generate_until(requests) == expected
    assert expected != [answer.plain() for answer in answers]
    assert sorted(reply for _, _, reply in model.seen) == sorted(expected)
    model.clean()
    assert model.cleaned
    assert not hasattr(model, "cof")


def test_what_it_does_not_offer(plugin: Any) -> None:
    model = plugin.CoFModel(pretrained=str(checkpoint("llava")), grounder="none")
    for method, message in (
        ("loglikelihood", "output_type is generate_until"),
        ("generate_until_multi_round", "rounds are given"),
    ):
        with pytest.raises(CofError, match=message):
            getattr(model, method)([])
    with pytest.raises(CofError, match="--batch_size takes a number with cof, not 'auto'"):
        plugin.CoFModel(batch_size="auto")


def test_same_decoding_runs_together_and_answers_keep_their_places() -> None:
    engine = FakeEngine(lambda request: BOX if "box" in request.prompt else request.prompt)
    cof = CoF(engine, Settings())
    requests = [
        request("one", max_new_tokens=4),
        request("two", max_new_tokens=9, num_beams=3),
        request("three\n\nmore", max_new_tokens=4, until=["\n\n", "re"]),
        request("four"),
    ]
    texts = dict(answer_requests(cof, requests, batch_size=8))
    assert [texts[n] for n in range(4)] == ["one", "two", "th", "four"]
    decodings = [decoding for call, decoding in engine.calls if call[0].highlight]
    assert decodings == [
        Decoding(max_new_tokens=4),
        Decoding(max_new_tokens=9, num_beams=3),
        Decoding(),
    ]


def test_decoding() -> None:
    usual = {"temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False}
    assert request("x", max_new_tokens=16, **usual).decoding == Decoding(max_new_tokens=16)
    sampled = request("x", temperature=0.5, top_p=0.9).decoding
    assert (sampled.temperature, sampled.top_p) == (0.5, 0.9)
    assert request("x", until="b").cut("abc") == "a"
    assert request("x", until=[""]).cut("abc") == "abc"


def test_several_images_and_the_tasks_own_system_message() -> None:
    engine = FakeEngine(lambda request: BOX if "box" in request.prompt else request.prompt)
    requests = [request("two", 2, "Think."), request("none", 0), request("one")]
    texts = dict(answer_requests(CoF(engine, Settings(system="Be brief.")), requests, batch_size=3))
    assert texts == {0: "two", 1: "none", 2: "one"}
    (answered, _) = engine.calls[-1]
    assert [request.pil_image.size for request in answered[::2]] == [(9, 8), (8, 8)]  # the last
    assert [[image.size for image in request.images] for request in answered] == [
        [(8, 8), (9, 8)],
        [],
        [(8, 8)],
    ]
    systems = [request.chat[0].parts for request in answered]
    assert systems == [("Think.",), ("Be brief.",), ("Be brief.",)]

    def broken() -> Any:
        raise OSError("image file is truncated")

    asked = [requests[1], EvalRequest("x", {}, broken)]
    with pytest.warns(CofWarning, match="Request 1 has no answer: .*truncated"):
        texts = dict(answer_requests(CoF(engine, Settings()), asked, batch_size=1))
    assert texts == {0: "none"}
    video = EvalRequest("x", {}, lambda: [{"role": "user", "content": [{"type": "video"}]}])
    with pytest.raises(CofError, match="parts of the type text, or image"):
        dict(answer_requests(CoF(engine, Settings()), [video], batch_size=1))


def test_options(plugin: Any) -> None:
    """As `lmms_eval.utils.handle_arg_string` reads them."""
    read = {"focus": "contrast", "boxes": "template", "released": True, "layers": "0-1+3"}
    read |= {"heads": 1, "strength": 4, "guidance": 2, "pretrained": str(checkpoint("llava"))}
    assert plugin.CoFModel(**read).cof.settings == Settings(
        Prompt(boxes="template"),
        Contrast(4.0, layers=(0, 1, 3), heads=(1,), guidance=2),
        released=True,
    )
    for options, says in (({"lambda": 2}, "did you mean strength"), ({"layers": 0.5}, "ranges")):
        with pytest.raises(CofError, match=says):
            plugin.CoFModel(pretrained=str(checkpoint("llava")), **options)
