"""How fast this machine multiplies, reads and launches, measured at a model's own shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.benchmark import Timer

from lab.bench.limits import Limits

ROWS = (640, 4096)  # tokens at a time: one question with its image, and many
SQUARE = {"cuda": 8192, "cpu": 2048}  # rows and columns of a product at a device's best
READ = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes, beyond any cache
TRIES = 5
IN_A_ROW = {"cuda": 10, "cpu": 1}  # runs between two waits for the device


def calibrate(model: Any) -> Limits:
    """The best of a few tries of each rate."""
    with torch.inference_mode():
        launches = (
            () if model.device.type == "cpu" else (_launch(model, _one_token), _launch(model, _see))
        )
        return Limits(_products(model), _reads(model), *launches)


def _products(model: Any) -> float:
    """Operations a second of the decoder's widest product, or of a large square one."""
    text, side = model.config.text_config, SQUARE[model.device.type]
    wide = [(rows, text.intermediate_size, text.hidden_size) for rows in ROWS]
    rates: list[float] = []
    for rows, out, width in (*wide, (side, side, side)):
        a, b = _noise(model, rows, width), _noise(model, out, width)
        rates.append(2 * rows * out * width / fastest(partial(linear, a, b), model.device))
    return max(rates)


def _reads(model: Any) -> float:
    """Bytes a second of the decoder's weights against one token, and of one large tensor."""
    weights: list[Tensor] = [
        weight for weight in model.model.language_model.layers.parameters() if weight.ndim == 2
    ]
    tokens = {width: _noise(model, 1, width) for width in {weight.shape[1] for weight in weights}}

    def own() -> None:
        for weight in weights:
            linear(tokens[weight.shape[1]], weight)

    size = READ[model.device.type]
    large = _noise(model, size // model.dtype.itemsize // 8192, 8192)
    token = _noise(model, 1, 8192)
    stored = sum(weight.numel() for weight in weights) * model.dtype.itemsize
    return max(
        stored / fastest(own, model.device),
        size / fastest(lambda: large.view(torch.float32).amax(), model.device),
        size / fastest(lambda: linear(token, large), model.device),
    )


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of `TRIES` runs of `work`; the timer warms up, and waits for GPUs."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(timer.timeit(IN_A_ROW[device.type]).mean for _ in range(TRIES))


def _launch(model: Any, work: Callable[[Any], object]) -> float:
    """Seconds until `work` returns, while the GPU may still be busy."""
    times = []
    for _ in range(2 + TRIES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work(model)
        times.append(time.perf_counter() - start)
    return min(times[2:])


def _one_token(model: Any) -> None:
    width = model.config.text_config.hidden_size
    token = torch.zeros(1, 1, width, device=model.device, dtype=model.dtype)
    model.model.language_model(inputs_embeds=token, use_cache=True)


def _see(model: Any) -> None:
    side = model.config.vision_config.image_size
    image = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
    model.get_image_features(pixel_values=image, return_dict=True)


def _noise(model: Any, *shape: int) -> Tensor:
    return torch.randn(*shape, device=model.device, dtype=model.dtype)
