"""What is known of a model family, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cof.geometry.boxes import Frame
from cof.prompting.dialects import LLAVA, Dialect


@dataclass(frozen=True)
class Family:
    """What the engine has to know of a model family.

    Attributes:
        name: for people.
        model_types: the `model_type` of the config.json files that it covers.
        token_means: `(the processor's output for one image, config)` -> the mean of the pixels of
            each image token, `(grid_h, grid_w)`, or `(tokens,)` where the tokens are no single
            raster.
        adapter: where the bias goes, a key of `decoder_adapter.ADAPTERS`.
        dialect: how it is asked for a box and writes it.
        frame: `(image_wh, image processor)` -> where the original lies in the native coordinates
            of the boxes that the model writes; None: it fills the dialect's scale. Where these are
            fractions, it is also the frame of the token grid.
        prompt: the prompt around `{prompt}` when the processor has no chat template; `{bos}` is
            the start token, where the tokenizer does not add it.
        chat_template: in its place, in Jinja, for whole chats.
        num_prefix_features: config -> how many image features stand before the first token of
            `token_means` (CLS).
        pads_to_square: whether its reference evaluation pads images to a square, unlike the
            processor on the hub; None: the processor on the hub is the reference.
        image_type: the value of image tokens in `token_type_ids`, where the model takes them: 1 in
            Gemma 3, which marks images alone; 0 in PaliGemma, which marks answers alone.
        prefill: whether the decoder's state after the image depends on nothing that follows it
            (causal attention, positions without memory), so that it can be cached and reused.
        bidirectional: config -> whether image tokens attend to later tokens of their image. A bias
            on one of them changes the states of all then.
        second: whether a second image may follow the first.
        stacks: whether images whose pixels have the same shapes can be encoded in one call.
        starts: whether its processor puts the start token before every prompt, or the end token
            where the tokenizer has no start token.
    """

    name: str
    model_types: tuple[str, ...]
    token_means: Callable[[Mapping[str, Any], Any], NDArray[np.float64]]
    adapter: Literal["decoder", "qformer", "mllama", "kosmos2"] = "decoder"
    dialect: Dialect = LLAVA
    frame: Callable[[tuple[int, int], Any], Frame] | None = None
    prompt: str = "{prompt}"
    chat_template: str = ""
    num_prefix_features: Callable[[Any], int] = lambda config: 0
    pads_to_square: bool | None = None
    image_type: int = 1
    prefill: bool = True
    bidirectional: Callable[[Any], bool] = lambda config: False
    second: bool = True
    stacks: bool = True
    starts: bool = False

    @property
    def takes_two(self) -> bool:
        """Whether it can be shown two images at once."""
        return self.adapter == "decoder" and self.second
