"""How tokens are chosen, in transformers' terms."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from cof.types import Decoding, Generation

_SEEDING = threading.Lock()  # torch's random state belongs to the process, not to a thread


@contextmanager
def use_seed(decoding: Decoding, device: torch.device) -> Iterator[None]:
    """Sample with the decoding's seed inside, and restore the random state afterwards."""
    if decoding.seed is None or decoding.temperature <= 0:
        yield
        return
    gpus = [device] if device.type == "cuda" else []
    with _SEEDING, torch.random.fork_rng(gpus):
        torch.manual_seed(decoding.seed)
        yield


def make_generation_config(
    decoding: Decoding, model: Any, generator: Any, tokenizer: Any
) -> GenerationConfig:
    """transformers' generation config for a decoding.

    The end tokens are those of `model`, else of `generator` (the part of it whose `generate`
    runs), else of `tokenizer`.
    """
    end = next(
        token
        for token in (
            model.generation_config.eos_token_id,
            generator.generation_config.eos_token_id,
            tokenizer.eos_token_id,
        )
        if token is not None
    )
    ends = [end] if isinstance(end, int) else list(end)
    sampling = (
        {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
        if decoding.temperature > 0
        else {"do_sample": False}
    )
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        eos_token_id=ends,
        pad_token_id=ends[0] if pad is None else pad,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=generator.generation_config.decoder_start_token_id,
        return_dict_in_generate=True,
        output_logits=True,
        **sampling,
    )


def collect_generations(
    output: Any, generator: Any, tokenizer: Any, ends: Sequence[int]
) -> list[Generation]:
    """The replies of transformers' `generate`, each up to its end token."""
    logprobs = generator.compute_transition_scores(
        output.sequences,
        output.logits,
        getattr(output, "beam_indices", None),
        normalize_logits=True,
    )
    tokens = output.sequences[:, output.sequences.shape[1] - logprobs.shape[1] :]
    replies = []
    for row, scores in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        text = tokenizer.decode(row[:stop], skip_special_tokens=True)
        replies.append(Generation(text.strip(), tuple(row[:stop]), tuple(scores[:stop])))
    return replies
