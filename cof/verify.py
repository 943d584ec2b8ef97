"""Whether a model looks where it is told: our claims, checked on the user's own model and machine.

Each check computes something in two ways that may differ by rounding alone. How much that is, on
this model, device and dtype, is measured first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from cof.answer import Answer
from cof.attention.registry import CROSS_ATTENTION, DECODER
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.probing import changed_tokens, use_attention
from cof.geometry.boxes import Frame
from cof.geometry.regions import Region, coverage_image
from cof.prompting.box_parsing import parse_boxes
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


class Trial:
    """Questions, and what a model answers.

    Attributes:
        cof: the pipeline that is asked, here or elsewhere.
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
        self.cof, self.engine = cof, getattr(cof, "engine", None)
        noise = [np.random.default_rng(n).integers(0, 256, (6, 6, 3), np.uint8) for n in range(2)]
        wide, tall = (Image.fromarray(n).resize(wh) for n, wh in zip(noise, SIZES, strict=True))
        look = Settings(strength=STRENGTH, expand=1.0)
        plain = Query(wide, "What is in the middle?", settings=Settings(focus="none"))
        looking = replace(plain, region=BOX, settings=look)
        self.rows: dict[str, Any] = {
            "plain": plain,
            "idle": replace(looking, strength=1.0),
            "looking": looking,
            "text": replace(looking, settings=look.changed(scope="text")),
            "other": replace(looking, image=tall, question="Which?", strength=1 / STRENGTH),
        }
        for layer in layers:
            alone = replace(looking, settings=look.changed(layers=(layer,)))
            self.rows[f"layer {layer}"] = alone
        self.alone = {name: self.tell([row])[0] for name, row in self.rows.items()}
        self.rounding = {}
        for name, row in self.rows.items():
            copies = [replace(row, image=row.image.copy()) for _ in range(3)]  # nothing is reused
            self.rounding[name] = furthest(self.tell(copies), [self.alone[name]] * 3)
        if isinstance(self.engine, TransformersEngine):
            part = self.engine.adapter.part
            for name in ("sdpa", "eager"):
                with use_attention(self.engine.model, part, name):
                    self.alone[name] = self.tell([plain])[0]
            self.rounding["order"] = furthest([self.alone["eager"]], [self.alone["sdpa"]])
        self.allowed = MARGIN * float(np.max([*self.rounding.values(), torch.finfo(dtype).eps]))

    def tell(self, rows: Iterable[Query], on_text: Any = None) -> list[Answer]:
        """The answers to some questions together."""
        decoding = Decoding(max_new_tokens=4)
        return list(self.cof.batch(rows, decoding=decoding, on_text=on_text))

    def same(self, answers: Sequence[Answer], names: Iterable[str]) -> Check:
        """Whether answers are those to some questions alone."""
        apart = furthest(answers, [self.alone[name] for name in names])
        return Check(f"{len(answers)} answers", apart, self.allowed)

    def effect(self) -> Check:
        moved = furthest([self.alone["looking"]], [self.alone["plain"]])
        least = max(self.rounding["looking"], 1e-6)
        return Check(f"by {moved:.2g}, and rounding by less", least, moved)

    def asked(self) -> Check:
        """The boxes and settings that the answers tell of."""
        told = [(of.boxes, of.settings.option("scope")) for of in self.alone.values() if of.boxes]
        wrong = (BOX.boxes, "all") not in told or (BOX.boxes, "text") not in told
        return Check(f"{len(told)} answers", float(wrong), 0.0)

    def cache(self) -> Check:
        """Twice, about an image that was encoded before."""
        known = self.cof.encode(self.rows["plain"].image)
        names = ["plain", "looking", "text"] * 2
        answers = [self.tell([replace(self.rows[name], image=known)])[0] for name in names]
        if isinstance(self.engine, TransformersEngine) and not known.prefix:
            return Check("none is kept: what is made of an image depends on what is asked")
        return self.same(answers, names)

    def stream(self) -> Check:
        pieces: list[str] = []
        (answer,) = self.tell([self.rows["looking"]], lambda _, piece: pieces.append(piece))
        texts = {"".join(pieces), answer.text, self.alone["looking"].text}
        return Check(repr(answer.text), float(len(texts) - 1), 0.0)

    def template(self, engine: Any) -> Check:
        """A box in the model's own format, whose numbers the model chooses."""
        dialect, compiled = engine.dialect, getattr(engine, "_compile", None) or engine._compiled
        if dialect.box_template is None or not compiled(dialect.box_template):
            return Check("boxes are written freely: no format is known, or its tokens do not suit")
        asked = Request(self.rows["plain"].image, dialect.grounding_prompt("What is red?"))
        (reply,) = engine.generate([asked], Decoding(box_template=dialect.box_template))
        frame = Frame.of_image(float(dialect.box_template.numbers[-1]))  # no box leaves it
        found = parse_boxes(reply.text, frame, units=dialect.units, order=dialect.order)
        return Check(repr(reply.text), float(len(found.boxes) != 1), 0.0)

    def places(self, engine: TransformersEngine) -> Check:
        """Change the pixels inside a box, and those around it."""
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
        return Check(f"{marked} tokens in 4 boxes", float(wrong), 0.0)

    def formula(self, engine: TransformersEngine) -> Check:
        """Each layer's attention, and softmax(A + log(lambda) M) V written out."""
        kinds = getattr(engine.model.config.get_text_config(), "layer_types", None) or ()
        count, image = engine.adapter.shape[0], self.rows["plain"].image
        layers = [n for n in range(count) if kinds[n : n + 1] != ["linear_attention"]]
        looks = (Highlight(BOX, 1.0), Highlight(BOX, STRENGTH), Highlight(BOX, STRENGTH, "text"))
        seen = [beside_formula(engine, image, look) for look in looks]
        table = np.array([[each.get(layer, [math.inf, 0.0]) for layer in layers] for each in seen])
        allowed = MARGIN * np.maximum(table[0, :, 0], 1e-6)
        error, moved = table[1:, :, 0].max(0), table[1:, :, 1].min(0)
        error = np.where(moved > allowed, error, math.inf)  # no bias there
        worst = int((error / allowed).argmax())
        three = ", ".join(f"{layers[at]}: {error[at]:.1g}" for at in (0, len(layers) // 2, -1))
        note = f"layers {three}; the bias moves each by {moved.min():.1g} or more"
        return Check(note, float(error[worst]), float(allowed[worst]))


def beside_formula(
    engine: TransformersEngine, image: Image.Image, look: Highlight
) -> dict[int, list[float]]:
    """For each layer how far its attention is from the paper's formula written out, and how far the
    bias, of 0 or more, moves it; at 64 queries of a prompt or more."""
    asked, adapter, seen = Request(image, "Which?", look), engine.adapter, dict[int, list[float]]()
    mask = torch.from_numpy(engine.token_mask(image.size, look).ravel())
    keys, start, name = torch.arange(len(mask)) + adapter.first_feature, 0, CROSS_ATTENTION
    if not adapter.looking:
        ((_, batch),) = engine.plan([asked], [1])
        is_image = batch.inputs["input_ids"][0] == engine.model.config.image_token_id
        places, name = is_image.nonzero().ravel(), DECODER
        keys, start = places[keys], int(places[-1]) + 1 if look.scope == "text" else 0
    ours = AttentionInterface()[name]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, used: Any, **more: Any
    ) -> Any:
        output = ours(module, query, key, value, used, **more)
        numbers = [number for number, each in enumerate(adapter.looking) if each is module]
        for number in numbers if adapter.looking else [module.layer_idx]:
            count, shared = query.shape[2], query.shape[1] // key.shape[1]
            some = slice(None, None, 1 + count // 128)
            scores = query[:, :, some].float() @ repeat_kv(key, shared).float().mT
            scores *= more.get("scaling") or query.shape[-1] ** -0.5
            if used is None and not adapter.looking:
                used = torch.ones(1, 1, count, count, device=query.device).tril().bool()
            if used is not None and used.dtype == torch.bool:
                scores = scores.masked_fill(~used[:, :, some], -math.inf)
            elif used is not None:
                scores = scores + used[:, :, some].clamp(max=0)  # without the bias
            added = torch.zeros(count, key.shape[2], device=query.device)
            added[start:, keys] = mask.to(added) * math.log(look.strength)
            plain, expected = (
                each.softmax(-1) @ repeat_kv(value, shared).float()
                for each in (scores, scores + added[some])
            )
            found = output[0].transpose(1, 2)[:, :, some]
            seen[number] = [float((of - expected).abs().max()) for of in (found, plain)]
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
        one, other = (
            [*zip(each.token_ids, each.logprobs, strict=True)]
            or [(0, math.log(sure)) for sure in [each.answer_confidence] if sure]
            for each in pair
        )
        for (token, a), (twin, b) in zip_longest(one, other, fillvalue=(None, 0.0)):
            apart.append(abs(a - b))
            if token != twin:
                break
    return float(np.max(apart))  # NaN where one is no number


def verify(trial: Trial, reference: Trial | None = None) -> dict[str, Check]:
    """All checks; one that raises has failed, and does not end the others.

    Args:
        reference: of the same model on transformers, for vLLM.
    """
    alone, outside = (
        trial.alone,
        Check("seen of a model of transformers only: run cof verify MODEL"),
    )
    own = trial.engine if isinstance(trial.engine, TransformersEngine) else None
    stock = "sdpa" if own else "plain"
    checks: dict[str, Callable[[], Check]] = {
        "a region is looked at as asked": trial.asked,
        "a region changes the answer": trial.effect,
        "strength 1 is the plain model": lambda: trial.same([alone["idle"]], [stock]),
        "each layer's bias is the formula's": lambda: trial.formula(own) if own else outside,
        "a box marks the tokens of its pixels": lambda: trial.places(own) if own else outside,
        "the prefix cache changes nothing": trial.cache,
        "a batch is its rows one by one": lambda: trial.same(
            trial.tell(trial.rows.values()), trial.rows
        ),
        "a stream is the whole answer": trial.stream,
        "a box by template is readable": lambda: (
            trial.template(trial.engine) if trial.engine else outside
        ),
    }
    if reference is not None:
        trial.allowed = max(trial.allowed, reference.allowed)
        checks["answers are transformers'"] = lambda: reference.same([*alone.values()], alone)
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:
            found[name] = Check(f"{type(error).__name__}: {error}", math.inf, 0.0)
    return found
