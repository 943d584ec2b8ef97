"""How tokens are chosen, in transformers' terms."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from cof.types import Decoding, Generation

_seeding = threading.Lock()  # torch's random state is the process's, not the thread's


@contextmanager
def seeded(decoding: Decoding, device: torch.device) -> Iterator[None]:
    """Draw what is sampled from the decoding's seed, and leave the random state as it was."""
    if decoding.seed is None or decoding.temperature <= 0:
        yield
        return
    gpus = [device] if device.type == "cuda" else []
    with _seeding, torch.random.fork_rng(gpus):
        torch.manual_seed(decoding.seed)
        yield


def generation_config(
    decoding: Decoding, model: Any, generator: Any, tokenizer: Any
) -> GenerationConfig:
    """transformers' own settings for a decoding.

    Args:
        model: whose end tokens count.
        generator: the part of it whose `generate` runs.
        tokenizer: has the last word on what the others do not say.
    """
    end = next(
        known
        for known in (
            model.generation_config.eos_token_id,
            generator.generation_config.eos_token_id,
            tokenizer.eos_token_id,
        )
        if known is not None
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


def generations(
    output: Any, generator: Any, tokenizer: Any, ends: Sequence[int]
) -> list[Generation]:
    """The rows of what `generate` returned, each up to its end token."""
    logprobs = generator.compute_transition_scores(
        output.sequences,
        output.logits,
        getattr(output, "beam_indices", None),
        normalize_logits=True,
    )
    tokens = output.sequences[:, output.sequences.shape[1] - logprobs.shape[1] :]
    found = []
    for row, scores in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        text = tokenizer.decode(row[:stop], skip_special_tokens=True)
        found.append(Generation(text.strip(), tuple(row[:stop]), tuple(scores[:stop])))
    return found
