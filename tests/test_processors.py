"""Processors: loaded for PIL, or refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo import zoo

from cof.engines.transformers.loading import load
from cof.errors import CofError
from cof.families.processors import PixtralProcessor, image_options, load_processor


@pytest.mark.parametrize("kind", ["llama4", "cohere2_vision", "lfm2_vl", "perception_lm"])
def test_torchvision_alone_is_refused(kind: str, tmp_path: Any) -> None:
    config = CONFIG_MAPPING[kind]()
    with pytest.raises(CofError, match=f"'{kind}' are not supported: .* with torchvision alone"):
        load_processor(str(tmp_path), config)
    config.save_pretrained(tmp_path)  # the same from a folder, before weights are looked for
    with pytest.raises(CofError, match="with torchvision alone"):
        load(
            str(tmp_path),
            dtype=None,
            device_map=None,
            pad_to_square=None,
            quantization=None,
            allow_pickle=False,
        )


def test_pixtrals_rows_end_in_breaks() -> None:
    made = load_processor(str(zoo("pixtral")), CONFIG_MAPPING["mistral3"]())
    assert type(made) is PixtralProcessor
    sizes = {"image_sizes": [(28, 42)]}
    text = made.replace_image_token(sizes, 0)
    assert text == "[IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]"


def test_image_options_are_those_the_image_processor_takes() -> None:
    kosmos = load_processor(str(zoo("kosmos2")), CONFIG_MAPPING["kosmos-2"]())
    assert not image_options(kosmos)  # num_image_tokens and its like are for the processor
    smol = load_processor(str(zoo("smolvlm")), CONFIG_MAPPING["smolvlm"]())
    assert image_options(smol)["return_row_col_info"] is True
