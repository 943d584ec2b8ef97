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
from zoo import BUILDERS, engine, folder

from cof import CoF, __version__, cli
from cof.attention import registry
from cof.client import RemoteCoF
from cof.engines.transformers import prefix_cache, prompt_builder
from cof.engines.transformers.engine import TransformersEngine
from cof.families.image_tokens import ImageTokens
from cof.prompting.box_template import BoxTemplate
from cof.verify import CHECKS, Check, Trial, verify

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


KINDS = ("llava", "idefics3", "instructblip", "qwen3_5", "gemma3", "mllama", "qwen4_exp")
KINDS += ("hy_v4_vl",) if "hy_v4_vl" in BUILDERS else ()
"""A raster, tiles, a Q-Former, linear attention, a sliding window and images that see all of
themselves, cross-attention, keys that queries choose, these with attention sinks."""


@pytest.mark.parametrize("name", KINDS)
def test_families_that_differ_in_kind_pass(name: str) -> None:
    made = engine(name)
    checks = verify(Trial(CoF(made), torch.float32))
    assert not failed(checks), checks
    others = {check for check, of in checks.items() if of.passed is None}
    assert (CACHE in others) == (not (made.family.prefill and made.adapter.reuses_states))
    assert others <= {CACHE, TEMPLATE}
    assert all(checks[check].note for check in others)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*options: str) -> Any:
        return CliRunner().invoke(cli.app, ["verify", "tiny-early", *options])

    result = run("--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["model"], told["dtype"]) == ("tiny-early", "bfloat16")
    assert {check["passed"] for check in told["checks"].values()} == {True}
    monkeypatch.setattr(ImageTokens, "bias", lambda *_: np.zeros(100))
    monkeypatch.setattr("cof.verify.CHECKS", {name: CHECKS[name] for name in (EFFECT, LAYERS)})
    result = run()
    assert result.exit_code == 1
    assert result.stdout.count("FAILED") == 2


def test_a_model_that_fails_to_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("no kernel")

    monkeypatch.setattr(TransformersEngine, "generate", fail)
    result = CliRunner().invoke(cli.app, ["verify", "tiny-early"])
    assert result.exit_code == 2
    assert result.stderr == "The model fails to answer: ZeroDivisionError: no kernel\n"


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteCoF]:
    server = Server(free_port())
    server.start()
    server.wait()
    with CoF.connect(server.url, api_key=KEY) as client:
        yield client
    server.stop()


def test_servers(remote: RemoteCoF, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COF_API_KEY", KEY)
    result = CliRunner().invoke(cli.app, ["verify", "--server", remote.urls[0], "--json"])
    told = json.loads(result.stdout)
    assert (told["version"], result.exit_code) == (__version__, 0)
    outside = {check for check, of in told["checks"].items() if of["passed"] is None}
    assert outside == {LAYERS, PLACES, TEMPLATE}
    whole = remote._options
    weak = {True: {"strength": 1.0}, False: {}}  # a server that does not look
    patched = lambda query: {**whole(query), **weak[query.region is not None]}  # noqa: E731
    monkeypatch.setattr(remote, "_options", patched)
    assert failed(verify(Trial(remote))) == {EFFECT, ASKED}


class Break:
    """Ways to break one thing."""

    @staticmethod
    def one_layer(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        """Without the bias, as if it were not attached."""

        def unbias(module: Any, args: Any, kwargs: Any) -> Any:
            mask = kwargs["attention_mask"]
            hidden = mask is None or mask.dtype == torch.bool
            return args, {**kwargs, "attention_mask": mask if hidden else mask > -1e30}

        layer = made.model.model.language_model.layers[1].self_attn
        layer.register_forward_pre_hook(unbias, with_kwargs=True)

    @staticmethod
    def another_layer_alone(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        """Its attention is not ours at all."""
        layer = made.model.model.language_model.layers[2].self_attn
        layer.config = copy.deepcopy(layer.config)
        layer.config._attn_implementation = "sdpa"

    @staticmethod
    def a_module(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        delattr(made.adapter.looking[1], registry._TAG)

    @staticmethod
    def a_weaker_bias(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        whole = made.tokens.bias
        patch.setattr(made.tokens, "bias", lambda *given: 0.99 * whole(*given))

    @staticmethod
    def a_shifted_box(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        whole = made.tokens.mask
        patch.setattr(made.tokens, "mask", lambda *given: np.roll(whole(*given), 1, -1))

    @staticmethod
    def the_cache(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        split = prefix_cache.split_cache

        def noisy(*given: Any) -> Any:
            return [
                replace(each, states=[(keys * 1.01, values) for keys, values in each.states])
                for each in split(*given)
            ]

        patch.setattr(prefix_cache, "split_cache", noisy)

    @staticmethod
    def the_batch(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        """Every row gets the region of the last one."""
        whole = prompt_builder.make_bias
        patch.setattr(
            prompt_builder,
            "make_bias",
            lambda adapter, tokens, rows, inputs: whole(
                adapter,
                tokens,
                [replace(row, highlight=rows[-1].highlight) for row in rows],
                inputs,
            ),
        )

    @staticmethod
    def the_plain_model(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        ours = AttentionInterface()[registry.DECODER]

        def changed(module: Any, query: Any, *states: Any, **more: Any) -> Any:
            return ours(module, query * 1.01, *states, **more)

        patch.setitem(AttentionInterface._global_mapping, registry.DECODER, changed)

    @staticmethod
    def the_stream(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        whole = made.generate
        patch.setattr(
            made,
            "generate",
            lambda rows, decoding, tell=None: whole(
                rows, decoding, tell and (lambda place, piece: tell(place, piece + "?"))
            ),
        )

    @staticmethod
    def the_template(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        numbers = made.dialect.box_template.numbers
        unread = BoxTemplate("{}|{}|{}|{}", numbers)
        made.dialect = replace(made.dialect, box_template=unread)

    @staticmethod
    def a_weight(made: TransformersEngine, patch: pytest.MonkeyPatch) -> None:
        made.model.lm_head.weight.data.fill_(torch.nan)


@pytest.mark.parametrize(
    ("name", "broken", "seen"),
    [
        ("llava", Break.one_layer, {LAYERS}),
        ("llava", Break.another_layer_alone, {LAYERS}),
        ("instructblip", Break.a_module, {LAYERS}),
        ("mllama", Break.a_module, {LAYERS}),
        ("qwen2_vl", Break.a_weaker_bias, {LAYERS}),
        ("llava", Break.a_shifted_box, {PLACES}),
        ("llava", Break.the_cache, {CACHE}),
        ("llava", Break.the_batch, {BATCH}),
        ("llava", Break.the_plain_model, {IDLE}),
        ("llava", Break.the_stream, {STREAM}),
        ("llava", Break.the_template, {TEMPLATE}),
        ("llava", Break.a_weight, {EFFECT, IDLE, CACHE, BATCH}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_broken_is_seen(
    name: str, broken: Any, seen: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TransformersEngine.from_pretrained(folder(name))
    broken(made, monkeypatch)
    monkeypatch.setattr("cof.verify.CHECKS", {check: CHECKS[check] for check in seen})
    checks = verify(Trial(CoF(made), torch.float32))
    assert seen == failed(checks), checks
