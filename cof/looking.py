"""The idea alone: make a model that you have loaded look at boxes while you call it yourself."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cof.errors import CofError
from cof.images import load_image
from cof.query import Query, own_region
from cof.types import Highlight, Scope

if TYPE_CHECKING:
    from torch import Tensor

    from cof.engines.transformers.adapter import Adapter
    from cof.engines.transformers.prompt_builder import Row
    from cof.families.image_tokens import ImageTokens

_BEFORE: WeakKeyDictionary[Any, tuple[dict[str, str], list[int]]] = WeakKeyDictionary()
"""Of each model that is looked with: its attention before, and how many are inside."""

_LOCK = threading.Lock()


@contextmanager
def look(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    images: Sequence[Any],
    boxes: Sequence[Any] | None = None,
    *,
    polygon: Sequence[Any] | None = None,
    mask: Any = None,
    strength: float | Sequence[float] = 2.0,
    image: int | Sequence[int] = -1,
    scope: Scope = "all",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Iterator[None]:
    """Add log(strength) to the attention scores of the image tokens in some boxes, in every pass of
    `model` inside the `with`, in this thread (paper, section II-C).

        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with cof.look(model, processor, inputs, images, boxes=[(0.6, 0.1, 0.8, 0.3)]):
            model.generate(**inputs)

    No weights change, and all is as before when it ends, also after an error.

    Args:
        model: any supported model of transformers, loaded by you: also one wrapped by PEFT,
            quantised, or split over devices. In a pipeline it is `pipe.model`.
        processor: its processor, with which `inputs` were made.
        inputs: what the model gets, of B rows; only `input_ids` `(B, L)` are read.
        images: the PIL images that `inputs` were made of, in their order, of all rows.
        boxes: `(x1, y1, x2, y2)` in 0..1 of the image; with B > 1 a list or None for each row.
        polygon: instead, the points `(x, y)` of a polygon, in 0..1; with B > 1 one for each row.
        mask: instead, an `(H, W)` mask over the image; with B > 1 one for each row.
        strength: lambda > 0, of all rows or of each.
        image: its number in the row, from 0 or, below 0, from the end; of all rows or of each.
        scope, layers, heads: see `cof.types.Highlight`.

    Raises:
        CofError: the model cannot be attached, the inputs do not belong to the images, a region
            cannot be used, or the model did not run inside.
    """
    from cof.attention.registry import NeverRead, reweight
    from cof.engines.transformers.prompt_builder import make_bias

    ids = inputs["input_ids"].cpu()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    where = {"boxes": boxes, "polygon": polygon, "mask": mask, "strength": strength, "image": image}
    with _attached(base, processor) as (adapter, tokens):
        shown = _split(adapter, tokens, ids, [load_image(each).size for each in images])
        rows = []
        for number, own in enumerate(shown):
            asked = _of_row(where, number, len(ids))
            place = asked.pop("image")
            if not -len(own) <= place < len(own):
                raise CofError(f"Row {number} shows {len(own)} images, but no image {place}.")
            highlight = _highlight(own[place].image_wh, scope, layers, heads, **asked)
            rows.append(replace(own[place], highlight=highlight))
        try:
            with reweight(make_bias(adapter, tokens, rows, {"input_ids": ids})):
                yield
        except NeverRead:
            raise CofError(
                "The model did not run inside the with, in its thread, so nothing looked: call it "
                "there."
            ) from None


def look_args(
    model: str,
    images: Sequence[Any],
    boxes: Sequence[Any] | None = None,
    *,
    polygon: Sequence[Any] | None = None,
    mask: Any = None,
    strength: float = 2.0,
    image: int = -1,
    scope: Scope = "all",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> dict[str, str]:
    """What `look` does, for one request to vLLM: `SamplingParams(extra_args=...)`, or `vllm_xargs`
    in the body of an HTTP request. vLLM runs with our worker: `cof serve --engine vllm`, or
    `LLM(..., worker_cls="cof.engines.vllm.worker.BiasedWorker")`.

    Args:
        model: the folder or hub id of what vLLM runs, with the checkpoint's own image processor.
        images: all images of the request, in their order.
        boxes, polygon, mask, strength, image, scope, layers, heads: as of `look`, for one row.

    Raises:
        CofError: the model is not proven on vLLM, or the region cannot be used.
    """
    from cof.engines.vllm.engine import highlight_args, image_tokens

    size = load_image(images[image]).size
    where = {"boxes": boxes, "polygon": polygon, "mask": mask, "strength": strength}
    highlight = _highlight(size, scope, layers, heads, **where)
    if highlight is None:
        raise CofError("Say where to look: boxes, a polygon or a mask.")
    return highlight_args(image_tokens(str(model)), size, highlight, range(len(images))[image])


def _highlight(
    image_wh: tuple[int, int],
    scope: Scope,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    **where: Any,
) -> Highlight | None:
    """The highlight of boxes, a polygon or a mask; None: there is none of these."""
    region = own_region(Query(**where), image_wh)
    in_layers, in_heads = (each if each is None else tuple(each) for each in (layers, heads))
    strength = where["strength"]
    return None if region is None else Highlight(region, strength, scope, in_layers, in_heads)


def _of_row(given: Mapping[str, Any], row: int, count: int) -> dict[str, Any]:
    """The arguments of one of `count` rows.

    Raises:
        CofError: there are more or fewer than rows.
    """
    own = {}
    for name, value in given.items():
        shared = value is None or isinstance(value, (int, float))
        if not shared and count > 1 and len(value) != count:
            raise CofError(f"The inputs have {count} rows, and {name} {len(value)}: give one each.")
        own[name] = value if shared or count == 1 else value[row]
    return own


def _split(
    adapter: Adapter, tokens: ImageTokens, ids: Tensor, sizes: Sequence[tuple[int, int]]
) -> list[list[Row]]:
    """The images of each row of `(B, L)` token ids, told by their numbers of tokens.

    Raises:
        CofError: the images are not those of the inputs.
    """
    from cof.engines.transformers.decoder_adapter import DecoderAdapter
    from cof.engines.transformers.prompt_builder import Row

    counts = [math.prod(tokens.layout(size)) + adapter.first_feature for size in sizes]
    left = list(zip(sizes, counts, strict=True))
    wanted = [*counts, *[1] * len(ids)][: len(ids)]  # in cross-attention each row has one image
    if isinstance(adapter, DecoderAdapter):
        wanted = adapter.is_image(ids).sum(1).tolist()
    rows = []
    for number, count in enumerate(wanted):
        own: list[tuple[tuple[int, int], int]] = []
        while left and sum(n for _, n in own) < count:
            own.append(left.pop(0))
        starts = list(itertools.accumulate((n for _, n in own), initial=0))
        if not own or starts[-1] != count:
            raise CofError(
                f"Row {number} of the inputs has {count} image tokens, and its images give "
                f"{starts[-1]}: pass the images that the inputs were made of, in their order."
            )
        rows.append(
            [
                Row(None, size, slice(start, start + n), starts[-1])
                for (size, n), start in zip(own, starts, strict=False)
            ]
        )
    if left:
        raise CofError(f"There are {len(left)} images more than the inputs show.")
    return rows


@contextmanager
def _attached(model: Any, processor: Any) -> Iterator[tuple[Adapter, ImageTokens]]:
    """The model with its attention switched to ours inside; several threads may be inside."""
    from cof.engines.transformers.decoder_adapter import ADAPTERS
    from cof.families import dialect_of, family_of
    from cof.families.image_tokens import ImageTokens

    family = family_of(model.config)
    adapter = ADAPTERS[family.adapter](model, processor, family)
    tokens = ImageTokens(family, dialect_of(model.config, family), model.config, processor)
    parts = [name for name in model.config.sub_configs if getattr(model.config, name, None)]
    with _LOCK:
        if model not in _BEFORE:
            now = {name: getattr(model.config, name)._attn_implementation for name in parts}
            _BEFORE[model] = (now, [0])
            adapter.attach()
        before, users = _BEFORE[model]
        users[0] += 1
    try:
        yield adapter, tokens
    finally:
        with _LOCK:
            users[0] -= 1
            if not users[0]:
                del _BEFORE[model]
                model.set_attn_implementation(before)
