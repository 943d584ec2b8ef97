"""Special tokens in text that users type: they are read as text.

A tokenizer reads `<image>`, `</s>` or `[INST]` as a special token wherever it stands. `escape` puts
a mark behind the first character of each one before the chat template is applied. `token_ids` cuts
the finished prompt at the marks and tokenizes the pieces, none of which holds a special token. Text
without special tokens is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AddedToken

from cof.options import check_text

MARK = "\ufdd0"  # a noncharacter, which Unicode keeps out of interchanged text


class SpecialTokens:
    """The special tokens of a tokenizer, as they are spelled.

    Attributes:
        texts: the spellings.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(text for text in texts if len(text) > 1 and not text.isspace())

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, processor: Any = None, chat: str = "") -> SpecialTokens:
        """Those that the tokenizer marks as special, those that the processor names (Kosmos-2's
        tags are not marked), and those in which a chat is written.

        Args:
            tokenizer, processor: transformers' own.
            chat: a rendered chat without any text of a user.
        """
        values = vars(processor).values() if processor is not None else ()
        named = {
            str(text)
            for value in values
            for text in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(text, (str, AddedToken))
        }
        return cls(
            str(token)
            for token in [*tokenizer.added_tokens_decoder.values(), *tokenizer.all_special_tokens]
            if getattr(token, "special", True) or str(token) in named or str(token) in chat
        )

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """Matches the first character of a special token; group 1 is the whole token."""
        longest_first = sorted(self.texts, key=len, reverse=True)
        return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))})).", re.DOTALL)

    def escape(
        self, text: str, notation: Sequence[tuple[int, int]] = (), meant: Collection[str] = ()
    ) -> str:
        """The text with a mark in each special token.

        Args:
            text: what a user typed.
            notation: the spans of the text in which special tokens may be meant as such.
            meant: which of them may be.

        Raises:
            CofError: the text cannot be encoded.

        >>> SpecialTokens(["<image>"]).escape("What is <image>?").split(MARK)
        ['What is <', 'image>?']
        """
        check_text("The text", text)

        def mark(found: re.Match[str]) -> str:
            token, (start, end) = found[1], found.span(1)
            inside = any(first <= start and end <= last for first, last in notation)
            return found[0] if inside and token in meant else found[0] + MARK

        text = text.replace(MARK, "\ufffd")  # what Unicode puts in the place of a noncharacter
        return self._starts.sub(mark, text) if self.texts else text


def unescape(text: str) -> str:
    """The text without its marks."""
    return text.replace(MARK, "")


def token_ids(
    tokenizer: Any, text: str, *, add_special_tokens: bool = True, max_length: int | None = None
) -> list[int]:
    """The token ids of an escaped text, cut to `max_length` if it is given."""
    if MARK not in text:
        limit = {"truncation": max_length is not None, "max_length": max_length}
        return list(tokenizer(text, add_special_tokens=add_special_tokens, **limit)["input_ids"])
    body = [token for token, _ in _pieces(tokenizer, text)]
    before, after = _around(tokenizer) if add_special_tokens else ([], [])
    room = None if max_length is None else max_length - len(before) - len(after)
    return [*before, *body[:room], *after]


def token_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Where each token of an escaped text stands: `(start, end)` in the text without marks."""
    return [span for _, span in _pieces(tokenizer, text)]


def tokenize(
    tokenizer: Any, texts: Sequence[str], *, padding_side: str = "left", **options: Any
) -> dict[str, Tensor]:
    """B escaped texts as `input_ids` and `attention_mask`, `(B, L)`; `options` of `token_ids`."""
    rows = [torch.tensor(token_ids(tokenizer, text, **options)) for text in texts]
    seen = [torch.ones_like(row) for row in rows]
    pad = partial(pad_sequence, batch_first=True, padding_side=padding_side)
    ids = pad(rows, padding_value=tokenizer.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": pad(seen)}


def _pieces(tokenizer: Any, text: str) -> list[tuple[int, tuple[int, int]]]:
    """Each token of an escaped text and its span in the text without marks."""
    first, *rest = text.split(MARK)
    tokens = _read(tokenizer, first)
    start = len(first)
    for piece in rest:
        tokens += [
            (token, (a + start, b + start)) for token, (a, b) in _continued(tokenizer, piece)
        ]
        start += len(piece)
    return tokens


def _continued(tokenizer: Any, piece: str) -> list[tuple[int, tuple[int, int]]]:
    """The tokens of a text in the middle of another.

    Some tokenizers put a space before every text (SentencePiece), so it is read behind a character
    with which it shares no token, and that character's tokens are dropped.
    """
    for lead in ("\n", "|", ""):
        alone, whole = _read(tokenizer, lead), _read(tokenizer, lead + piece)
        if not lead or (alone and [t for t, _ in whole[: len(alone)]] == [t for t, _ in alone]):
            break
    n = len(lead)
    return [(token, (max(a - n, 0), b - n)) for token, (a, b) in whole[len(alone) :]]


def _read(tokenizer: Any, text: str) -> list[tuple[int, tuple[int, int]]]:
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(zip(read["input_ids"], read["offset_mapping"], strict=True))


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after every text."""
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(at for at in range(len(whole)) if whole[at : at + len(text)] == text)
    return whole[:at], whole[at + len(text) :]
