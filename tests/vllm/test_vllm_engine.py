"""What the engine does beside the bias: decoding, boxes, two images, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("vllm.version")

from checkpoints import checkpoint
from helpers import (
    CLOSE,
    FEW,
    LEFT,
    RIGHT,
    difference,
    reference_engine,
    show_the_same,
    vllm_engine,
)
from models import picture
from PIL import Image

from cof import CoF
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.vllm import plugin, versions
from cof.engines.vllm.engine import VllmEngine, load_processor, model_options
from cof.errors import CofError, CofWarning
from cof.prompting.dialects import fill
from cof.tiny import checkpoint_path
from cof.types import ALONE, Decoding, Generation, Highlight, Request, Turn

TINY = checkpoint_path("tiny-early")
SCENES = [
    Image.open(path).convert("RGB") for path in sorted((TINY.parents[1] / "demo").glob("*.png"))
]


@pytest.fixture(scope="module")
def engine() -> VllmEngine:
    return vllm_engine(TINY)


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    return reference_engine(TINY)


@pytest.mark.parametrize("name", ["tiny-early", "qwen2_5_vl"])
def test_boxes_in_a_template(name: str) -> None:
    """Of a model that knows its format, and of a random one, which writes anything if it may."""
    folder = TINY if name == "tiny-early" else checkpoint(name)
    engine, reference = vllm_engine(folder), reference_engine(folder)
    form = engine.dialect.box_template
    assert form is not None
    prompt = fill(engine.dialect.template, "What digit is on the star?")[0]
    images = [picture((112, 56)), picture((56, 112))] if name != "tiny-early" else SCENES
    if name != "tiny-early":
        show_the_same(reference, engine)
    requests = [Request(image, prompt) for image in images]
    told: dict[int, str] = {}
    boxes = engine.generate(requests, Decoding(box_template=form), told.__setitem__)
    expected = reference.generate(requests, Decoding(box_template=form))
    assert [told[row] for row in range(len(images))] == [box.text for box in boxes]
    assert [box.text for box in boxes] == [box.text for box in expected]
    assert max(map(difference, boxes, expected)) < CLOSE


@pytest.mark.parametrize("grounder", ["prompt", "attention"])
def test_the_pipeline_is_that_of_the_transformers_engine(
    engine: VllmEngine, reference: TransformersEngine, grounder: str
) -> None:
    queries = [(image, "What digit is on the star?") for image in SCENES]
    ours, theirs = (CoF(made, grounder=grounder).batch(queries) for made in (engine, reference))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.text, one.boxes, one.found) == (other.text, other.boxes, other.found)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_from_pretrained_makes_this_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine_of(model: object, **options: object) -> VllmEngine:
        assert options == {"dtype": "float32", "tensor_parallel_size": 2}
        return vllm_engine(TINY)

    monkeypatch.setattr(VllmEngine, "from_pretrained", engine_of)
    options = {"tensor_parallel_size": 2}
    cof = CoF.from_pretrained("tiny", engine="vllm", dtype="float32", engine_options=options)
    assert isinstance(cof.engine, VllmEngine)


def test_encoded_images_and_second_images() -> None:
    engine, reference = (made(checkpoint("llava")) for made in (vllm_engine, reference_engine))
    one, other = picture((112, 112), 0), picture((112, 112), 1)
    (encoded,) = engine.encode([one])
    light = Highlight(RIGHT, 60.0, scope="text")
    assert engine.generate([Request(encoded, "What?", light)], FEW) == engine.generate(
        [Request(one, "What?", light)], FEW
    )
    both = [
        Request(one, "What?", light).beside(other),
        Request(one, "What?").beside(other),
        Request(
            one,
            "What?",
            light,
            chat=(Turn("user", (0, "And this?")), Turn("assistant", ("No.",)), *ALONE),
            others=(other,),
        ),
    ]
    ours, theirs = (made.generate(both, FEW) for made in (engine, reference))
    assert max(map(difference, ours, theirs)) < CLOSE
    assert difference(*theirs[:2]) > 0.1  # the highlight makes the difference


def test_replies_are_streamed(engine: VllmEngine) -> None:
    prompt = fill(engine.dialect.template, "What digit is on the star?")[0]
    requests = [Request(image, prompt) for image in SCENES[:3]]
    pieces: dict[int, list[str]] = {place: [] for place in range(3)}
    replies = engine.generate(
        requests, Decoding(), lambda place, piece: pieces[place].append(piece)
    )
    assert engine.generate(requests) == replies
    assert ["".join(told) for told in pieces.values()] == [reply.text for reply in replies]
    assert all(len(told) == 4 for told in pieces.values()), pieces


def test_a_listener_that_fails_ends_its_call_alone(engine: VllmEngine) -> None:
    requests = [Request(image, "What is in the image?") for image in SCENES[:3]]
    before = engine.generate(requests, FEW)

    def fail(place: int, piece: str) -> None:
        raise KeyError(place)

    with pytest.raises(KeyError):
        engine.generate(requests, Decoding(max_new_tokens=100, temperature=2.0), fail)
    assert engine.generate(requests, FEW) == before


def test_sampling_is_the_seeds(engine: VllmEngine) -> None:
    def sampled(seed: int) -> Generation:
        decoding = Decoding(max_new_tokens=12, temperature=2.0, top_p=0.95, seed=seed)
        request = Request(SCENES[0], "What digit is on the star?", Highlight(LEFT, 4.0))
        return engine.generate([request], decoding)[0]

    assert sampled(1) == sampled(1)
    assert len({sampled(seed).token_ids for seed in range(8)}) > 1


def test_log_probabilities_are_those_before_temperature(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    request = Request(SCENES[0], "What digit is on the star?")
    (greedy,) = reference.generate([request])
    decoding = Decoding(temperature=0.01, top_p=0.5, seed=0)
    assert difference(engine.generate([request], decoding)[0], greedy) < CLOSE


@pytest.mark.parametrize(
    ("request_", "decoding", "sentence"),
    [
        (Request(SCENES[0], "?"), Decoding(num_beams=2), "beams"),
        (Request(SCENES[0], "?", Highlight(LEFT, 2.0, guidance=2.0)), FEW, "contrast"),
        (Request(SCENES[0], "?", Highlight(LEFT, 2.0, layers=(6,))), FEW, "layers must be"),
        (Request(SCENES[0], "?", Highlight(LEFT, 2.0, heads=(8,))), FEW, "heads must be"),
        (Request(SCENES[0], "why " * 2000), FEW, "vLLM refuses"),
    ],
    ids=["beams", "contrast", "layers", "heads", "length"],
)
def test_refusals_leave_the_engine_alive(
    engine: VllmEngine, request_: Request, decoding: Decoding, sentence: str
) -> None:
    fine = Request(SCENES[0], "What digit is on the star?", Highlight(LEFT, 4.0))
    before = engine.generate([fine], FEW)
    with pytest.raises(CofError, match=sentence):
        engine.generate([fine, request_], decoding)
    after = engine.generate([fine], FEW)
    assert np.allclose(before[0].logprobs, after[0].logprobs, atol=CLOSE)


def test_an_unknown_vllm_starts_if_it_passes_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("two regions hash alike")

    with monkeypatch.context() as unknown:
        unknown.setattr(versions, "TESTED", ("0.31",))
        with pytest.warns(CofWarning, match=r"vLLM 0\.32.* is none of those"):
            versions.check_version()
        unknown.setattr(plugin, "check_hashes", fail)
        with pytest.raises(CofError, match=r"not pass our self-test \(two regions hash alike"):
            VllmEngine.from_pretrained(TINY)
        plugin.register()  # for one who may not have asked for us
    monkeypatch.setattr(plugin, "check_hashes", fail)
    with pytest.raises(RuntimeError, match="hash alike"):
        plugin.register()


@pytest.mark.parametrize(
    ("given", "variable", "capped"),
    [
        ((), None, True),
        (("gpu_memory_utilization",), None, False),
        (("kv_cache_memory_bytes",), None, False),
        ((), "2", False),
    ],
)
def test_the_kv_cache_on_a_cpu(
    given: tuple[str, ...], variable: str | None, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", variable)
    chosen = model_options(*load_processor(str(TINY)), given).get("kv_cache_memory_bytes", 0)
    assert (0 < chosen <= 4 << 30) == capped


def test_device_map_is_refused() -> None:
    with pytest.raises(CofError, match="tensor_parallel_size"):
        VllmEngine.from_pretrained(TINY, device_map="auto")
