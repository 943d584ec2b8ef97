"""What is read from a model's states, against transformers' own outputs of the same pass.

Attention is held in `test_matrix`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models import picture, prompts_of
from test_matrix import WIDE, by_transformers
from zoo import BUILDERS, engine, stock

from cof.engines.transformers.introspection import find_phrase
from cof.engines.transformers.prefix_cache import CACHE
from cof.errors import CofError
from cof.geometry.regions import Region
from cof.types import Request

QUESTION, PHRASE = "is the red bus here?", "red bus"
ASKED = Request(WIDE, QUESTION)


def expand(layers: Sequence[Any]) -> Iterator[dict[str, torch.Tensor]]:
    """The keys and values of Hy4-VL, `(1, H, L, D)`, written out; its cache has the latents of both
    as keys, and the part of the keys that is rotated, alike in all heads, as values."""
    decoder = stock("hy_v4_vl").model.language_model
    sizes = [decoder.config.qk_nope_head_dim, decoder.config.v_head_dim]
    for layer, cached in zip(decoder.layers, layers, strict=True):
        latents, weight = cached.keys[0], layer.self_attn.kv_b_proj.weight.detach()
        made = (latents @ weight.T).unflatten(-1, (-1, sum(sizes)))  # (1, L, H, D of both)
        own, values = made.transpose(1, 2).split(sizes, -1)
        rotated = cached.values.expand(-1, own.shape[1], -1, -1)
        yield {"keys": torch.cat([own, rotated], -1), "values": values}


@pytest.mark.parametrize("name", ["llava", *BUILDERS])
class TestEveryFamily:
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

    def test_similarities_are_those_of_the_cache(self, name: str) -> None:
        output, is_image = by_transformers(name, ASKED)
        made, ids = engine(name), output.sequences[0, : len(is_image)]
        tokens = [made.processor.tokenizer.decode(token) for token in ids]
        text = "".join(tokens)
        start = len(ids) - len(text) + text.rindex(PHRASE)  # a token is a character, images aside
        places = list(range(start, start + len(PHRASE)))
        assert "".join(tokens[place] for place in places) == PHRASE
        compared = 0
        for states in ("values", "keys"):
            (ours,) = made.phrase_similarities([ASKED], [PHRASE], states)
            kept = [getattr(layer, states, None) for layer in output[CACHE].layers]
            if name == "hy_v4_vl":  # whose cache has what keys and values are made of
                kept = [of[states] for of in expand(output[CACHE].layers)]
            for layer, cached in zip(ours, kept, strict=True):
                if cached is None or cached.ndim != 4 or cached.shape[2] < len(ids):
                    assert np.isnan(layer).all()
                    continue
                flat = cached[0, :, : len(ids)].transpose(0, 1).flatten(1).float()
                expected = torch.nn.functional.cosine_similarity(
                    flat[places][:, None], flat[is_image][None], dim=-1
                )
                found = layer.reshape(expected.shape)
                np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
                compared += 1
        assert compared

    def test_words_are_as_probable_as_in_the_models_own_logits(self, name: str) -> None:
        made = engine(name)
        (ours, again) = made.word_probabilities([WIDE, picture((70, 190))], [["red", "bus"], []])
        assert len(again) == 0
        with torch.inference_mode():
            prompts = prompts_of(made, [Request(WIDE, "")])
            inputs = made.adapter._new_inputs(prompts)
            logits = made.model(**inputs, use_cache=False).logits[0]
        is_image = prompts.inputs["input_ids"][0] == made.model.config.image_token_id
        ids = [made.processor.tokenizer(letter)["input_ids"][-1] for letter in "rb"]
        expected = logits[is_image].float().softmax(-1)[:, ids].T.numpy()
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=1e-3, atol=1e-6)


def test_phrases_are_found_in_the_prompt_and_not_in_the_chat_around_it() -> None:
    tokenizer = engine("llava").processor.tokenizer
    text = "USER: Is the USER here? ASSISTANT:"
    asked = "Is the USER here?"
    inside = find_phrase(tokenizer, text, "USER", within=asked)
    assert inside == find_phrase(tokenizer, text, "USER")  # the last one is the prompt's
    assert find_phrase(tokenizer, text, "ASSISTANT")
    assert not find_phrase(tokenizer, text, "ASSISTANT", within=asked)
    assert find_phrase(tokenizer, text, "ASSISTANT", within="not there")
    request = Request(picture((60, 40)), "the rebus is here")  # bus, but not as a word
    (found,) = engine("llava").phrase_similarities([request], ["bus"])
    assert found.shape[1] == 0


def test_a_q_former_has_no_image_tokens_to_compare() -> None:
    made: Any = engine("instructblip")
    with pytest.raises(CofError, match="not among the decoder's tokens"):
        made.phrase_similarities([ASKED], ["bus"])
    with pytest.raises(CofError, match="use grounder 'prompt' or 'attention'"):
        made.word_probabilities([WIDE], [["bus"]])
