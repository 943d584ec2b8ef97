"""What holds of every family, however it is run, with every grounder and every focus.

A new family is an entry in `tests/zoo`, a new grounder or focus one in its registry: nothing is to
be added here. Bias and attention are held against softmax(A + log(1 + m (lambda - 1))) written out
in transformers' own pipeline, from pixels to logits, through the prompt and three more steps.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from models import picture, prompts_of
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    LogitsProcessorList,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask
from zoo import EVERY, assert_same, engine, stock

from cof.engines.base import AttentionReader, Engine, LengthChecker, ReplyScorer, StateReader
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.generation import Forced
from cof.engines.transformers.prefix_cache import CACHE, full_length_cache
from cof.errors import CofError, CofWarning
from cof.focuses import FOCUSES, Attention, Contrast
from cof.geometry.regions import EVERYTHING, Region
from cof.grounders import GROUNDERS
from cof.pipeline import CoF
from cof.query import Query
from cof.settings import Settings
from cof.types import Decoding, Highlight, Request

STEPS = 4  # the prompt's token and three more
BOX = Region(boxes=((0.37, 0.41, 0.66, 0.7),))
LOWER = Region(boxes=((0.1, 0.8, 0.5, 1.0), (0.7, 0.7, 0.9, 0.9)))
HEAT = Region(boxes=BOX.boxes, heat_map=np.random.default_rng(0).random((20, 30), np.float32))
WIDE, TALL, TINY, SMALL = (
    picture(wh, n) for n, wh in enumerate([(150, 60), (70, 190), (9, 7), (60, 40)])
)


@dataclass
class Formula:
    """The bias of one unpadded prompt, and where transformers' own model gets it.

    Attributes:
        keys, added: the positions of keys, and what is added to their scores.
        q_from: the first query that it is added for.
        layers, heads: those that have it; None: all.
        crossing: the cross-attention modules that see the image, by layer; empty: the decoder does.
    """

    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    added: Tensor = field(default_factory=lambda: torch.zeros(0))
    q_from: int = 0
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    crossing: list[nn.Module] = field(default_factory=list)

    def add(self, module: Any, scores: Tensor) -> None:
        """Add it to `(1, H, Q, K)` scores."""
        start = 0
        if self.crossing:
            numbers = [n for n, looking in enumerate(self.crossing) if looking is module]
        else:
            numbers, (count, seen) = [module.layer_idx], scores.shape[2:]
            start = max(self.q_from - (seen - count), 0)
        if numbers and (self.layers is None or numbers[0] in self.layers):
            for head in range(scores.shape[1]) if self.heads is None else self.heads:
                scores[0, head, start:, self.keys] += self.added


FORMULA = Formula()


def _each_head(chosen: Tensor, scores: Tensor) -> Tensor:
    """`(B, Q, n)` numbers of keys -> `(B, H, Q, n)`."""
    return chosen[:, None].expand(-1, scores.shape[1], -1, -1).long()


def _by_hand(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **more: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    if (chosen := more.get("indices")) is not None:  # Hy4-VL: each query sees some keys alone
        scores += torch.full_like(scores, -torch.inf).scatter(3, _each_head(chosen, scores), 0.0)
    FORMULA.add(module, scores)
    if (sinks := more.get("s_aux")) is not None:  # and may give its attention to nothing
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("test_by_hand", _by_hand)
AttentionMaskInterface.register("test_by_hand", eager_mask)
CONFIG = GenerationConfig(
    num_beams=1,
    max_new_tokens=STEPS,
    min_new_tokens=STEPS,
    do_sample=False,
    pad_token_id=0,
    return_dict_in_generate=True,
    output_logits=True,
)


def by_transformers(name: str, asked: Request) -> tuple[Any, Tensor]:
    """What transformers' own processor and model make of a request, the formula added if it has a
    highlight, and which tokens of its prompt are image tokens."""
    global FORMULA
    made, model = engine(name), stock(name)
    images = asked.images
    # PaliGemma's processor adds the start token and the newline itself, Kosmos-2's pipeline a frame
    raw = {"paligemma": "<image>{}", "kosmos2": "Question: {} Answer:"}
    text = raw[name].format(asked.prompt) if name in raw else made.chat.text(asked)
    options = {"add_special_tokens": False} if name in ("mllama", "molmo2") else {}
    arrays = made.processor(images=images, text=text, return_tensors="np", **options)
    inputs = {
        key: torch.as_tensor(np.asarray(value)) for key, value in arrays.items() if key != "labels"
    }
    is_image = inputs["input_ids"][0] == getattr(model.config, "image_token_id", -1)
    part = "qformer_config" if hasattr(model.config, "qformer_config") else "text_config"
    ends = ("crossattention.attention", "cross_attn", "x_attn")
    crossing = [module for path, module in model.named_modules() if path.endswith(ends)]
    # on SDPA, transformers makes Kosmos-2's resampler causal, which it is not
    stocks = attention = "eager" if name in ("kosmos2", "hy_v4_vl") else "sdpa"
    if asked.highlight is not None:
        attention, look = "test_by_hand", asked.highlight
        weights = made.token_mask(asked.image.size, look).astype(float)
        if look.graded:
            weights = made.tokens.weights(asked.image.size, look.region)
        added = torch.from_numpy(np.log(1 + weights.ravel() * (look.strength - 1))).float()
        lead = made.family.num_prefix_features(model.config)
        places = torch.arange(lead, lead + len(added))
        if not crossing:
            places = is_image.nonzero().ravel()[places]
        after = int(is_image.nonzero().max()) + 1 if look.scope == "text" and not crossing else 0
        FORMULA = Formula(places, added, after, look.layers, look.heads, crossing)
    more: dict[str, Any] = {}
    if not crossing:
        more["output_attentions"] = asked.highlight is not None
        more[CACHE] = full_length_cache(model.config)  # which forgets nothing
    model.set_attn_implementation({part: attention})
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=CONFIG, **more)
    model.set_attn_implementation({part: stocks})
    return output, is_image


def ours(name: str, asked: Request) -> list[Tensor]:
    with torch.inference_mode():
        prompts = prompts_of(engine(name), [asked])
        return engine(name).adapter.generate(prompts, generation_config=CONFIG).logits


def furthest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def last(name: str) -> tuple[int, ...]:
    return (engine(name).adapter.shape[0] - 1,)


@pytest.mark.parametrize("name", EVERY)
class TestFormula:
    @pytest.mark.parametrize("image", [WIDE, TALL, TINY], ids=["wide", "tall", "tiny"])
    def test_idle_is_stock(self, name: str, image: Any) -> None:
        expected, _ = by_transformers(name, Request(image, "which digit?"))
        found = ours(name, Request(image, "which digit?", Highlight(BOX, 1.0)))
        assert furthest(found, expected.logits) <= 1e-5

    @pytest.mark.parametrize("focus", ["all", "text", "some layers and heads", "soft", "lowered"])
    def test_bias(self, name: str, focus: str) -> None:
        """It is on the tokens of the box and on no others, and so are the weights that are read."""
        look = {
            "all": Highlight(BOX, 12.0),
            "text": Highlight(LOWER, 12.0, "text"),
            "some layers and heads": Highlight(BOX, 40.0, layers=last(name), heads=(0, 2)),
            "soft": Highlight(HEAT, 12.0, graded=True),
            "lowered": Highlight(LOWER, 0.05),
        }[focus]
        for image in (WIDE, TALL)[: 2 if focus == "all" else 1]:
            asked = Request(image, "which digit?", look)
            expected, is_image = by_transformers(name, asked)
            found = ours(name, asked)
            assert furthest(found, expected.logits) <= 3e-5
            plain = ours(name, replace(asked, highlight=None))
            assert float((found[0] - plain[0]).abs().max()) > 1e-3
            attention = engine(name).image_attentions([asked])[0]
            assert attention.shape[1] == engine(name).adapter.shape[1]
            if not FORMULA.crossing:
                layers = [of[0, :, -1, is_image] for of in expected.attentions[0] if of is not None]
                np.testing.assert_allclose(
                    attention.reshape(len(attention), *layers[0].shape),
                    torch.stack(layers).numpy(),
                    atol=2e-5,
                )

    def test_two_images(self, name: str) -> None:
        """The highlight falls on the first one alone."""
        asked = Request(WIDE, "which digit?").beside(SMALL)
        look = Highlight(EVERYTHING, 6.0)
        if not engine(name).takes_two:
            with pytest.warns(CofWarning, match="takes one image at a time"):
                shown = ours(name, replace(asked, highlight=look))
            assert furthest(shown, ours(name, Request(SMALL, "which digit?"))) <= 1e-5
            return
        for request in (asked, replace(asked, highlight=look)):
            expected, is_image = by_transformers(name, request)
            assert furthest(ours(name, request), expected.logits) <= 3e-5
        assert len(FORMULA.keys) < int(is_image.sum())
        alone = Request(WIDE, "which digit?")
        others = (alone, alone.beside(TALL), request)
        for other in others:
            assert furthest(ours(name, asked)[:1], ours(name, other)[:1]) > 1e-4

    @pytest.mark.parametrize("scope", ["all", "text"])
    def test_contrast(self, name: str, scope: Any) -> None:
        """Branch by branch, each forced along the same tokens."""
        made, focus = engine(name), Contrast(6.0, scope, guidance=3.0)
        asked = focus.apply(Request(SMALL, "which digit?"), BOX)
        (reply,) = made.generate([asked], Decoding(STEPS))

        def along(strength: float) -> Tensor:
            forced = LogitsProcessorList([Forced([reply.token_ids], 0)])
            branch = replace(asked, highlight=Highlight(BOX, strength, scope))
            config = made._generation_config(Decoding(len(reply.token_ids)))
            with torch.inference_mode():
                output = made.adapter.generate(
                    prompts_of(made, [branch]), generation_config=config, logits_processor=forced
                )
            return torch.cat(output.logits).float().log_softmax(-1)

        looking, other = along(6.0), along(1 / 6.0)
        led = other + 3.0 * (looking - other)
        steps = range(len(reply.token_ids))
        assert (led[steps, reply.token_ids] > led.max(-1).values - 1e-4).all()
        own = looking[steps, reply.token_ids]
        assert reply.logprobs == pytest.approx(own.tolist(), abs=1e-4)


@dataclass
class Heard:
    """What an `on_text` is called with."""

    pieces: list[tuple[int, str]] = field(default_factory=list)

    def __call__(self, place: int, piece: str) -> None:
        assert piece
        self.pieces.append((place, piece))

    def of(self, place: int) -> list[str]:
        return [piece for number, piece in self.pieces if number == place]

    def check(self, replies: Sequence[Any]) -> None:
        """The pieces of each reply, an answer or a generation, joined are its text."""
        assert ["".join(self.of(n)) for n in range(len(replies))] == [r.text for r in replies]


def text_rows(name: str) -> list[Request]:
    """Rows whose own pass leaves the prefixes of their images."""
    return [
        Request(WIDE, "which digit?", Highlight(BOX, 8.0, "text")),
        Request(TALL, "hi"),
        Request(TINY, "a longer question about it", Highlight(EVERYTHING, 0.2, "text")),
    ]


def mixed_rows(name: str) -> list[Request]:
    """Rows that differ in everything."""
    return [
        text_rows(name)[0],
        Request(TALL, "and this one?", Highlight(LOWER, 30.0, layers=last(name), heads=(0, 2))),
        Request(SMALL, "which?", Highlight(HEAT, 12.0, graded=True)),
        Request(SMALL, "which?", Highlight(BOX, 1.0)),
        Request(WIDE, "hi").beside(SMALL) if engine(name).takes_two else Request(WIDE, "hi"),
    ]


def contrast_rows(name: str) -> list[Request]:
    plain = text_rows(name)[1]
    focuses = [Contrast(6.0, guidance=3.0), Contrast(0.5, "text", guidance=1.7), Attention(6.0)]
    return [plain, *(focus.apply(plain, BOX) for focus in focuses)]


ROWS = {"text": text_rows, "mixed": mixed_rows, "contrast": contrast_rows}
DECODINGS = {
    "greedy": Decoding(STEPS),
    "beams": Decoding(STEPS, num_beams=2),
    "sampled": Decoding(STEPS, temperature=1.3, top_p=0.9, seed=3),
    "box": Decoding(),
}
RUNS = [
    *(("text", "greedy"), ("text", "box")),
    *(("mixed", "greedy"), ("mixed", "beams"), ("mixed", "sampled"), ("mixed", "box")),
    ("contrast", "greedy"),
]


def encoded(made: TransformersEngine, rows: list[Request]) -> list[Request]:
    """The same rows about images that were encoded before."""
    images = [row.image for row in rows]
    known = made.encode(images, prefill=True)
    if made.family.prefill:
        assert not any(image.prefix for image in known)
    return [replace(row, image=image) for row, image in zip(rows, known, strict=True)]


@pytest.mark.parametrize("name", EVERY)
class TestRuns:
    def test_is_an_engine(self, name: str) -> None:
        for protocol in (Engine, LengthChecker, AttentionReader, StateReader, ReplyScorer):
            assert isinstance(engine(name), protocol)
        assert engine(name).generate([], DECODINGS["greedy"]) == []

    @pytest.mark.parametrize(("kind", "how"), RUNS, ids=lambda word: word)
    def test_the_replies_are_the_same(self, name: str, kind: str, how: str) -> None:
        """In one batch, one by one and in parts; with images new, encoded and known; token by token
        and at once."""
        made, decoding, rows = engine(name), DECODINGS[how], ROWS[kind](name)
        if how == "box":
            template = made.dialect.box_template
            if template is None or not made.adapter.reuses_states:
                pytest.skip("boxes are written freely")
            decoding = Decoding(box_template=template)
        expected = made.generate(rows, decoding)
        kept = encoded(made, rows)
        for again in (rows, kept, kept):  # the first time fills the prefixes
            heard = Heard()
            replies = made.generate(again, decoding, heard)
            assert_same(replies, expected)
            heard.check(replies)
        if kind != "text" and how != "sampled":
            assert_same([made.generate([row], decoding)[0] for row in rows], expected)
        if kind == "text" and how == "greedy":
            small, heard = copy.copy(made), Heard()
            small.max_batch_tokens = 1
            assert_same(small.generate(rows, decoding, heard), expected)
            heard.check(expected)
            order = [place for place, _ in heard.pieces]
            assert sorted(order, key=order.index) == order, "the rows were not run apart"

    def test_states_are_read_alike(self, name: str) -> None:
        made, rows = engine(name), [replace(row, highlight=None) for row in text_rows(name)]
        rows[0] = replace(rows[0], highlight=Highlight(BOX, 5.0))
        reads: list[Any] = [made.image_attentions]
        if made.family.adapter == "decoder":
            rows = [replace(row, prompt=f"{row.prompt} bus?") for row in rows]
            reads += [lambda asked: made.phrase_similarities(asked, ["bus"] * len(asked))]
        for read in reads:
            alone = [read([row])[0] for row in rows]
            kept = encoded(made, rows)
            for asked in (rows, kept, kept):
                for a, b in zip(read(asked), alone, strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-4)

    def test_replies_are_scored_as_decoding_says(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, rows = engine(name), text_rows(name)
        given = made.generate(rows, Decoding(STEPS))
        written = [[*reply.token_ids, 2] for reply in given]
        monkeypatch.setattr(
            "cof.engines.transformers.generation.tokenize_replies", lambda *_, **__: written
        )
        for again in (rows, encoded(made, rows)):
            for reply, as_decoded in zip(made.score_replies(again, "abc"), given, strict=True):
                assert reply.token_ids == (*as_decoded.token_ids, 2)
                assert reply.logprobs[:-1] == pytest.approx(as_decoded.logprobs, abs=5e-5)

    def test_what_is_too_long_is_refused_before_the_model_runs(self, name: str) -> None:
        made, asked = engine(name), text_rows(name)[0]
        if made.context_length is None:
            assert name == "blip-2 with T5", "positions that are distances have no limit"
            return
        ((_, batch),) = made.plan([asked], [1])
        most = made.context_length - batch.lengths[0]
        made.check_lengths([asked], Decoding(most))
        handle = nn.modules.module.register_module_forward_pre_hook(
            lambda *_: pytest.fail("it ran")
        )
        try:
            with pytest.raises(CofError, match=f"and {most + 1:,} for the answer, where"):
                made.generate([asked], Decoding(most + 1))
            long = replace(asked, prompt="which digit is it? " * 5000)
            with pytest.raises(CofError, match=r"Question 2 of 3 \('which digit"):
                made.generate([asked, long, asked], Decoding(STEPS))
        finally:
            handle.remove()


LOOKING = [name for name in GROUNDERS if name != "detector"]  # which needs a model of its own


@pytest.mark.parametrize("grounder", LOOKING)
@pytest.mark.parametrize("name", EVERY)
def test_the_pipeline_is_generate(name: str, grounder: str) -> None:
    """Every family with every grounder and every focus, and every pair of these in some family."""
    turn = EVERY.index(name) + LOOKING.index(grounder)
    focus = list(FOCUSES)[turn % len(FOCUSES)]
    options = {"grounding_max_new_tokens": STEPS} if grounder == "prompt" else {}
    made, settings = engine(name), Settings(grounder, focus, **options)
    boxes = list(BOX.boxes) if grounder == "given" else None
    asked = [Query(WIDE, "is the red bus here?", boxes=boxes), Query(TALL, "a digit?", boxes=boxes)]
    cof, short = CoF(made, settings), Decoding(STEPS)
    heard = Heard()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CofWarning)
        if grounder in ("relevance", "logits") and made.family.adapter != "decoder":
            if not settings.changes_nothing:
                with pytest.raises(CofError, match="not among the decoder's tokens"):
                    cof.batch(asked, decoding=short)
            return
        answers = cof.batch(asked, decoding=short, on_text=heard)
        heard.check(answers)
        plain = [Request(query.image, query.question) for query in asked]
        looking = [
            settings.focus.apply(request, answer.region) if answer.region else request
            for request, answer in zip(plain, answers, strict=True)
        ]
        direct = made.generate(looking, short)
        assert [answer.text for answer in answers] == [reply.text for reply in direct]
        assert answers[0].plain() == made.generate(plain, short)[0].text
        if grounder in ("given", "whole") and not settings.changes_nothing:
            assert all(answer.found for answer in answers)
