"""Whether a model looks where it is told: our claims, checked on the user's own model and machine.

Each check computes something in two ways that may differ by rounding alone. How much that is, on
this model, device and dtype, is measured first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from cof.answer import Answer
from cof.attention.registry import CROSS_ATTENTION, DECODER, EAGER
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.probing import changed_tokens, use_attention
from cof.errors import CofError, CofWarning
from cof.geometry.regions import Region, coverage_image
from cof.query import Query
from cof.settings import Settings
from cof.types import Decoding, Highlight, Request

MARGIN = 8  # by how many times the rounding that was measured two ways may differ
BOX, CORNER = (Region(boxes=(box,)) for box in ((0.25, 0.25, 0.75, 0.75), (0.0, 0.6, 0.4, 0.95)))
STRENGTH = math.exp(4)  # its logarithm is exact in every dtype
SIZES = ((448, 224), (224, 448))  # width, height; most models need not resize them


@dataclass(frozen=True)
class Check:
    """What was seen, and how far two ways are `apart` where so much is `allowed`. Without these
    the check does not apply, and `note` says why."""

    note: str
    apart: float | None = None
    allowed: float | None = None

    @property
    def passed(self) -> bool | None:
        """None: it does not apply."""
        return None if self.apart is None or self.allowed is None else self.apart <= self.allowed


OUTSIDE = Check("seen of a model of transformers only: run cof verify MODEL")


class Trial:
    """Questions, and what a model answers.

    Attributes:
        cof: the pipeline that is asked, here or elsewhere.
        own: its engine, if it is that of transformers.
        rows: the questions, by name; `looking` has a region, `idle` has it with strength 1.
        alone: the answer to each alone; to `plain` also by transformers' own attention.
        rounding: how far log-probabilities are from those of the same sums in another shape.
        allowed: how far they may be from those computed in another way.
    """

    def __init__(
        self, cof: Any, dtype: torch.dtype = torch.bfloat16, layers: Iterable[int] = ()
    ) -> None:
        """`dtype`: the model's (servers do not tell theirs); `layers`: biased alone, in rows of
        their own."""
        self.cof, engine = cof, getattr(cof, "engine", None)
        self.own = engine if isinstance(engine, TransformersEngine) else None
        noise = [np.random.default_rng(n).integers(0, 256, (6, 6, 3), np.uint8) for n in range(2)]
        wide, tall = (Image.fromarray(n).resize(wh) for n, wh in zip(noise, SIZES, strict=True))
        look = Settings(strength=STRENGTH, expand=1.0)
        plain = Query(wide, "What is in the middle?", settings=Settings(focus="none"))
        looking = replace(plain, region=BOX, settings=look)
        self.rows: dict[str, Any] = {
            "plain": plain,
            "looking": looking,
            "other": replace(looking, image=tall, question="Which?", strength=1 / STRENGTH),
            "idle": replace(looking, strength=1.0),
            "text": replace(looking, settings=look.changed(scope="text")),
        } | {f"layer {n}": replace(looking, settings=look.changed(layers=(n,))) for n in layers}
        self.alone = {name: self.tell([row])[0] for name, row in self.rows.items()}
        apart = [torch.finfo(dtype).eps]
        for name, image in (("plain", wide), ("looking", wide), ("other", tall)):
            copies = [replace(self.rows[name], image=image.copy()) for _ in range(3)]
            apart.append(self.apart(self.tell(copies), [name] * 3))  # nothing is reused
        if self.own:
            model, part = self.own.model, self.own.adapter.part
            stock = "eager" if getattr(model.config, part).model_type in EAGER else "sdpa"
            for name, kind in (("stock", stock), ("eager", "eager")):
                with use_attention(model, part, kind):
                    self.alone[name] = self.tell([plain])[0]
            apart.append(self.apart([self.alone["eager"]], ["stock"]))
        self.rounding = float(np.max(apart))
        self.allowed = MARGIN * self.rounding

    def tell(self, rows: Iterable[Query], on_text: Any = None) -> list[Answer]:
        """The answers to some questions together."""
        try:
            return list(self.cof.batch(rows, decoding=Decoding(max_new_tokens=4), on_text=on_text))
        except CofError:
            raise
        except Exception as error:
            raise CofError(f"The model fails to answer: {type(error).__name__}: {error}") from error

    def apart(self, answers: Sequence[Answer], names: Iterable[str]) -> float:
        """How far answers are from those to some questions alone."""
        return furthest(answers, [self.alone[name] for name in names])

    def same(self, answers: Sequence[Answer], names: Iterable[str]) -> Check:
        return Check(f"{len(answers)} answers", self.apart(answers, names), self.allowed)

    def idle(self) -> Check:
        return self.same([self.alone["idle"]], ["stock" if self.own else "plain"])

    def batch(self) -> Check:
        return self.same(self.tell(self.rows.values()), self.rows)

    def effect(self) -> Check:
        moved = self.apart([self.alone["looking"]], ["plain"])
        return Check(f"by {moved:.2g}, and rounding by less", max(self.rounding, 1e-6), moved)

    def asked(self) -> Check:
        """The boxes and settings that the answers tell of."""
        told = {(of.boxes, of.settings.option("scope")) for of in self.alone.values()}
        missing = {(BOX.boxes, scope) for scope in ("all", "text")} - told
        return Check(f"{len(self.alone)} answers", len(missing), 0)

    def cache(self) -> Check:
        """Twice, about an image that was encoded before."""
        known = self.cof.encode(self.rows["plain"].image)
        names = ["plain", "looking", "text"] * 2
        answers = [self.tell([replace(self.rows[name], image=known)])[0] for name in names]
        if self.own and not known.prefix:
            return Check("none is kept: what is made of an image depends on what is asked")
        return self.same(answers, names)

    def stream(self) -> Check:
        pieces: list[str] = []
        (answer,) = self.tell([self.rows["looking"]], lambda _, piece: pieces.append(piece))
        texts = {"".join(pieces), answer.text, self.alone["looking"].text}
        return Check(repr(answer.text), len(texts) - 1, 0)

    def template(self) -> Check:
        """A box in the model's own format, whose numbers the model chooses."""
        if not hasattr(self.cof, "engine"):
            return OUTSIDE
        row = replace(self.rows["plain"], settings=Settings(boxes="template"))
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", CofWarning)
            (answer,) = self.tell([row])
        freely = [str(note.message) for note in notes if "template" in str(note.message)]
        if freely:
            return Check(freely[0])
        return Check(repr(answer.grounding_text), float(not answer.found), 0)

    def places(self) -> Check:
        """Change the pixels inside a box, and those around it."""
        if (engine := self.own) is None:
            return OUTSIDE
        tokens, marked, wrong = engine.tokens, 0, 0
        for wh, region in product(SIZES, (BOX, CORNER)):
            around = (np.asarray(coverage_image(region, wh)) == 0).astype(np.float32)
            by_box, by_rest = (
                changed_tokens(tokens, engine.adapter, wh, part)
                for part in (region, Region(mask=around))
            )
            mask = engine.token_mask(wh, Highlight(region, STRENGTH)).ravel()
            missed = ~mask & by_box & ~by_rest & tokens.visibility(wh).visible.ravel()
            marked, wrong = marked + int(mask.sum()), wrong + int((missed | mask & ~by_box).sum())
        return Check(f"{marked} tokens in 4 boxes", wrong, 0)

    def formula(self) -> Check:
        """Each layer's attention, and softmax(A + log(lambda) M) V written out."""
        if (engine := self.own) is None:
            return OUTSIDE
        kinds = getattr(engine.model.config.get_text_config(), "layer_types", None) or ()
        count, image = engine.adapter.shape[0], self.rows["plain"].image
        layers = [n for n in range(count) if kinds[n : n + 1] != ["linear_attention"]]
        looks = (Highlight(BOX, 1.0), Highlight(BOX, STRENGTH), Highlight(BOX, STRENGTH, "text"))
        rounding, *seen = (beside_formula(engine, image, look)[layers] for look in looks)
        allowed, error = MARGIN * np.maximum(rounding, 1e-6), np.max(seen, 0)
        worst = int((error / allowed).argmax())
        note = f"worst in layer {layers[worst]} of {count}"
        return Check(note, float(error[worst]), float(allowed[worst]))


def beside_formula(
    engine: TransformersEngine, image: Image.Image, look: Highlight
) -> NDArray[np.float64]:
    """How far each layer's attention is from the paper's formula written out, at 64 queries of a
    prompt or more; NaN where it is not ours."""
    asked, adapter = Request(image, "Which?", look), engine.adapter
    mask = torch.from_numpy(engine.token_mask(image.size, look).ravel())
    keys, start, name = torch.arange(len(mask)) + adapter.first_feature, 0, CROSS_ATTENTION
    if not adapter.looking:
        ((_, batch),) = engine.plan([asked], [1])
        is_image = batch.inputs["input_ids"][0] == engine.model.config.image_token_id
        places, name = is_image.nonzero().ravel(), DECODER
        keys, start = places[keys], int(places[-1]) + 1 if look.scope == "text" else 0
    ours, seen = AttentionInterface()[name], np.full(adapter.shape[0], np.nan)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, used: Any, **more: Any
    ) -> Any:
        output = ours(module, query, key, value, used, **more)
        layer: Any = [each is module for each in adapter.looking] or [module.layer_idx]
        if adapter.looking and not any(layer):
            return output
        bias = torch.zeros(query.shape[2], key.shape[2], device=query.device)
        bias[start:, keys] = mask.to(bias) * math.log(look.strength)
        if (chosen := more.get("indices")) is not None:  # each query sees these keys alone
            used = used & torch.zeros_like(used).scatter(3, chosen[:, None].long(), value=True)
        if used is None and not adapter.looking:
            used = torch.ones_like(bias).tril().bool()[None, None]
        if used is None:
            scores = bias[None, None]
        elif used.dtype == torch.bool:
            scores = bias.masked_fill(~used, -math.inf)
        else:
            scores = bias + used.clamp(max=0)  # its own bias is above 0
        if (sinks := more.get("s_aux")) is not None:  # one more key, whose value is 0
            key, value = (pad(of, (0, 0, 0, 1)) for of in (key, value))
            sink = sinks[None, :, None, None].expand(1, -1, len(bias), 1)
            scores = torch.cat([scores.expand(-1, len(sinks), -1, -1), sink], -1)
        some = slice(None, None, 1 + len(bias) // 128)
        states = (query[:, :, some].float(), key.float(), value.float(), scores[:, :, some])
        how: Any = {"scale": more.get("scaling"), "enable_gqa": True}
        apart = output[0].transpose(1, 2)[:, :, some] - scaled_dot_product_attention(*states, **how)
        seen[layer] = float(apart.abs().max())
        return output

    AttentionInterface.register(name, attend)
    try:
        engine.generate([asked], Decoding(max_new_tokens=1))
    finally:
        AttentionInterface.register(name, ours)
    return seen


def furthest(some: Sequence[Answer], others: Sequence[Answer]) -> float:
    """The largest difference of log-probabilities, in each answer up to a tie of two tokens; of
    answers from elsewhere only their mean is known."""
    apart = [0.0]
    for pair in zip(some, others, strict=True):
        tokens = [each.token_ids for each in pair]
        sure = [each.logprobs or [math.log(each.answer_confidence or 1)] for each in pair]
        for token, twin, a, b in zip_longest(*tokens, *sure, fillvalue=0.0):
            apart.append(abs(a - b))
            if token != twin:
                break
    return float(np.max(apart))  # NaN where one is no number


CHECKS: dict[str, Callable[[Trial], Check]] = {
    "a region is looked at as asked": Trial.asked,
    "a region changes the answer": Trial.effect,
    "strength 1 is the plain model": Trial.idle,
    "each layer's bias is the formula's": Trial.formula,
    "a box marks the tokens of its pixels": Trial.places,
    "the prefix cache changes nothing": Trial.cache,
    "a batch is its rows one by one": Trial.batch,
    "a stream is the whole answer": Trial.stream,
    "a box by template is readable": Trial.template,
}


def verify(trial: Trial, reference: Trial | None = None) -> dict[str, Check]:
    """All checks; one that raises has failed, and does not end the others.

    Args:
        reference: of the same model on transformers, for vLLM.
    """
    checks, alone = dict(CHECKS), trial.alone
    if reference is not None:
        trial.allowed = max(trial.allowed, reference.allowed)
        checks["answers are transformers'"] = lambda _: reference.same([*alone.values()], alone)
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check(trial)
        except Exception as error:
            found[name] = Check(f"{type(error).__name__}: {error}", math.inf, 0)
    return found
