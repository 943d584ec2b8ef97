"""The transformers engine: what it loads and refuses, and what it tells of its answers."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint, picture, prompts_of, tokenizer
from transformers import AutoProcessor, LlamaConfig
from zoo import BUILDERS, assert_same, engine, folder, stock

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.focuses import Attention, Contrast
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region
from cof.pipeline import CoF
from cof.prompting.dialects import LLAVA, PAPER, TINY
from cof.settings import Settings
from cof.types import Decoding, EncodedImage, Highlight, Request

SHORT = Decoding(max_new_tokens=5)
REGION = Region(boxes=((0.1, 0.1, 0.5, 0.5),))
IMAGE = picture((60, 40))
PLAIN = Request(IMAGE, "which digit?")


def highlighted(strength: float, **kwargs: Any) -> Request:
    return replace(PLAIN, highlight=Highlight(REGION, strength, **kwargs))


@pytest.mark.parametrize("name", ["llava", "instructblip"])
class TestAnswers:
    def test_sampling_with_a_seed(self, name: str) -> None:
        def sample(seed: int) -> list[Any]:
            decoding = Decoding(max_new_tokens=8, temperature=1.5, top_p=0.9, seed=seed)
            return engine(name).generate([PLAIN, highlighted(8.0)], decoding)

        one, state = sample(1), torch.random.get_rng_state()
        again, other = sample(1), sample(2)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert one == again
        assert one != other

    def test_images_are_encoded_once(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made, sizes = engine(name), []
        encode = type(made.adapter).encode
        monkeypatch.setattr(
            type(made.adapter),
            "encode",
            lambda self, pixels: sizes.append(len(pixels)) or encode(self, pixels),
        )
        fresh = [PLAIN, highlighted(8.0)]
        expected = made.generate(fresh, SHORT)
        assert sizes == [1]
        (encoded,) = made.encode([IMAGE])
        assert isinstance(encoded, EncodedImage)
        assert encoded.size == (60, 40)
        reused = [replace(request, image=encoded) for request in fresh]
        assert made.generate(reused, SHORT) == expected
        assert sizes == [1, 1]
        assert_same(made.generate([reused[0], fresh[1]], SHORT), expected)
        assert sizes == [1, 1, 1]

    def test_threads(self, name: str) -> None:
        requests = [highlighted(strength) for strength in (0.3, 1.0, 5.0, 40.0)]
        expected = [engine(name).generate([request], SHORT) for request in requests]
        assert len({answer[0].logprobs for answer in expected}) == 4
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                jobs = [pool.submit(engine(name).generate, [asked], SHORT) for asked in requests]
                assert [job.result() for job in jobs] == expected

    def test_logprobs_are_the_models_own(self, name: str) -> None:
        hot = Decoding(max_new_tokens=1, temperature=3.0, top_p=0.5, seed=0)
        made, request = engine(name), highlighted(8.0)
        (sampled,) = made.generate([request], hot)
        config = made._generation_config(Decoding(max_new_tokens=1))
        with torch.inference_mode():
            output = made.adapter.generate(prompts_of(made, [request]), generation_config=config)
        expected = output.logits[0].log_softmax(-1)[0, sampled.token_ids[0]]
        assert sampled.logprobs[0] == pytest.approx(float(expected), abs=1e-5)

    def test_tokens_end_before_the_end_token(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = engine(name)
        (long,) = made.generate([PLAIN], SHORT)
        end = long.token_ids[2]
        expected = long.token_ids[: long.token_ids.index(end)]
        monkeypatch.setattr(made.model.generation_config, "eos_token_id", [end])
        short, longer = made.generate([PLAIN, highlighted(8.0)], SHORT)
        assert short.token_ids == expected
        assert len(short.logprobs) == len(expected)
        assert end not in longer.token_ids

    def test_half_precision(self, name: str) -> None:
        made = TransformersEngine.from_pretrained(checkpoint(name), dtype="bfloat16")
        assert made.model.dtype == torch.bfloat16
        requests = [PLAIN, highlighted(22.0)]
        rough, exact = (e.generate(requests, SHORT) for e in (made, engine(name)))
        for a, b in zip(rough, exact, strict=True):
            assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.1)
        assert made.image_attentions([requests[1]])[0].dtype == np.float32

    @pytest.mark.parametrize("what", ["layers", "heads"])
    @pytest.mark.parametrize("number", [9, -1])
    def test_layers_it_does_not_have(self, name: str, what: str, number: int) -> None:
        with pytest.raises(CofError, match=rf"{what} must be numbers from 0 to \d, not {number}\."):
            engine(name).generate([highlighted(2.0, **{what: (0, number)})], SHORT)

    def test_out_of_memory_is_a_sentence(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made = engine(name)

        def fail(error: Exception) -> None:
            def failing(*_: Any, **__: Any) -> None:
                raise error

            monkeypatch.setattr(type(made.adapter), "generate", failing)

        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        with pytest.raises(CofError, match="Out of memory: use fewer images"):
            made.generate([PLAIN], SHORT)
        # other errors are left alone, those that are kinds of RuntimeError too
        for error in (RuntimeError("shapes do not match"), NotImplementedError("meta tensor")):
            fail(error)
            with pytest.raises(type(error), match=str(error)):
                made.generate([PLAIN], SHORT)


RULED = {
    "use_cache": False,
    "cache_implementation": "static",
    "num_beams": 3,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 3,
    "max_length": 5000,
    "max_time": 0.001,
    "stop_strings": ["a", "e"],
    "return_dict_in_generate": False,
    "output_scores": True,
    "output_attentions": True,
    "guidance_scale": 5.0,
    "prompt_lookup_num_tokens": 2,
    "early_stopping": True,
    "length_penalty": 9.0,
}


@pytest.mark.parametrize("name", ["llava", "blip-2 with T5", "janus", "mllama", "smolvlm"])
def test_a_checkpoint_does_not_rule_how_answers_are_made(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its files say, the answers are the same, and no warning is given of it."""
    shutil.copytree(folder(name), tmp_path, dirs_exist_ok=True)
    more = {"generation_config": RULED, "tokenizer_config": {"clean_up_tokenization_spaces": True}}
    if name == "blip-2 with T5":
        del more["tokenizer_config"]
    for file, fields in more.items():
        path = tmp_path / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    known, made = engine(name), TransformersEngine.from_pretrained(tmp_path)
    generator = made.adapter.generator.generation_config
    generator.update(**RULED)  # a Q-Former's language model has one of its own
    caplog.clear()  # of what was said of the files themselves
    requests, words = [PLAIN, highlighted(8.0)], ["red", "a"]
    for decoding in (SHORT, Decoding(5, num_beams=2), Decoding(5, temperature=0.9, seed=1)):
        if decoding.temperature:
            generator.top_k = None
        if decoding.num_beams > 1:
            generator.length_penalty = generator.early_stopping = None
        assert made.generate(requests, decoding) == known.generate(requests, decoding)
    assert made.score_replies(requests, words) == known.score_replies(requests, words)
    np.testing.assert_array_equal(
        made.image_attentions([PLAIN])[0], known.image_attentions([PLAIN])[0]
    )
    if name == "llava":
        made.word_probabilities([IMAGE], [["red"]])
    assert not caplog.messages


def test_a_model_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's threads are not there: it would wait for them."""
    made = copy.copy(engine("llava"))
    expected = made.generate([PLAIN], SHORT)
    monkeypatch.setattr(made, "_process_id", -1)
    torch.set_num_threads(2)
    try:
        assert made.generate([PLAIN], SHORT) == expected
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(made, "_process_id", -1)
    monkeypatch.setattr(made, "model", SimpleNamespace(device=torch.device("cuda")))
    with pytest.raises(CofError, match=r"forked .* load the model after the fork"):
        made.generate([PLAIN], SHORT)


@pytest.mark.parametrize("name", ["llava", "instructblip"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_a_caller_changed(name: str, attention: str) -> None:
    """It answers where nothing of ours is needed, and is changed back where something is."""
    made, asked = TransformersEngine.from_pretrained(checkpoint(name)), highlighted(8.0)
    expected, weights = made.generate([asked], SHORT), made.image_attentions([asked])[0]
    for ask in (PLAIN, asked):
        made.model.set_attn_implementation(attention)
        replies = made.generate([ask], SHORT)
        used = getattr(made.model.config, made.adapter.part)._attn_implementation
        assert (used == attention) == (ask is PLAIN)
    assert_same(replies, expected)
    made.model.set_attn_implementation(attention)
    np.testing.assert_allclose(made.image_attentions([asked])[0], weights, atol=1e-5)


class TestContrast:
    def test_what_a_checkpoint_forbids_stays_forbidden(self) -> None:
        made = TransformersEngine.from_pretrained(checkpoint("llava"))
        asked = Contrast(6.0, guidance=3.0).apply(PLAIN, REGION)
        (free,) = made.generate([asked], SHORT)
        made.model.generation_config.suppress_tokens = [free.token_ids[0]]
        (reply,) = made.generate([asked], SHORT)
        assert reply.token_ids
        assert free.token_ids[0] not in reply.token_ids

    def test_guidance_of_1_is_the_attention_focus(self) -> None:
        looking = Attention(6.0).apply(PLAIN, REGION)
        one, more = (Contrast(6.0, guidance=g).apply(PLAIN, REGION) for g in (1.0, 30.0))
        assert one == looking
        beside, led = engine("llava").generate([one, more], SHORT)
        assert_same([beside], engine("llava").generate([looking], SHORT))
        assert led.token_ids != beside.token_ids

    @pytest.mark.parametrize("decoding", [Decoding(num_beams=2), Decoding(temperature=0.7, seed=1)])
    def test_greedily_only(self, decoding: Decoding) -> None:
        with pytest.raises(CofError, match="answers greedily"):
            engine("llava").generate([Contrast(6.0).apply(PLAIN, REGION)], decoding)


class TestScores:
    def test_equals_the_formula_written_out(self) -> None:
        """`log softmax` of the stock model's own forward pass over prompt and reply."""
        made = engine("llava")
        (scored,) = made.score_replies([PLAIN], ["red"])
        text = made.chat.text(PLAIN) + " red"
        inputs = made.processor(images=IMAGE, text=text, return_tensors="pt")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[2]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logprobs = stock("llava")(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0]
        n = len(scored.token_ids)
        assert list(scored.token_ids) == ids[-n:].tolist()
        expected = [float(logprobs[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids))]
        assert scored.logprobs == pytest.approx(expected, abs=1e-5)

    def test_a_reply_may_end_with_any_of_the_models_end_tokens(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Chat models have several (Llama 3, Gemma 3), and the first is not the one they write."""
        made = engine("llava")

        def ending(*ids: int) -> float:
            monkeypatch.setattr(made.model.generation_config, "eos_token_id", list(ids))
            return math.exp(made.score_replies([PLAIN], ["red"])[0].logprobs[-1])

        assert ending(2, 30) == pytest.approx(ending(2) + ending(30))

    def test_replies_of_several_lengths(self) -> None:
        made, replies = engine("llava"), ["red", "a longer one", "", "x"]
        asked = [PLAIN, highlighted(30.0), PLAIN, PLAIN]
        for at, scored in enumerate(made.score_replies(asked, replies)):
            (alone,) = made.score_replies(asked[at : at + 1], replies[at : at + 1])
            assert_same([scored], [alone])
            assert scored.text == replies[at]
        assert made.score_replies([], []) == []


@contextmanager
def nothing_runs() -> Iterator[None]:
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: pytest.fail("ran"))
    try:
        yield
    finally:
        handle.remove()


class TestLengths:
    def room(self, prompt: str, made: TransformersEngine) -> int:
        """How many tokens an answer may have."""
        ((_, batch),) = made.plan([Request(IMAGE, prompt)], [1])
        return made.context_length - batch.lengths[0]

    @pytest.mark.parametrize("name", ["llava", "blip-2"])
    def test_a_model_runs_to_its_last_position(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OPT's positions are learned: beyond them there are none."""
        made, prompt = engine(name), "hi" * 150
        monkeypatch.setattr(made.model.generation_config, "eos_token_id", 10**6)  # never ends
        most = self.room(prompt, made)
        (reply,) = made.generate([Request(IMAGE, prompt)], Decoding(max_new_tokens=most))
        assert len(reply.token_ids) == most

    def test_distances_have_no_limit(self) -> None:
        long = Request(IMAGE, "which digit? " * 100)
        assert engine("blip-2 with T5").generate([long], SHORT)

    def test_two_images_count(self) -> None:
        made = engine("llava")
        most = Decoding(max_new_tokens=self.room("hi", made))
        made.check_lengths([Request(IMAGE, "hi")], most)
        with pytest.raises(CofError, match="is too long") as refused:
            made.check_lengths([Request(IMAGE, "hi").beside(IMAGE)], most)
        assert made.name not in str(refused.value)  # which a server's clients read

    @pytest.mark.parametrize(
        "call",
        [
            lambda made, long: made.score_replies([long], ["red"]),
            lambda made, long: made.score_replies([PLAIN], ["red" * 400]),
            lambda made, long: made.image_attentions([long])[0],
            lambda made, long: made.phrase_similarities([long], ["digit"]),
            lambda made, long: made.generate([long], Decoding(box_template=LLAVA.box_template)),
            lambda made, long: made.check_lengths([long], SHORT),
        ],
    )
    def test_whatever_is_asked_of_it(self, call: Any) -> None:
        with nothing_runs(), pytest.raises(CofError, match="is too long"):
            call(engine("llava"), Request(IMAGE, "which digit is it? " * 30))

    def test_the_pipeline_asks_nothing_before(self) -> None:
        """Stage 1 reads the first line alone, which would fit."""
        cof = CoF(engine("llava"), Settings(grounding_max_new_tokens=8))
        asked = [(cof.encode(IMAGE), text) for text in ("which?", "which?\n" + "A. a digit\n" * 60)]
        with nothing_runs(), pytest.raises(CofError, match="Question 2 of 2"):
            cof.batch(asked, decoding=SHORT)
        good, bad = cof.batch(asked, decoding=SHORT, on_error="return")
        assert not good.error
        assert "The question ('which?" in bad.error


def test_decoders_that_take_two_images() -> None:
    taking = {name for name in BUILDERS if engine(name).takes_two}
    assert {"qwen2_5_vl", "internvl", "idefics3", "llava_onevision"} <= taking
    assert "paligemma" not in taking


def test_a_q_former_reads_the_beginning_of_a_long_question() -> None:
    """It has 256 places for text (512 in InstructBLIP); the decoder reads it whole."""
    made, start = engine("instructblip"), "x" * 300
    asked = [Request(IMAGE, prompt) for prompt in (start, start + "y", "short")]
    inputs = made.adapter.tokenize([request.prompt for request in asked], [[{}]] * 3)
    assert inputs["qformer_input_ids"].shape == (3, 256)
    first, second, _ = inputs["attention_mask"].sum(1).tolist()
    assert second == first + 1
    assert len(made.generate(asked, Decoding(max_new_tokens=2))) == 3


def test_kosmos2_reads_every_patch() -> None:
    """A patch far behind the first queries changes the first image token."""
    made = engine("kosmos2")
    features = made.encode([IMAGE])[0].features[None]
    changed = features.clone()
    changed[:, -1] += 1
    project = made.model.image_to_text_projection
    with torch.inference_mode():
        assert float((project(features)[0] - project(changed)[0])[:, 0].abs().max()) > 1e-6


class TestLlavaLoading:
    def test_pads_to_square_unless_told_otherwise(self, tmp_path: Path) -> None:
        padded, image = engine("llava"), picture((100, 60))
        cropped = TransformersEngine.from_pretrained(checkpoint("llava"), pad_to_square=False)
        assert padded.frame((100, 60)) == Frame.padded_square((100, 60))
        assert cropped.frame((100, 60)) == Frame.centre_crop((100, 60))
        as_on_the_hub = AutoProcessor.from_pretrained(checkpoint("llava"), backend="pil")
        pixels = as_on_the_hub.image_processor(images=image, return_tensors="np")
        ours = cropped.tokens.pixels(image)
        np.testing.assert_array_equal(ours["pixel_values"], pixels["pixel_values"])
        mean = padded.tokens.pixels(image)["pixel_values"][0, :, 0, 0]
        np.testing.assert_allclose(mean, 0, atol=0.02)  # the bar above is of the mean colour
        # a checkpoint that pads stays as it is, or crops
        padded.model.save_pretrained(tmp_path)
        padded.processor.save_pretrained(tmp_path)
        again = TransformersEngine.from_pretrained(tmp_path)
        one, other = (e.tokens.pixels(image)["pixel_values"] for e in (padded, again))
        np.testing.assert_array_equal(one, other)
        cropped = TransformersEngine.from_pretrained(tmp_path, pad_to_square=False)
        assert cropped.frame((100, 60)) == Frame.centre_crop((100, 60))

    def test_dialects(self, tmp_path: Path) -> None:
        def edited(dialect: str) -> TransformersEngine:
            shutil.copytree(checkpoint("llava"), tmp_path, dirs_exist_ok=True)
            config = json.loads((tmp_path / "config.json").read_text())
            (tmp_path / "config.json").write_text(json.dumps({**config, "cof_dialect": dialect}))
            return TransformersEngine.from_pretrained(tmp_path)

        assert engine("llava").dialect == LLAVA
        assert engine("instructblip").dialect == PAPER
        assert edited("tiny").dialect == TINY
        with pytest.raises(CofError, match="asks for cof_dialect 'klingon'; known are: tiny"):
            edited("klingon")

    def test_chat_template_with_a_start_token_of_its_own(self) -> None:
        made = TransformersEngine.from_pretrained(checkpoint("llava"))
        expected = prompts_of(made, [PLAIN]).inputs["input_ids"]
        made.processor.chat_template = (
            "{{ '<s>' }}{% for m in messages %}USER: {% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}"
            "{% endfor %}{% endfor %} ASSISTANT:"
        )
        assert prompts_of(made, [PLAIN]).inputs["input_ids"].tolist() == expected.tolist()
        assert engine("llava").chat.text(Request(IMAGE, "x")) == "USER: <image>\nx ASSISTANT:"


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
        with pytest.raises(CofError, match="has no weights as safetensors"):
            TransformersEngine.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("llava", {"dtype": "float99"}, "dtype 'float99' is unknown"),
            ("llava", {"dtype": "int8"}, "dtype 'int8' is unknown"),
            ("llava", {"device_map": "gpu"}, "device_map 'gpu' is not a device"),
            ("blip-2", {"pad_to_square": True}, "pad_to_square is for LLaVA-1.5 only"),
        ],
    )
    def test_options(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(CofError, match=message):
            TransformersEngine.from_pretrained(checkpoint(name), **options)
