"""Tokens that arrive one after another, as pieces of text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cof.families.chat import Chat
from cof.prompting.thoughts import decode
from cof.types import Generation, OnText, Request, Thought

_OPEN = re.compile(r"(\s|\ufffd| n'?| '[rv]?)\Z")
"""An end of text that may still change: white space, which is stripped at a reply's end; a
character without its last bytes; and the beginning of what tokenizers that clean up draw to the
word before it (`do n't` -> `don't`)."""


class TextStream:
    """The text of one reply, piece by piece.

    The pieces joined are `tokenizer.decode(ids, skip_special_tokens=True).strip()` of all tokens.

    Example: bytes of one character are held back, and so is white space.

        >>> class Bytes:
        ...     all_special_ids = ()
        ...     def convert_ids_to_tokens(self, id): return chr(id)
        ...     def decode(self, ids, **_): return bytes(ids).decode(errors="replace")
        >>> stream, ids = TextStream(Bytes()), list(" 5 €".encode())
        >>> [stream.feed(ids[:n]) for n in range(1, 6)], stream.feed(ids, done=True)
        (['', '5', '', '', ''], ' €')
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._decode = tokenizer, partial(decode, tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)
        self._start = self._end = 0  # the tokens whose text is the last piece

    def feed(self, ids: Sequence[int], *, done: bool = False) -> str:
        """The text by which the reply has grown for certain; empty: more tokens are needed.

        Args:
            ids: all tokens of the reply so far, its end token left out.
            done: whether there are no more.
        """
        # Only the end is decoded; the last piece stands before it, since a decoder may treat the
        # first token otherwise than later ones.
        last, new = ids[self._start : self._end], ids[self._start :]
        if not done and (not ids or self._may_change(ids[-1], new)):
            return ""
        piece = self._decode(new)[len(self._decode(last)) :]
        if not piece:
            return ""
        if self._end == 0:
            piece = piece.lstrip()
        self._start, self._end = self._end, len(ids)
        return piece.rstrip()

    def _may_change(self, last: int, ids: Sequence[int]) -> bool:
        """Whether the text of tokens may be another once more tokens follow the last one.

        A run of bytes such as `<0xE2>` is decoded as a whole, and special tokens do not end it.
        """
        if last in self._special or str(self._tokenizer.convert_ids_to_tokens(last))[:3] == "<0x":
            return True
        return bool(_OPEN.search(self._decode(ids, clean_up_tokenization_spaces=False)))


def apart_from_thoughts(
    chat: Chat,
    requests: Sequence[Request],
    on_text: OnText | None,
    generate: Callable[[OnText | None], list[Generation]],
) -> list[Generation]:
    """The replies of a model that may think first: their thoughts are `Generation.reasoning`, and
    `on_text` gets these as `Thought`s.

    Args:
        generate: gets the listener of the whole replies.
    """
    if chat.think_tags is None:
        return generate(on_text)
    streams = list(map(chat.thoughts, requests))

    def tell(place: int, piece: str, *, done: bool = False) -> None:
        thoughts = streams[place]
        if on_text is None or thoughts is None:
            return
        thought, text = thoughts.feed(piece, done=done)
        if thought:
            on_text(place, Thought(thought))
        if text:
            on_text(place, text)

    replies = generate(None if on_text is None else tell)
    for place in range(len(requests)):
        tell(place, "", done=True)
    return [_split(chat, *each) for each in zip(requests, replies, strict=True)]


def _split(chat: Chat, request: Request, reply: Generation) -> Generation:
    thoughts = chat.thoughts(request)
    if thoughts is None:
        return reply
    closes, decode = thoughts.tags[1], chat.processor.tokenizer.decode
    reasoning, text = thoughts.feed(reply.text, done=True)
    start = 0
    if closes in reply.text and reasoning:
        counts = range(len(reply.token_ids) + 1)
        start = bisect_left(counts, True, key=lambda n: closes in decode(reply.token_ids[:n]))
    elif reasoning:
        start = len(reply.token_ids)
    return replace(reply, text=text.strip(), reasoning=reasoning.strip(), start=start)


class BatchStreamer:
    """The replies of a batch as text while transformers' `generate` chooses their tokens: its
    `streamer`.

    Args:
        tokenizer: the model's.
        ends: the tokens that end a reply.
        places: what `on_text` gets as the place of each row; rows after them (the other branches of
            guidance) are not told of.
        on_text: gets the pieces.
    """

    def __init__(
        self, tokenizer: Any, ends: Container[int], places: Sequence[int], on_text: OnText
    ) -> None:
        self._ends, self._on_text = ends, on_text
        self._open = {row: (place, TextStream(tokenizer)) for row, place in enumerate(places)}
        self._ids: list[list[int]] = [[] for _ in places]

    def put(self, value: Any) -> None:
        """The prompts, a `(B, L)` tensor, and then the tokens of each step, `(B,)`."""
        for row, token in enumerate(value.tolist() if value.dim() == 1 else ()):
            if row in self._open:
                done = token in self._ends
                self._ids[row] += [] if done else [token]
                self._tell(row, done)

    def end(self) -> None:
        """What was held back of the replies that have no end token."""
        for row in list(self._open):
            self._tell(row, True)

    def _tell(self, row: int, done: bool) -> None:
        place, stream = self._open[row]
        if done:
            del self._open[row]
        if piece := stream.feed(self._ids[row], done=done):
            self._on_text(place, piece)
