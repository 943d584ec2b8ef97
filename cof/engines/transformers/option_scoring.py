"""How likely a model is to give a reply: benchmarks that compare their options' texts need it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from cof.families.chat import Chat
from cof.families.special_tokens import token_ids
from cof.types import Generation


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

    def encode(text: str) -> list[int]:
        return token_ids(tokenizer, text, add_special_tokens=False)

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
