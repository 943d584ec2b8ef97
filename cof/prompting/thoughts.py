"""What a reasoning model thinks before it answers, told apart from its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TAGS = (
    ("<think>", "</think>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("[THINK]", "[/THINK]"),
)
"""The tags between which models think (Qwen, GLM, InternVL; Kimi; Mistral)."""


def tags_in(template: str) -> tuple[str, str] | None:
    """The tags that a chat template writes; None: the model does not think."""
    return next((tags for tags in TAGS if tags[1] in template), None)


def decode(tokenizer: Any, ids: Sequence[int], **options: Any) -> str:
    """The text of tokens without special ones, but with Mistral's tags, which are such."""
    text, start = "", 0
    for at, name in enumerate(map(tokenizer.convert_ids_to_tokens, ids)):
        if name in TAGS[-1]:
            text += decode(tokenizer, ids[start:at], **options) + name
            start = at + 1
    return text + str(tokenizer.decode(ids[start:], skip_special_tokens=True, **options))


@dataclass
class Thoughts:
    """Splits one reply, as its text grows, into thoughts and answer.

    Only what stands between the tags at the reply's beginning is thought.

    Example:
        >>> thoughts = Thoughts(("<think>", "</think>"))
        >>> [thoughts.feed(piece) for piece in ("<thi", "nk> A bo", "x? </th", "ink>", " Red.")]
        [('', ''), ('A bo', ''), ('x?', ''), ('', ''), ('', 'Red.')]
    """

    tags: tuple[str, str]
    inside: bool = False  # whether the prompt has written the first tag
    _rest: str = field(default="", init=False)
    _begun: bool = field(default=False, init=False)
    _told: bool = field(default=False, init=False)

    def feed(self, piece: str, *, done: bool = False) -> tuple[str, str]:
        """The next piece of the reply, perhaps the last -> what is new of thoughts and answer."""
        self._rest += piece
        opens, closes = self.tags
        if not self._begun:
            text = self._rest.lstrip()
            if text.startswith(opens):
                self.inside, self._rest = True, text[len(opens) :]
            elif not done and opens.startswith(text):
                return "", ""
            self._begun = True
        if not self.inside:
            return "", self._take(self._rest)
        end = self._rest.find(closes)
        if end < 0:
            held = 0 if done else overlap(self._rest, closes)
            return self._take(self._rest[: len(self._rest) - held].rstrip()), ""
        thought = self._take(self._rest[:end].rstrip())
        self._rest = self._rest.lstrip()[len(closes) :]
        self.inside = self._told = False
        return thought, self._take(self._rest)

    def _take(self, text: str) -> str:
        """The beginning of the rest, without white space where nothing was told before."""
        self._rest = self._rest[len(text) :]
        if not self._told:
            text = text.lstrip()
        self._told = self._told or bool(text)
        return text


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of a text may be the beginning of a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
