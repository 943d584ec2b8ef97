"""How tokens are chosen, in transformers' terms.

Also how likely a given reply is, and contrastive guidance: an answer moved away from the one
without attention to the region.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from cof.engines.transformers.adapter import Adapter
from cof.families.chat import Chat
from cof.families.special_tokens import token_ids
from cof.prompting.thoughts import decode
from cof.types import Decoding, Generation, Request

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


SHAPING = """
bad_words_ids begin_suppress_tokens encoder_no_repeat_ngram_size encoder_repetition_penalty
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id min_length min_new_tokens
no_repeat_ngram_size remove_invalid_values renormalize_logits repetition_penalty sequence_bias
suppress_tokens
"""
"""What a checkpoint's generation_config.json has a say in: which tokens are likely."""

SAMPLING = "epsilon_cutoff eta_cutoff min_p top_h top_k typical_p"
BEAMS = "early_stopping length_penalty"
"""The same where tokens are sampled, and with several beams."""


class AnswerConfig(GenerationConfig):
    """transformers' class, in which all else is ours, whatever a checkpoint says: whether there is
    a cache and of which kind, how tokens are chosen, lengths, and what `generate` returns."""

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers calls it with the checkpoint's values, and then with its own defaults."""
        if allow_custom_entries:
            names = f"{SHAPING} {SAMPLING * self.do_sample} {BEAMS * (self.num_beams > 1)}".split()
            kwargs = {name: kwargs[name] for name in names if name in kwargs}
        kwargs.pop("max_length", None)  # it would be warned of, beside `max_new_tokens`
        return super().update(defaults_only, **kwargs)  # type: ignore[no-any-return,no-untyped-call]


def make_generation_config(decoding: Decoding, adapter: Adapter) -> AnswerConfig:
    """transformers' generation config for a decoding.

    The end tokens are those of the model, else of the part of it whose `generate` runs, else of the
    tokenizer.
    """
    tokenizer, own = adapter.processor.tokenizer, adapter.generator.generation_config
    owners = (adapter.model.generation_config, own, tokenizer)
    end = next(owner.eos_token_id for owner in owners if owner.eos_token_id is not None)
    ends = [end] if isinstance(end, int) else list(end)
    sampled = decoding.temperature > 0
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p} if sampled else {}
    pad = tokenizer.pad_token_id
    return AnswerConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.num_beams,
        eos_token_id=ends,
        pad_token_id=ends[0] if pad is None else pad,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        return_dict_in_generate=True,
        output_logits=True,
        do_sample=sampled,
        **sampling,
    )


def collect_generations(output: Any, adapter: Adapter, ends: Sequence[int]) -> list[Generation]:
    """The replies of transformers' `generate`, each up to its end token."""
    logprobs = adapter.generator.compute_transition_scores(
        output.sequences,
        output.logits,
        getattr(output, "beam_indices", None),
        normalize_logits=True,
    )
    tokens = output.sequences[:, output.sequences.shape[1] - logprobs.shape[1] :]
    replies = []
    for row, scores in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        text = decode(adapter.processor.tokenizer, row[:stop])
        replies.append(Generation(text.strip(), tuple(row[:stop]), tuple(scores[:stop])))
    return replies


class Forced(LogitsProcessor):
    """Leaves one token to choose at each step: the next one of a row's reply, then padding."""

    def __init__(self, replies: Sequence[Sequence[int]], pad_id: int) -> None:
        self.replies, self.pad_id = replies, pad_id
        self._start = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(B, L)` so far and `(B, V)` scores -> `(B, V)`, minus infinity but for one column."""
        if self._start < 0:  # prompts may be embeddings, which count for nothing here
            self._start = input_ids.shape[1]
        step = input_ids.shape[1] - self._start
        wanted = [ids[step] if step < len(ids) else self.pad_id for ids in self.replies]
        column = torch.tensor(wanted, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, column, 0.0)


def tokenize_replies(
    chat: Chat, replies: Sequence[str], end_id: int, *, alone: bool
) -> list[list[int]]:
    """The token ids with which the model would give each reply, the end token last.

    Args:
        alone: whether replies do not follow the prompt, as in an encoder-decoder.

    Raises:
        CofError: a reply cannot be encoded.
    """
    tokenizer = chat.processor.tokenizer
    before = "" if alone else chat.opening()
    space = "" if alone or before[-1:].isspace() else " "
    encode = partial(token_ids, tokenizer, add_special_tokens=False)
    prompt = encode(before)
    tokens = []
    for reply in replies:
        text = space + chat.special.escape(reply)
        whole = encode(before + text)
        # Where the prompt's last token would swallow a part of the reply, the reply stands alone.
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else encode(text)
        tokens.append([*ids, end_id])
    return tokens


def collect_scores(
    replies: Sequence[str],
    tokens: Sequence[Sequence[int]],
    logits: Sequence[Tensor],
    end_ids: Sequence[int],
) -> list[Generation]:
    """Each reply with the log-probability of each of its tokens.

    Args:
        replies, tokens: B replies and their token ids, the end token last.
        logits: the model's own after each step, `(B, V)`.
        end_ids: the model's end tokens: a reply may end with any of them.
    """
    steps = [step.float().log_softmax(-1).cpu() for step in logits]
    generations = []
    for row, (text, ids) in enumerate(zip(replies, tokens, strict=True)):
        logprobs = [float(steps[at][row, token]) for at, token in enumerate(ids[:-1])]
        end = float(steps[len(ids) - 1][row, list(end_ids)].logsumexp(0))
        generations.append(Generation(text, tuple(ids), (*logprobs, end)))
    return generations


def guidance(request: Request) -> float:
    """The guidance scale of a request; 1: no guidance."""
    return 1.0 if request.highlight is None else request.highlight.guidance


def make_contrast(request: Request) -> Request:
    """The other branch: the same request with 1 / strength, which lowers the attention to the
    region."""
    highlight = request.highlight
    if highlight is None:
        return request
    lowered = replace(highlight, strength=1 / highlight.strength, guidance=1.0)
    return replace(request, highlight=lowered)


class Guided(LogitsProcessor):
    """Classifier-free guidance in a batch whose second half holds the other branches of the first.

    log p = log p2 + g (log p1 - log p2), with one g for each row (Prompt Highlighter,
    arXiv 2312.04302, equation 3). Both halves get the same scores, so that they continue with the
    same token.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = scales

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(2 B, V)` -> `(2 B, V)`."""
        looking, other = scores.float().log_softmax(-1).chunk(2)
        scale = torch.tensor(self.scales, device=scores.device)[:, None]
        guided = other + scale * (looking - other)
        # a token that other processors forbid would be infinity minus infinity here
        guided = guided.masked_fill(looking.isneginf(), -torch.inf)
        return guided.repeat(2, 1).to(scores.dtype)
