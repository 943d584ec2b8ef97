"""The replies of a batch as text while transformers' `generate` chooses their tokens."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from cof.engines.text_stream import TextStream
from cof.types import OnText


class BatchStreamer(BaseStreamer):
    """What `generate` takes as its `streamer`.

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

    def put(self, value: Tensor) -> None:
        """The prompts, `(B, L)`, and then the tokens of each step, `(B,)`."""
        if value.dim() > 1:
            return
        for row, token in enumerate(value.tolist()):
            if row not in self._open:
                continue
            if token in self._ends:
                self._tell(row, done=True)
            else:
                self._ids[row].append(token)
                self._tell(row)

    def end(self) -> None:
        """What was held back of the replies that have no end token."""
        for row in list(self._open):
            self._tell(row, done=True)

    def _tell(self, row: int, *, done: bool = False) -> None:
        place, stream = self._open[row]
        if done:
            del self._open[row]
        if piece := stream.feed(self._ids[row], done=done):
            self._on_text(place, piece)
