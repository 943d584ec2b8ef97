"""What a decoder's states say about each image token: cached keys and values, and words.

The tokens of a phrase are found by its characters and counted from the end of the prompt, since
padding and prefixes move only what comes before them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from cof.engines.transformers.decoder_adapter import DecoderAdapter
from cof.engines.transformers.prefix_cache import CACHE, Prompts
from cof.families.special_tokens import SpecialTokens, token_ids, token_spans, unescape

States = Literal["values", "keys"]

_CAPPED = ("gemma4",)  # transformers ignores the cap in the config of PaliGemma 2's decoder
_CHUNK = 256  # image tokens whose probabilities of all words are in memory at once


def find_phrase(tokenizer: Any, text: str, phrase: str, within: str = "") -> list[int]:
    """The places of a phrase's tokens in an escaped text, from the end: -1 is the last token.

    The last occurrence counts; if the text holds `within`, the last one in that, since a chat has
    words of its own after the prompt. Empty if the phrase does not occur.
    """
    plain = unescape(text)
    first, last = 0, len(plain)
    if within and within in plain:
        first = plain.rindex(within)
        last = first + len(within)
    matches = list(re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)").finditer(plain, first, last))
    if not matches:
        return []
    start, end = matches[-1].span()
    spans = token_spans(tokenizer, text)
    return [number - len(spans) for number, (a, b) in enumerate(spans) if a < end and b > start]


def find_first_token(tokenizer: Any, special: SpecialTokens, word: str) -> int:
    """The first token of a word in the middle of a text."""
    text = special.escape(f"the {word}")
    ids = token_ids(tokenizer, text, add_special_tokens=False)
    return ids[find_phrase(tokenizer, text, word)[0]]


def compare_states(
    adapter: DecoderAdapter,
    states: States,
    prompts: Prompts,
    places: Sequence[Sequence[int]],
    config: GenerationConfig,
) -> list[Tensor]:
    """Cosine similarity of tokens' cached states with those of the image tokens, heads joined.

    One pass, which continues from the prefixes of `prompts`.

    Args:
        states: `values` or `keys` (whose rotation depends on the distance of two tokens).
        places: the T tokens of each row, counted from the end.
        config: for a single token.

    Returns:
        For each row `(layers, T, K)`; NaN for layers without keys and values (linear attention).
    """
    ids = prompts.inputs["input_ids"]
    output = adapter.generate(adapter.with_cache(prompts), generation_config=config)
    is_image = torch.eq(ids, adapter.model.config.image_token_id)
    # where the cache holds what keys and values are made of (Hy4-VL)
    expand = [of.expand_kv for of in adapter.model.modules() if hasattr(of, "expand_kv")]
    similarities = []
    for row, tokens in enumerate(places):
        layers = []
        for number, layer in enumerate(getattr(output, CACHE).layers):
            cached = getattr(layer, states, None)
            if cached is None or cached.ndim != 4 or cached.shape[2] != ids.shape[1]:
                layers.append(torch.full((len(tokens), int(is_image[row].sum())), torch.nan))
                continue
            if expand:
                cached = expand[number](layer.keys, layer.values)[states == "values"]
            joined = cached[row].transpose(0, 1).flatten(1).float()  # (L, key heads * head size)
            joined = torch.nn.functional.normalize(joined, dim=-1)
            layers.append((joined[list(tokens)] @ joined[is_image[row]].T).cpu())
        similarities.append(torch.stack(layers))
    return similarities


def predict_words(
    adapter: DecoderAdapter,
    prompts: Prompts,
    token_ids: Sequence[Sequence[int]],
    config: GenerationConfig,
) -> list[Tensor]:
    """The probability of tokens as the decoder's next one after each image token (logit lens).

    Args:
        prompts: without prefixes, since the states of all image tokens are needed.
        token_ids: T tokens of the vocabulary for each row.
        config: for a single token.

    Returns:
        For each row `(T, K)`.
    """
    config.output_hidden_states = True
    output = adapter.generate(prompts, generation_config=config)
    hidden = output.hidden_states[0][-1]  # of the last layer, normalised
    is_image = torch.eq(prompts.inputs["input_ids"], adapter.model.config.image_token_id)
    head, model = adapter.model.get_output_embeddings(), adapter.model.config
    cap = model.get_text_config().final_logit_softcapping if model.model_type in _CAPPED else None
    probabilities = []
    for row, tokens in enumerate(token_ids):
        parts = []
        for states in hidden[row, is_image[row]].split(_CHUNK):
            logits = head(states).float()
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            parts.append((logits[:, list(tokens)] - logits.logsumexp(-1, keepdim=True)).exp())
        probabilities.append(torch.cat(parts).T.cpu())
    return probabilities
