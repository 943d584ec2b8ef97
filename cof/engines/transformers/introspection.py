"""What a decoder's states say of each image token: cached keys and values, and words.

A phrase of the question is found among the tokens by its characters; its tokens are counted from
the end, since padding and prefixes move only what comes before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from cof.engines.transformers.decoder_adapter import DecoderAdapter
from cof.engines.transformers.prefix_cache import Prompts
from cof.engines.transformers.special_tokens import (
    SpecialTokens,
    token_ids,
    token_spans,
    unescape,
)

States = Literal["values", "keys"]

_CAPPED = ("gemma4",)  # PaliGemma 2's decoder has a cap in its config that transformers leaves out
_ROWS = 256  # image tokens whose probabilities of all words are held at once


def phrase_tokens(tokenizer: Any, text: str, phrase: str, within: str = "") -> list[int]:
    """Where the tokens of a phrase are in an escaped text, from the end: -1 is the last one.

    Of several occurrences the last counts, where the text holds `within` the last one in that: a
    chat has words of its own behind the prompt. A phrase that is not there has no tokens.
    """
    plain = unescape(text)
    first, last = 0, len(plain)
    if within and within in plain:
        first = plain.rindex(within)
        last = first + len(within)
    found = list(re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)").finditer(plain, first, last))
    if not found:
        return []
    start, end = found[-1].span()
    spans = token_spans(tokenizer, text)
    return [number - len(spans) for number, (a, b) in enumerate(spans) if a < end and b > start]


def first_token(tokenizer: Any, word: str, special: SpecialTokens) -> int:
    """The first token of a word in the middle of a text."""
    text = special.escape(f"the {word}")
    return token_ids(tokenizer, text, add_special_tokens=False)[
        phrase_tokens(tokenizer, text, word)[0]
    ]


def similarities(
    adapter: DecoderAdapter,
    prompts: Prompts,
    places: Sequence[Sequence[int]],
    states: States,
    **kwargs: Any,
) -> list[Tensor]:
    """Cosine similarity of tokens' cached states with those of the image tokens, all heads as one.

    One pass; what `prompts` reuses is not computed again.

    Args:
        places: of each row the T tokens, from the end.
        states: `values` or `keys` (whose rotation depends on how far apart two tokens stand).
        kwargs: `generate`'s for a single token.

    Returns:
        For each row `(layers, T, K)`; NaN for layers without keys and values (linear attention).
    """
    ids = prompts.inputs["input_ids"]
    cache = adapter.generate(replace(prompts, keeps_states=True), **kwargs).past_key_values
    is_image = torch.eq(ids, adapter.model.config.image_token_id)
    found = []
    for row, tokens in enumerate(places):
        layers = []
        for layer in cache.layers:
            kept = getattr(layer, states, None)
            if kept is None or kept.ndim != 4 or kept.shape[2] != ids.shape[1]:
                layers.append(torch.full((len(tokens), int(is_image[row].sum())), torch.nan))
                continue
            of = kept[row].transpose(0, 1).flatten(1).float()  # (L, key heads * head size)
            asked = torch.nn.functional.normalize(of[list(tokens)], dim=-1)
            shown = torch.nn.functional.normalize(of[is_image[row]], dim=-1)
            layers.append((asked @ shown.T).cpu())
        found.append(torch.stack(layers))
    return found


def probabilities(
    adapter: DecoderAdapter, prompts: Prompts, token_ids: Sequence[Sequence[int]], **kwargs: Any
) -> list[Tensor]:
    """The probability of tokens as the decoder would go on after each image token (logit lens).

    Args:
        prompts: nothing of them reused: the states of all image tokens are needed.
        token_ids: of each row T tokens of the vocabulary.
        kwargs: `generate`'s for a single token; its config asks for hidden states.

    Returns:
        For each row `(T, K)`.
    """
    hidden = adapter.generate(prompts, **kwargs).hidden_states[0][-1]  # the last layer's, normed
    is_image = torch.eq(prompts.inputs["input_ids"], adapter.model.config.image_token_id)
    head, config = adapter.model.get_output_embeddings(), adapter.model.config
    cap = config.get_text_config().final_logit_softcapping if config.model_type in _CAPPED else None
    found = []
    for row, tokens in enumerate(token_ids):
        parts = []
        for states in hidden[row, is_image[row]].split(_ROWS):
            logits = head(states).float()
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            parts.append((logits[:, list(tokens)] - logits.logsumexp(-1, keepdim=True)).exp())
        found.append(torch.cat(parts).T.cpu())
    return found
