"""The transformers engine on tiny random models: equivalences with transformers' own path."""

from __future__ import annotations

import functools
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import BUILDERS, GRID, HEADS, LAYERS, checkpoint, picture, prompts_of, tokenizer
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from cof.engines.base import Engine
from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.boxes import Frame
from cof.geometry.regions import EVERYTHING, Region
from cof.prompting.dialects import LLAVA, PAPER, TINY
from cof.types import Decoding, EncodedImage, Highlight, Request

FAMILIES = list(BUILDERS)
SHORT = Decoding(max_new_tokens=5)
REGION = Region(boxes=((0.1, 0.1, 0.5, 0.5),))


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name))


@functools.cache
def stock(name: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint(name)).eval()


def highlighted(strength: float, **kwargs: Any) -> Request:
    return Request(picture((60, 40)), "which digit?", Highlight(REGION, strength, **kwargs))


def mixed() -> list[Request]:
    """Rows that differ in everything."""
    other = Region(boxes=((0.6, 0.2, 0.9, 0.9), (0.0, 0.0, 0.1, 0.1)))
    return [
        Request(picture((60, 40)), "hi"),
        highlighted(8.0),
        Request(picture((40, 90), 1), "a longer question", Highlight(other, 0.2, scope="text")),
        Request(picture((64, 64), 2), "x", Highlight(REGION, 22.0, layers=(0,), heads=(1, 2))),
        Request(picture((64, 64), 2), "y", Highlight(EVERYTHING, 5.0)),
        highlighted(1.0),
    ]


def assert_same(one: list[Any], other: list[Any], tolerance: float = 2e-5) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.text == b.text
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=tolerance)


def by_transformers(name: str, request: Request, **kwargs: Any) -> list[int]:
    """New tokens of the stock model and processor, used as their documentation says."""
    made = engine(name)
    prompt = request.prompt
    text = f"USER: <image>\n{prompt} ASSISTANT:" if name == "llava" else prompt
    inputs = made.processor(images=request.image, text=text, return_tensors="pt")
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    with torch.inference_mode():
        tokens = stock(name).generate(**inputs, **{**settings, **kwargs})[0]
    start = 1 if name.endswith("T5") else inputs["input_ids"].shape[1]
    return tokens[start:].tolist()


@pytest.mark.parametrize("name", FAMILIES)
class TestEveryFamily:
    def test_is_an_engine(self, name: str) -> None:
        assert isinstance(engine(name), Engine)

    def test_plain_equals_transformers(self, name: str) -> None:
        for request in (mixed()[0], highlighted(1.0)):
            (answer,) = engine(name).generate([request], SHORT)
            assert list(answer.token_ids) == by_transformers(name, request)

    def test_highlight_changes_the_answer(self, name: str) -> None:
        plain, biased = engine(name).generate([highlighted(1.0), highlighted(22.0)], SHORT)
        assert abs(plain.logprobs[0] - biased.logprobs[0]) > 0.01

    def test_batch_equals_single(self, name: str) -> None:
        together = engine(name).generate(mixed(), SHORT)
        alone = [engine(name).generate([request], SHORT)[0] for request in mixed()]
        assert_same(together, alone)

    def test_beams_batch_equals_single_and_transformers(self, name: str) -> None:
        beams = Decoding(max_new_tokens=5, num_beams=3)
        together = engine(name).generate(mixed(), beams)
        alone = [engine(name).generate([request], beams)[0] for request in mixed()]
        assert_same(together, alone)
        assert list(together[0].token_ids) == by_transformers(name, mixed()[0], num_beams=3)

    def test_rows_without_highlight_are_plain_beside_others(self, name: str) -> None:
        beside = engine(name).generate(mixed(), SHORT)
        plain = engine(name).generate([mixed()[0], highlighted(1.0)], SHORT)
        assert_same([beside[0], beside[5]], plain)

    def test_sampling_with_a_seed(self, name: str) -> None:
        def sample(seed: int) -> list[Any]:
            decoding = Decoding(max_new_tokens=8, temperature=1.5, top_p=0.9, seed=seed)
            return engine(name).generate(mixed(), decoding)

        state = torch.random.get_rng_state()
        one, again, other = sample(1), sample(1), sample(2)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert one == again
        assert one != other

    def test_encoded_images_are_encoded_once(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, image, sizes = engine(name), picture((60, 40)), []
        monkeypatch.setattr(
            type(made.adapter),
            "encode",
            _counted(type(made.adapter).encode, sizes),
        )
        fresh = [Request(image, "hi"), Request(image, "x", Highlight(REGION, 8.0))]
        expected = made.generate(fresh, SHORT)
        assert sizes == [1]
        (encoded,) = made.encode([image])
        assert isinstance(encoded, EncodedImage)
        assert encoded.size == (60, 40)
        reused = [Request(encoded, request.prompt, request.highlight) for request in fresh]
        assert made.generate(reused, SHORT) == expected
        assert sizes == [1, 1]
        reused[1] = fresh[1]
        assert_same(made.generate(reused, SHORT), expected)
        assert sizes == [1, 1, 1]

    def test_threads(self, name: str) -> None:
        strengths = [0.3, 1.0, 5.0, 40.0]
        expected = [engine(name).generate([highlighted(s)], SHORT) for s in strengths]
        assert len({answer[0].logprobs for answer in expected}) == 4
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                jobs = [
                    pool.submit(engine(name).generate, [highlighted(s)], SHORT) for s in strengths
                ]
                assert [job.result() for job in jobs] == expected

    def test_logprobs_are_the_models_own(self, name: str) -> None:
        hot = Decoding(max_new_tokens=1, temperature=3.0, top_p=0.5, seed=0)
        made, request = engine(name), highlighted(8.0)
        (sampled,) = made.generate([request], hot)
        prompts = prompts_of(made, [request])
        with torch.inference_mode():
            logits = made.adapter.generate(
                prompts,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ).logits[0]
        expected = logits.log_softmax(-1)[0, sampled.token_ids[0]]
        assert sampled.logprobs[0] == pytest.approx(float(expected), abs=1e-5)

    def test_tokens_end_before_the_end_token(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = engine(name)
        (long,) = made.generate([mixed()[0]], SHORT)
        end = long.token_ids[2]
        expected = long.token_ids[: long.token_ids.index(end)]
        monkeypatch.setattr(made.model.generation_config, "eos_token_id", [end])
        (short, longer) = made.generate(mixed()[:2], SHORT)
        assert short.token_ids == expected
        assert len(short.logprobs) == len(expected)
        assert end not in longer.token_ids

    def test_attention_shows_the_highlight(self, name: str) -> None:
        made = engine(name)
        before = made.image_attention(highlighted(1.0))
        after = made.image_attention(highlighted(8.0))
        layers = LAYERS if name == "llava" else 2
        assert before.shape == (layers, HEADS, GRID, GRID)
        assert (before >= 0).all()
        assert (before.sum((2, 3)) <= 1 + 1e-5).all()
        inside = made.token_mask((60, 40), Highlight(REGION, 8.0))
        assert (after[..., inside].sum(-1) > before[..., inside].sum(-1)).all()
        assert (after[0][..., ~inside] < before[0][..., ~inside] + 1e-7).all()

    def test_half_precision(self, name: str) -> None:
        made = TransformersEngine.from_pretrained(checkpoint(name), dtype="bfloat16")
        assert made.model.dtype == torch.bfloat16
        requests = [highlighted(1.0), highlighted(22.0)]
        rough, exact = (e.generate(requests, SHORT) for e in (made, engine(name)))
        for a, b in zip(rough, exact, strict=True):
            assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.1)
        assert made.image_attention(requests[1]).dtype == np.float32

    def test_no_requests(self, name: str) -> None:
        assert engine(name).generate([], SHORT) == []

    @pytest.mark.parametrize("what", ["layers", "heads"])
    def test_layers_it_does_not_have(self, name: str, what: str) -> None:
        with pytest.raises(CofError, match=f"{what} must be numbers from 0 to"):
            engine(name).generate([highlighted(2.0, **{what: (9,)})], SHORT)

    def test_out_of_memory_is_a_sentence(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made = engine(name)

        def full(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(type(made.adapter), "generate", full)
        with pytest.raises(CofError, match="Out of memory: use fewer images"):
            made.generate([mixed()[0]], SHORT)

    def test_other_errors_are_left_alone(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made = engine(name)

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(type(made.adapter), "generate", broken)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            made.generate([mixed()[0]], SHORT)


def _counted(encode: Any, sizes: list[int]) -> Any:
    def counting(self: Any, pixel_values: Tensor) -> Any:
        sizes.append(len(pixel_values))
        return encode(self, pixel_values)

    return counting


_hand: dict[str, Any] = {}


def _qformer_by_hand(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """softmax(A + log(lambda) * M) over the keys of the cross-attention; nothing is padded."""
    scores = query @ key.transpose(2, 3) * scaling
    if id(module) in _hand["modules"]:
        for head in _hand["heads"]:
            scores[:, head, :, _hand["keys"]] += math.log(_hand["strength"])
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("test_qformer_by_hand", _qformer_by_hand)


@pytest.mark.parametrize(
    ("layers", "heads"), [(None, None), ((1,), None), (None, (0, 3)), ((0,), (2,))]
)
@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_qformer_equals_attention_by_hand(
    name: str, layers: tuple[int, ...] | None, heads: tuple[int, ...] | None
) -> None:
    made = engine(name)
    request = highlighted(22.0, layers=layers, heads=heads)
    prompts = prompts_of(made, [request])
    kwargs = {
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with torch.inference_mode():
        ours = made.adapter.generate(prompts, **kwargs).logits
        plain = made.adapter.generate(replace(prompts, bias=None), **kwargs).logits

    other = AutoModelForImageTextToText.from_pretrained(checkpoint(name)).eval()
    other.set_attn_implementation({"qformer_config": "test_qformer_by_hand"})
    cross = [m for n, m in other.named_modules() if n.endswith("crossattention.attention")]
    mask = made.token_mask((60, 40), Highlight(REGION, 2.0)).ravel()
    _hand.update(
        modules={id(cross[i]) for i in (layers if layers is not None else range(len(cross)))},
        heads=heads if heads is not None else range(HEADS),
        keys=(np.flatnonzero(mask) + 1).tolist(),  # after CLS
        strength=22.0,
    )
    raw = made.processor(images=request.image, text=request.prompt, return_tensors="pt")
    with torch.inference_mode():
        theirs = other.generate(**raw, **kwargs).logits
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) <= 1e-5
    assert float((ours[0] - plain[0]).abs().max()) > 0.1


def test_attention_of_the_first_layer_follows_the_formula() -> None:
    """With only text queries biased, layer 0 sees the plain keys: a' = lambda a / sum."""
    made, strength = engine("llava"), 8.0
    plain = made.image_attention(highlighted(1.0))[0]
    biased = made.image_attention(highlighted(strength, scope="text"))[0]
    inside = made.token_mask((60, 40), Highlight(REGION, strength))
    total = 1 + (strength - 1) * plain[:, inside].sum(1)
    expected = np.where(inside, strength, 1) * plain / total[:, None, None]
    np.testing.assert_allclose(biased, expected, rtol=1e-4)


class TestLlavaLoading:
    def test_pads_to_square_unless_told_otherwise(self) -> None:
        padded = engine("llava")
        cropped = TransformersEngine.from_pretrained(checkpoint("llava"), pad_to_square=False)
        assert padded.frame((100, 60)) == Frame.padded_square((100, 60))
        assert cropped.frame((100, 60)) == Frame.centre_crop((100, 60))
        as_on_the_hub = AutoProcessor.from_pretrained(checkpoint("llava"), backend="pil")
        pixels = as_on_the_hub.image_processor(images=picture((100, 60)), return_tensors="np")
        ours = cropped.tokens.pixels(picture((100, 60)))
        np.testing.assert_array_equal(ours["pixel_values"], pixels["pixel_values"])
        mean = padded.tokens.pixels(picture((100, 60)))["pixel_values"][0, :, 0, 0]
        np.testing.assert_allclose(mean, 0, atol=0.02)  # the bar above is of the mean colour

    def test_a_padding_checkpoint_stays_or_crops(self, tmp_path: Path) -> None:
        made = engine("llava")
        made.model.save_pretrained(tmp_path)
        made.processor.save_pretrained(tmp_path)
        again = TransformersEngine.from_pretrained(tmp_path)
        for wh in ((100, 60), (30, 80)):
            one, other = (e.tokens.pixels(picture(wh))["pixel_values"] for e in (made, again))
            np.testing.assert_array_equal(one, other)
        cropped = TransformersEngine.from_pretrained(tmp_path, pad_to_square=False)
        assert cropped.frame((100, 60)) == Frame.centre_crop((100, 60))

    def test_dialects(self, tmp_path: Path) -> None:
        assert engine("llava").dialect == LLAVA
        assert engine("instructblip").dialect == PAPER
        assert TransformersEngine.from_pretrained(_edited(tmp_path, "tiny")).dialect == TINY
        with pytest.raises(CofError, match="asks for cof_dialect 'klingon'; known are: tiny"):
            TransformersEngine.from_pretrained(_edited(tmp_path, "klingon"))

    def test_chat_template_with_a_start_token_of_its_own(self) -> None:
        made = TransformersEngine.from_pretrained(checkpoint("llava"))
        request = Request(picture((60, 40)), "hi")
        expected = prompts_of(made, [request]).inputs["input_ids"]
        made.processor.chat_template = (
            "{{ '<s>' }}{% for m in messages %}USER: {% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}"
            "{% endfor %}{% endfor %} ASSISTANT:"
        )
        inputs = prompts_of(made, [request]).inputs["input_ids"]
        assert inputs.tolist() == expected.tolist()

    def test_braces_in_a_question(self) -> None:
        assert engine("llava").chat.render("{x}") == "USER: <image>\n{x} ASSISTANT:"


def _edited(folder: Path, dialect: str) -> Path:
    shutil.copytree(checkpoint("llava"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "cof_dialect": dialect}))
    return folder


class TestErrors:
    @pytest.mark.parametrize("model", ["/no/such/folder", "nobody/no-such-model", "not an id"])
    def test_no_such_model(self, model: str) -> None:
        with pytest.raises(CofError, match=f"No model could be loaded from '{model}'"):
            TransformersEngine.from_pretrained(model)

    def test_a_model_of_another_kind(self, tmp_path: Path) -> None:
        LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
        with pytest.raises(
            CofError,
            match=r"type 'llama' are not supported.*has no image_token_id and no vision_config",
        ):
            TransformersEngine.from_pretrained(tmp_path)

    def test_unknown_architecture(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "perceptron-1958"}')
        with pytest.raises(CofError, match="does not know the architecture"):
            TransformersEngine.from_pretrained(tmp_path)

    def test_no_processor(self, tmp_path: Path) -> None:
        for file in ("config.json", "model.safetensors", "generation_config.json"):
            shutil.copy(checkpoint("llava") / file, tmp_path)
        with pytest.raises(CofError, match="processor"):
            TransformersEngine.from_pretrained(tmp_path)
        tokenizer("left").save_pretrained(tmp_path)
        with pytest.raises(CofError, match="processor"):
            TransformersEngine.from_pretrained(tmp_path)

    def test_no_weights(self, tmp_path: Path) -> None:
        shutil.copytree(checkpoint("llava"), tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(CofError, match="No model could be loaded"):
            TransformersEngine.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "float99"}, "dtype 'float99' is unknown"),
            ({"dtype": "int8"}, "dtype 'int8' is unknown"),
            ({"device_map": "gpu"}, "device_map 'gpu' is not a device"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(CofError, match=message):
            TransformersEngine.from_pretrained(checkpoint("llava"), **options)

    def test_padding_is_for_llava(self) -> None:
        with pytest.raises(CofError, match=r"pad_to_square is for LLaVA-1.5 only"):
            TransformersEngine.from_pretrained(checkpoint("blip-2"), pad_to_square=True)
