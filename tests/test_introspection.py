"""What is read from a model's states, against transformers' own outputs of the same pass."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint, picture, prompts_of
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache
from zoo import BUILDERS, zoo

from cof.engines.base import StateReader
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.introspection import find_phrase
from cof.errors import CofError
from cof.geometry.regions import Region, coverage_image
from cof.types import Request

NAMES = ["llava", *BUILDERS]
RAW = {"paligemma": "<image>{prompt}"}  # the processor adds the start token and the newline itself
QUESTION, PHRASE = "is the red bus here?", "red bus"


def folder(name: str) -> Any:
    return checkpoint(name) if name == "llava" else zoo(name)


@functools.cache
def engine(name: str) -> TransformersEngine:
    return TransformersEngine.from_pretrained(folder(name))


@functools.cache
def by_transformers(name: str, prompt: str) -> tuple[Any, Tensor, Tensor]:
    """The first step's output with attention and states, the tokens of the text, and which of them
    are the image's."""
    made = engine(name)
    model = AutoModelForImageTextToText.from_pretrained(
        folder(name), attn_implementation="eager"
    ).eval()
    text = RAW.get(name, made.chat.render("{prompt}")).format(prompt=prompt)
    arrays = made.processor(images=picture((150, 60)), text=text, return_tensors="np")
    inputs = {key: torch.from_numpy(value) for key, value in arrays.items() if key != "labels"}
    linear = "linear_attention" in (getattr(model.config.text_config, "layer_types", None) or ())
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            past_key_values=None if linear else DynamicCache(),  # which forgets nothing
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_attentions=True,
            output_logits=True,
        )
    ids = inputs["input_ids"][0]
    return output, ids, ids == model.config.image_token_id


@pytest.mark.parametrize("name", NAMES)
class TestEveryFamily:
    def test_reads_states(self, name: str) -> None:
        assert isinstance(engine(name), StateReader)

    def test_centres_lie_where_boxes_cover_tokens(self, name: str) -> None:
        """The tokens left of the middle are those that a box over the left half covers."""
        made = engine(name)
        for wh in ((150, 60), (70, 190)):
            centres = made.token_centres(wh)
            shown = made.tokens.visibility(wh)
            assert centres.shape == (*shown.span.shape, 2)
            np.testing.assert_array_equal(np.isnan(centres).any(-1), ~shown.visible)
            for axis, half in ((0, (0.0, 0.0, 0.5, 1.0)), (1, (0.0, 0.0, 1.0, 0.5))):
                inside = shown.coverage(Region(boxes=(half,)))
                at = centres[..., axis]
                assert (inside[at < 0.5 - 0.03] > 0.5).all()
                assert (inside[at > 0.5 + 0.03] < 0.5).all()
                assert np.nanmin(at) >= -0.01
                assert np.nanmax(at) <= 1.01

    def test_attention_is_the_models(self, name: str) -> None:
        (ours,) = engine(name).image_attentions([Request(picture((150, 60)), QUESTION)])
        output, _, is_image = by_transformers(name, QUESTION)
        theirs = torch.stack([layer for layer in output.attentions[0] if layer is not None])
        expected = theirs[:, 0, :, -1, is_image].float().numpy()
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=2e-5)

    def test_batch_is_single_and_prefixes_change_nothing(self, name: str) -> None:
        made = engine(name)
        rows = [
            Request(picture((150, 60)), QUESTION),
            Request(picture((70, 190), 1), "a much longer question about it: where is the bus?"),
            Request(picture((9, 7), 2), "bus?"),
        ]
        kept = [
            Request(image, row.prompt)
            for image, row in zip(
                made.encode([row.image for row in rows], prefill=True), rows, strict=True
            )
        ]
        alone = [made.image_attentions([row])[0] for row in rows]
        for together in (made.image_attentions(rows), made.image_attentions(kept)):
            for a, b in zip(together, alone, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5)
        alone = [made.phrase_similarities([row], ["bus"])[0] for row in rows]
        for asked in (rows, kept):
            together = made.phrase_similarities(asked, ["bus"] * 3)
            for a, b in zip(together, alone, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4)
        images, words = [row.image for row in rows], [["bus"], ["red", "bus"], []]
        together = made.word_probabilities(images, words)
        for image, of, a in zip(images, words, together, strict=True):
            (b,) = made.word_probabilities([image], [of])
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)

    def test_similarities_are_those_of_the_cache(self, name: str) -> None:
        output, ids, is_image = by_transformers(name, QUESTION)
        made = engine(name)
        tokens = [made.processor.tokenizer.decode(token) for token in ids]
        text = "".join(tokens)
        start = len(ids) - len(text) + text.rindex(PHRASE)  # a token is a character, images aside
        places = list(range(start, start + len(PHRASE)))
        assert "".join(tokens[place] for place in places) == PHRASE
        for states in ("values", "keys"):
            request = Request(picture((150, 60)), QUESTION)
            (ours,) = made.phrase_similarities([request], [PHRASE], states)
            kept = [getattr(layer, states, None) for layer in output.past_key_values.layers]
            assert len(ours) == len(kept)
            compared = 0
            for layer, cached in zip(ours, kept, strict=True):
                if cached is None or cached.ndim != 4 or cached.shape[2] != len(ids):
                    assert np.isnan(layer).all()
                    continue
                flat = cached[0].transpose(0, 1).flatten(1).float()
                expected = torch.nn.functional.cosine_similarity(
                    flat[places][:, None], flat[is_image][None], dim=-1
                )
                np.testing.assert_allclose(
                    layer.reshape(expected.shape), expected.numpy(), atol=1e-4
                )
                compared += 1
            assert compared

    def test_words_are_as_probable_as_in_the_models_own_logits(self, name: str) -> None:
        made = engine(name)
        request = Request(picture((150, 60)), "")
        (ours,) = made.word_probabilities([request.image], [["red", "bus"]])
        with torch.inference_mode():
            prompts = prompts_of(made, [request])
            inputs = made.adapter._inputs(prompts.inputs, prompts.features)
            logits = made.model(**inputs, use_cache=False).logits[0]
        is_image = prompts.inputs["input_ids"][0] == made.model.config.image_token_id
        ids = [made.processor.tokenizer(letter)["input_ids"][-1] for letter in "rb"]
        expected = logits[is_image].float().softmax(-1)[:, ids].T.numpy()
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("budget", [1, 200])
def test_a_small_budget_changes_nothing(budget: int) -> None:
    rows = [Request(picture((60, 40), n), "x" * n) for n in range(1, 5)]
    small = TransformersEngine.from_pretrained(checkpoint("llava"), max_batch_tokens=budget)
    for a, b in zip(
        small.image_attentions(rows), engine("llava").image_attentions(rows), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert small.image_attentions([]) == []


def test_a_phrase_is_found_in_the_prompt_and_not_in_the_chat_around_it() -> None:
    tokenizer = engine("llava").processor.tokenizer
    text = "USER: Is the USER here? ASSISTANT:"
    asked = "Is the USER here?"
    inside = find_phrase(tokenizer, text, "USER", within=asked)
    assert inside == find_phrase(tokenizer, text, "USER")  # the last one is the prompt's
    assert find_phrase(tokenizer, text, "ASSISTANT")
    assert not find_phrase(tokenizer, text, "ASSISTANT", within=asked)
    assert find_phrase(tokenizer, text, "ASSISTANT", within="not there")


def test_a_phrase_that_is_not_in_the_prompt_has_no_tokens() -> None:
    request = Request(picture((60, 40)), "the rebus is here")  # bus, but not as a word
    (found,) = engine("llava").phrase_similarities([request], ["bus"])
    assert found.shape[1] == 0


@pytest.mark.parametrize("name", ["instructblip", "blip-2"])
def test_a_q_former_has_no_image_tokens_to_compare(name: str) -> None:
    made = TransformersEngine.from_pretrained(checkpoint(name))
    with pytest.raises(CofError, match="not among the decoder's tokens"):
        made.phrase_similarities([Request(picture((60, 40)), "bus")], ["bus"])
    with pytest.raises(CofError, match="use grounder 'prompt' or 'attention'"):
        made.word_probabilities([picture((60, 40))], [["bus"]])


def test_the_centre_of_a_token_lies_in_the_box_that_covers_it() -> None:
    """Centres against boxes a token wide, on a padded image."""
    made = engine("llava")
    wh = (112, 56)
    centres, shown = made.token_centres(wh), made.tokens.visibility(wh)
    for row, column in np.argwhere(shown.visible):
        x, y = centres[row, column]
        spot = Region(boxes=((x - 0.02, y - 0.02, x + 0.02, y + 0.02),))
        assert coverage_image(spot, wh).getbbox()
        covered = shown.coverage(spot)
        assert np.nanargmax(covered) == row * shown.span.shape[1] + column
