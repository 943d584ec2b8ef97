"""How likely a model is to give a reply: what benchmarks do that compare their options' texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from cof.engines.base import Engine
from cof.engines.transformers.batching import grouped
from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.loading import out_of_memory
from cof.engines.transformers.special_tokens import token_ids
from cof.errors import CofError
from cof.types import Decoding, Generation, Request


def likelihoods(
    engine: Engine, requests: Sequence[Request], replies: Sequence[str]
) -> list[Generation]:
    """How likely each reply is to its request, highlights applied but for their guidance.

    Args:
        engine: one of transformers' models.
        requests: as for `Engine.generate`; the same one may come with several replies.
        replies: one for each.

    Returns:
        The replies as if the model had given them; unlike in `Engine.generate` the end token is
        among `token_ids` and `logprobs`, so that a reply is likely if it also ends there, with
        whichever of the model's end tokens.

    Raises:
        CofError: another kind of engine, or out of memory.
    """
    if not requests:
        return []
    if not isinstance(engine, TransformersEngine):
        raise CofError(f"{engine.name} cannot say how likely a reply is: use a transformers model.")
    requests = engine.showing(requests)
    encoded = engine._encoded(requests)
    draft = engine.prompt_builder.draft(requests, encoded)
    forced = _tokens(engine, replies)
    sizes = [n + len(of) for n, of in zip(draft.lengths, forced, strict=True)]
    groups = grouped(sizes, engine.max_batch_tokens)
    if len(groups) > 1:
        parts: dict[int, Generation] = {}
        for rows in groups:
            part = [replace(requests[row], image=encoded[row]) for row in rows]
            texts = [replies[row] for row in rows]
            parts |= zip(rows, likelihoods(engine, part, texts), strict=True)
        return [parts[row] for row in range(len(requests))]
    settings = engine._generation_config(Decoding(max_new_tokens=max(map(len, forced))))
    with torch.inference_mode(), out_of_memory():
        prompts = engine.prompt_builder.prompts(draft)
        prompts = engine.adapter.resume(prompts, engine._prefixes(encoded), beams=1)
        output = engine.adapter.generate(
            prompts,
            generation_config=settings,
            logits_processor=LogitsProcessorList([Forced(forced, settings.pad_token_id)]),
        )
    scores = [step.float().log_softmax(-1).cpu() for step in output.logits]  # those of the model
    found = []
    for row, (text, of) in enumerate(zip(replies, forced, strict=True)):
        written = [float(scores[at][row, token]) for at, token in enumerate(of[:-1])]
        end = scores[len(of) - 1][row, settings.eos_token_id].logsumexp(0)
        found.append(Generation(text, tuple(of), (*written, float(end))))
    return found


class Forced(LogitsProcessor):
    """Leaves one token to choose at each step: the next one of a row's reply, then padding."""

    def __init__(self, replies: Sequence[Sequence[int]], pad_id: int) -> None:
        self.replies, self.pad_id = replies, pad_id
        self._start = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(B, L)` so far and `(B, V)` scores -> `(B, V)`, minus infinity but for one column."""
        if self._start < 0:  # prompts may be embeddings, which count for nothing here
            self._start = input_ids.shape[1]
        at = input_ids.shape[1] - self._start
        wanted = [of[at] if at < len(of) else self.pad_id for of in self.replies]
        column = torch.tensor(wanted, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, column, 0.0)


def _tokens(engine: TransformersEngine, replies: Sequence[str]) -> list[list[int]]:
    """The tokens with which the model would write each reply, the end token last."""
    tokenizer = engine.processor.tokenizer
    end = engine._generation_config(Decoding()).eos_token_id[0]
    if engine.adapter.generator.config.is_encoder_decoder:
        before, lead = "", ""
    else:
        before = engine.prompt_builder.chat("")
        lead = "" if before[-1:].isspace() else " "

    base = token_ids(tokenizer, before, add_special_tokens=False)
    found = []
    for reply in replies:
        text = lead + engine.prompt_builder.special.escape(reply)
        whole = token_ids(tokenizer, before + text, add_special_tokens=False)
        # where the prompt's last token would take a part of the reply, the reply stands alone
        alone = whole[: len(base)] != base
        ids = token_ids(tokenizer, text, add_special_tokens=False) if alone else whole[len(base) :]
        found.append([*ids, end])
    return found
