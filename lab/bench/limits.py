"""What a pass through a model must compute and move, and the time that this alone would take.

A lower bound, not a forecast: matrix products and attention scores count, and each weight and each
cached key and value is read once a pass. Activations, norms, launches and Python cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class Pass:
    """One run of the vision tower or of the decoder.

    Attributes:
        part: which of them.
        rows: images or sequences in it.
        new: tokens of each row that are computed, padding included.
        before: tokens of each row whose keys and values are cached.
        logits: rows of logits, of all sequences together.
    """

    part: Literal["vision", "decoder"]
    rows: int
    new: int
    before: int = 0
    logits: int = 0


@dataclass(frozen=True)
class Sizes:
    """What the costs of a LLaVA model depend on.

    Attributes:
        vision_weights: numbers in the vision tower and the projector.
        vision_layers, vision_width: of the tower.
        weights: numbers in the decoder, without its embedding and its head.
        layers, width: of the decoder; `width` is that of all queries of a layer.
        kv_width: of all keys of a layer.
        head: numbers in the head.
        value_bytes: of one number.
    """

    vision_weights: int
    vision_layers: int
    vision_width: int
    weights: int
    layers: int
    width: int
    kv_width: int
    head: int
    value_bytes: int

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """Those of a `LlavaForConditionalGeneration`."""
        vision, text = model.config.vision_config, model.config.text_config
        decoder = model.model.language_model
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            vision_weights=_count_weights(model.model.vision_tower)
            + _count_weights(model.model.multi_modal_projector),
            vision_layers=vision.num_hidden_layers,
            vision_width=vision.hidden_size,
            weights=_count_weights(decoder) - decoder.embed_tokens.weight.numel(),
            layers=text.num_hidden_layers,
            width=text.num_attention_heads * head_size,
            kv_width=text.num_key_value_heads * head_size,
            head=model.lm_head.weight.numel(),
            value_bytes=model.dtype.itemsize,
        )


@dataclass(frozen=True)
class Limits:
    """The rates that a machine reaches with a model.

    Attributes:
        flops: operations per second, in the best matrix product.
        bytes: read per second, in the best stream of weights.
        launch: seconds in which the host launches one pass of the decoder over one token; None
            where host and device are the same.
        vision_launch: the same for the vision tower and one image.
    """

    flops: float
    bytes: float
    launch: float | None = None
    vision_launch: float | None = None


def operations(run: Pass, sizes: Sizes) -> float:
    """Floating-point operations of a pass; attention is counted as causal.

    >>> sizes = Sizes(0, 0, 0, weights=1000, layers=1, width=10, kv_width=10, head=500,
    ...               value_bytes=2)
    >>> operations(Pass("decoder", rows=1, new=1, before=3, logits=1), sizes)  # 2000 + 160 + 1000
    3160.0
    """
    if run.part == "vision":
        scores = 4 * sizes.vision_layers * sizes.vision_width * run.new**2
        return run.rows * (2.0 * sizes.vision_weights * run.new + scores)
    read = run.before + (run.new + 1) / 2
    attention = 4 * sizes.layers * sizes.width * run.new * read
    return run.rows * (2.0 * sizes.weights * run.new + attention) + 2 * sizes.head * run.logits


def traffic(run: Pass, sizes: Sizes) -> int:
    """Bytes that a pass must move: weights and cached keys and values are read, new ones written.

    >>> sizes = Sizes(0, 0, 0, weights=1000, layers=1, width=10, kv_width=10, head=500,
    ...               value_bytes=2)
    >>> traffic(Pass("decoder", rows=1, new=1, before=3, logits=1), sizes)  # 2000 + 1000 + 160
    3160
    """
    if run.part == "vision":
        return sizes.vision_weights * sizes.value_bytes
    kept = 2 * sizes.layers * sizes.kv_width * run.rows * (run.before + run.new)
    head = sizes.head if run.logits else 0
    return (sizes.weights + head + kept) * sizes.value_bytes


def floor(passes: Iterable[Pass], sizes: Sizes, limits: Limits, *, launches: bool = False) -> float:
    """Seconds that operations and bytes alone need: the slower of the two for each pass.

    With `launches` no pass is faster than its launch.

    >>> sizes = Sizes(0, 0, 0, weights=1000, layers=0, width=0, kv_width=0, head=0, value_bytes=2)
    >>> limits = Limits(flops=1000.0, bytes=1000.0, launch=10.0)
    >>> one, many = (Pass("decoder", rows=1, new=new) for new in (1, 8))
    >>> floor([one], sizes, limits), floor([many], sizes, limits)  # as bytes, and as operations
    (2.0, 16.0)
    >>> floor([one, many], sizes, limits, launches=True)
    26.0
    """
    seconds = 0.0
    for run in passes:
        launch = limits.launch if run.part == "decoder" else limits.vision_launch
        seconds += max(
            operations(run, sizes) / limits.flops,
            traffic(run, sizes) / limits.bytes,
            (launch or 0.0) if launches else 0.0,
        )
    return seconds


def _count_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
