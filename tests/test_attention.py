"""The registered functions against attention written out by hand, on a raw model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import GRID, HEADS, LAYERS, checkpoint, picture
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import (
    AttentionInterface,
    AutoModelForImageTextToText,
    AutoProcessor,
    CompileConfig,
    StaticCache,
)

from cof.attention import registry as attention
from cof.attention import widening
from cof.attention.bias_mask import Bias, make_gates
from cof.attention.registry import (
    attach,
    record_weights,
    reweight,
)
from cof.errors import CofError

STRENGTH = 8.0
CELLS = [row * GRID + column for row in (2, 3, 4) for column in (1, 2)]
TEXTS = ["USER: <image>\nwhat digit is it? ASSISTANT:", "USER: <image>\nred? ASSISTANT:"]
_by_hand: dict[str, Any] = {}


def _reference(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """softmax(A + log(lambda) * M), causal, one unpadded row; M by absolute key position."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    n_queries, n_keys = scores.shape[-2:]
    if module.layer_idx in _by_hand["layers"]:
        for head in _by_hand["heads"]:
            for i in range(n_queries):
                if n_keys - n_queries + i >= _by_hand["q_from"]:
                    scores[:, head, i, _by_hand["keys"]] += math.log(STRENGTH)
    for i in range(n_queries):
        scores[:, :, i, n_keys - n_queries + i + 1 :] = -math.inf
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("test_by_hand", _reference)


@contextmanager
def by_hand(
    keys: list[int],
    q_from: int = 0,
    layers: tuple[int, ...] = tuple(range(LAYERS)),
    heads: tuple[int, ...] = tuple(range(HEADS)),
) -> Iterator[None]:
    _by_hand.update(keys=keys, q_from=q_from, layers=layers, heads=heads)
    yield
    _by_hand.clear()


def load(name: str = "llava") -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint(name)).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    loaded = load()
    attach(loaded, "text_config")
    return loaded


@pytest.fixture(scope="module")
def stock() -> Any:
    return load()


@pytest.fixture(scope="module")
def reference() -> Any:
    loaded = load()
    loaded.set_attn_implementation({"text_config": "test_by_hand"})
    return loaded


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(checkpoint("llava"), backend="pil")


@pytest.fixture(scope="module")
def single(processor: Any) -> dict[str, Tensor]:
    return dict(processor(images=picture((60, 40)), text=TEXTS[0], return_tensors="pt"))


@pytest.fixture(scope="module")
def pair(processor: Any) -> dict[str, Tensor]:
    images = [picture((60, 40), 1), picture((40, 60), 2)]
    return dict(processor(images=images, text=TEXTS, padding=True, return_tensors="pt"))


def bias_for(
    model: Any, inputs: dict[str, Tensor], strengths: list[float] | None = None, **kwargs: Any
) -> Bias:
    is_image = inputs["input_ids"] == model.config.image_token_id
    values = torch.zeros(is_image.shape)
    for row, strength in enumerate(strengths or [STRENGTH] * len(values)):
        values[row, is_image[row].nonzero()[CELLS, 0]] = math.log(strength)
    return Bias(values, **kwargs)


def image_end(model: Any, inputs: dict[str, Tensor]) -> int:
    return int((inputs["input_ids"][0] == model.config.image_token_id).nonzero().max()) + 1


def stepwise(model: Any, inputs: dict[str, Tensor], tokens: list[int]) -> list[Tensor]:
    """Logits of the prefill (all positions) and of one decoding step per token."""
    with torch.inference_mode():
        output = model(**inputs, use_cache=True)
        logits = [output.logits]
        for token in tokens:
            output = model(
                input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values
            )
            logits.append(output.logits)
    return logits


def furthest(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def generate(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    return model.generate(
        **inputs, return_dict_in_generate=True, output_logits=True, **{**settings, **kwargs}
    )


@pytest.mark.parametrize("scope", ["all", "text"])
def test_equals_attention_by_hand(
    model: Any, reference: Any, stock: Any, single: dict[str, Tensor], scope: str, carrier: None
) -> None:
    bias = bias_for(model, single)
    q_from = image_end(model, single) if scope == "text" else 0
    if scope == "text":
        bias = Bias(bias.values, q_from=torch.tensor([q_from]))
    with reweight(bias):
        ours = stepwise(model, single, [5, 6, 7])
    with by_hand(bias.values[0].nonzero()[:, 0].tolist(), q_from):
        theirs = stepwise(reference, single, [5, 6, 7])
    plain = stepwise(stock, single, [5, 6, 7])
    assert furthest(ours, theirs) <= 1e-5
    for biased, unbiased in zip(ours, plain, strict=True):  # in the prefill and in every step
        assert float((biased - unbiased)[:, -1].abs().max()) > 0.1
    before = slice(0, q_from)  # the image prefix can be reused when only text queries are biased
    assert float((ours[0] - plain[0])[:, before].abs().sum()) <= 1e-3 * q_from


@pytest.mark.parametrize(
    ("layers", "heads"), [((1,), None), (None, (0, 3)), ((0, 2), (1,)), ((), None)]
)
def test_subset_of_layers_and_heads(
    model: Any,
    reference: Any,
    single: dict[str, Tensor],
    layers: tuple[int, ...] | None,
    heads: tuple[int, ...] | None,
    carrier: None,
) -> None:
    plain_bias = bias_for(model, single)
    gate = make_gates([layers], [heads], (LAYERS, HEADS))
    with reweight(Bias(plain_bias.values, gate=gate)):
        ours = stepwise(model, single, [5, 6, 7])
    with by_hand(
        plain_bias.values[0].nonzero()[:, 0].tolist(),
        layers=tuple(range(LAYERS)) if layers is None else layers,
        heads=tuple(range(HEADS)) if heads is None else heads,
    ):
        theirs = stepwise(reference, single, [5, 6, 7])
    with reweight(plain_bias):
        everywhere = stepwise(model, single, [5, 6, 7])
    assert furthest(ours, theirs) <= 1e-5
    assert furthest(ours, everywhere) > 0.1


@pytest.fixture(params=["mask", "dimensions"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both ways to carry the bias through the prefill, as if sequences were short or long."""
    monkeypatch.setattr(widening, "LONG", 2 if request.param == "dimensions" else 10**6)
    calls = []
    monkeypatch.setattr(
        attention, "widened", lambda *args: calls.append(1) or widening.widened(*args)
    )
    yield
    assert bool(calls) == (request.param == "dimensions")


def test_idle_is_bitwise_stock(model: Any, stock: Any, pair: dict[str, Tensor]) -> None:
    ours, theirs = generate(model, pair), generate(stock, pair)
    assert furthest(ours.logits, theirs.logits) == 0
    with reweight(bias_for(model, pair, [1.0, 1.0])):  # lambda = 1
        ours = generate(model, pair)
    assert furthest(ours.logits, theirs.logits) == 0


def test_zero_bias_through_the_mask_is_plain(
    model: Any, stock: Any, pair: dict[str, Tensor]
) -> None:
    with reweight(bias_for(model, pair, [STRENGTH, 1.0])):
        ours = generate(model, pair)
    theirs = generate(stock, pair)
    assert furthest([x[1:] for x in ours.logits], [x[1:] for x in theirs.logits]) <= 1e-5
    assert furthest([ours.logits[0][:1]], [theirs.logits[0][:1]]) > 0.1


def test_row_of_a_padded_batch_equals_it_alone(
    model: Any, processor: Any, pair: dict[str, Tensor]
) -> None:
    strengths = [3.0, 9.0]
    with reweight(bias_for(model, pair, strengths)):
        together = generate(model, pair)
    for row, image in enumerate([picture((60, 40), 1), picture((40, 60), 2)]):
        alone = dict(processor(images=image, text=TEXTS[row], return_tensors="pt"))
        with reweight(bias_for(model, alone, [strengths[row]])):
            expected = generate(model, alone)
        n = expected.sequences.shape[1] - alone["input_ids"].shape[1]
        assert together.sequences[row, -n:].tolist() == expected.sequences[0, -n:].tolist()
        rows = [logits[row : row + 1] for logits in together.logits]
        assert furthest(rows[:n], list(expected.logits)) <= 2e-5


def test_cache_and_no_cache_and_static_cache(model: Any, single: dict[str, Tensor]) -> None:
    results = []
    for kwargs in ({}, {"use_cache": False}, {"past_key_values": static_cache(model, single)}):
        with reweight(bias_for(model, single)):
            results.append(generate(model, single, **kwargs))
    for other in results[1:]:
        assert other.sequences.tolist() == results[0].sequences.tolist()
        assert furthest(other.logits, results[0].logits) <= 1e-5


def test_compiled_decoding_is_not_recompiled_for_another_region_or_strength(
    model: Any, pair: dict[str, Tensor]
) -> None:
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    compiled = {"cache_implementation": "static", "compile_config": config}
    graphs = []
    for strengths in ([8.0, 3.0], [3.0, 5.0], [1.0, 2.0]):
        with reweight(bias_for(model, pair, strengths)):
            expected = generate(model, pair)
        with reweight(bias_for(model, pair, strengths)):
            ours = generate(model, pair, **compiled)
        assert furthest(ours.logits, expected.logits) <= 1e-5
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 1
    assert set(graphs) == {graphs[0]}

    bias = bias_for(model, pair)
    gated = Bias(bias.values, gate=make_gates([(1,), None], [None, None], (LAYERS, HEADS)))
    with pytest.raises(RuntimeError, match="compile"), reweight(gated):
        generate(model, pair, **compiled)


def static_cache(model: Any, inputs: dict[str, Tensor]) -> StaticCache:
    length = inputs["input_ids"].shape[1] + 16
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


def test_beams_and_returned_sequences(model: Any, pair: dict[str, Tensor]) -> None:
    kwargs = {"num_beams": 3, "num_return_sequences": 2}
    bias = bias_for(model, pair, [3.0, 9.0])
    with reweight(bias):
        together = generate(model, pair, **kwargs)
    # The same search, every row written out by hand as many times as there are beams.
    spread = Bias(bias.values.repeat_interleave(3, 0))
    with reweight(spread):
        expected = generate(model, pair, **kwargs)
    assert together.sequences.shape[0] == 4
    assert together.sequences.tolist() == expected.sequences.tolist()
    assert generate(model, pair, **kwargs).sequences.tolist() != expected.sequences.tolist()


def test_bias_that_does_not_fit_the_batch_is_refused(model: Any, pair: dict[str, Tensor]) -> None:
    bias = Bias(bias_for(model, pair).values.repeat(2, 1)[:3])
    with reweight(bias), pytest.raises(RuntimeError, match="3 rows does not fit a batch of 2"):
        generate(model, pair)


def test_nothing_is_left_behind_after_an_error(
    model: Any, stock: Any, single: dict[str, Tensor]
) -> None:
    with pytest.raises(KeyError), reweight(bias_for(model, single)):
        raise KeyError
    assert furthest(stepwise(model, single, [5]), stepwise(stock, single, [5])) == 0


def test_a_model_that_was_not_attached_is_noticed(stock: Any, single: dict[str, Tensor]) -> None:
    with (
        pytest.raises(RuntimeError, match="never read"),
        reweight(bias_for(stock, single)),
    ):
        stepwise(stock, single, [])


def test_a_model_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load()
    with monkeypatch.context() as patch:
        patch.setattr(type(loaded.model.language_model), "_supports_sdpa", False)
        with pytest.raises(CofError, match="does not let its attention be reweighted"):
            attach(loaded, "text_config")
    loaded.config.text_config.attn_logit_softcapping = 50.0
    with pytest.raises(CofError, match="does not let its attention be reweighted"):
        attach(loaded, "text_config")
    assert loaded.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("layers", "heads"), [((3,), None), ((-1,), None), (None, (4,))])
def test_layers_and_heads_the_model_does_not_have(
    layers: tuple[int, ...] | None, heads: tuple[int, ...] | None
) -> None:
    with pytest.raises(CofError, match="must be numbers from 0 to"):
        make_gates([layers], [heads], (LAYERS, HEADS))


def test_recorded_weights_equal_eager_ones(model: Any, single: dict[str, Tensor]) -> None:
    eager = load()
    eager.set_attn_implementation({"text_config": "eager"})
    with torch.inference_mode():
        expected = eager(**single, output_attentions=True).attentions
        with record_weights() as recorded:
            model(**single)
    assert len(recorded) == LAYERS
    assert furthest(recorded, [layer[:, :, -1] for layer in expected]) <= 1e-5


def test_recorded_weights_show_the_bias(
    model: Any, reference: Any, single: dict[str, Tensor], carrier: None
) -> None:
    bias = bias_for(model, single)
    keys = bias.values[0].nonzero()[:, 0].tolist()
    with torch.inference_mode(), reweight(bias), record_weights() as recorded:
        model(**single)
    with torch.inference_mode(), by_hand(keys):
        expected = reference(**single, output_attentions=True).attentions
    assert furthest(recorded, [layer[:, :, -1] for layer in expected]) <= 1e-5
