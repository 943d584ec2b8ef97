"""What is known of a model family, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cof.geometry.boxes import Frame
from cof.prompting.dialects import Dialect


@dataclass(frozen=True)
class Family:
    """What the engine has to know of a model family.

    Attributes:
        name: for people.
        model_types: `model_type` of the config.json files it covers.
        adapter: where the bias goes, a key of `decoder_adapter.ADAPTERS`.
        dialect: how it is asked for a box and writes it.
        brightness: `(the processor's output for one image, config)` -> mean brightness of each
            image token, `(grid_h, grid_w)`, or `(tokens,)` where they are no single raster.
        frame: `(image_wh, image processor)` -> where the original lies in the native coordinates
            of the boxes the model writes; where those are fractions, of the token grid too.
        prompt: the prompt around `{prompt}` when the processor has no chat template; `{bos}` is
            the start token, where the tokenizer does not write it.
        lead: config -> how many image features stand before the first token of `brightness` (CLS).
        pads_to_square: whether its reference evaluation pads images to a square, against the
            processor on the hub; None: the processor on the hub is the reference.
        image_type: what image tokens are in `token_type_ids`, where the model takes them.
        prefill: whether the decoder's state after the image depends on nothing that follows it
            (causal attention, positions without memory), so that it may be kept and reused.
        bidirectional: config -> whether image tokens see those of their image that follow them, so
            that a bias on one changes the states of all.
        second: whether a second image may follow the first.
    """

    name: str
    model_types: tuple[str, ...]
    adapter: Literal["decoder", "qformer", "mllama", "kosmos2"]
    dialect: Dialect
    brightness: Callable[[Mapping[str, Any], Any], NDArray[np.float64]]
    frame: Callable[[tuple[int, int], Any], Frame]
    prompt: str = "{prompt}"
    lead: Callable[[Any], int] = lambda config: 0
    pads_to_square: bool | None = None
    image_type: int = 1
    prefill: bool = False
    bidirectional: Callable[[Any], bool] = lambda config: False
    second: bool = True

    @property
    def takes_two(self) -> bool:
        """Whether it can be shown two images at once."""
        return self.adapter == "decoder" and self.second

    @property
    def answer_type(self) -> int:
        """What answers are in `token_type_ids`: Gemma 3 marks images with 1 and nothing else;
        PaliGemma answers, and leaves the prompt 0, image included."""
        return 0 if self.image_type else 1
