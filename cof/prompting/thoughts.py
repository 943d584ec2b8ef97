"""What a reasoning model thinks before it answers, told apart from its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

TAGS = (("<think>", "</think>"), ("\u25c1think\u25b7", "\u25c1/think\u25b7"))
"""The tags between which models think (Qwen, GLM, InternVL; Kimi)."""


def tags_in(template: str) -> tuple[str, str] | None:
    """The tags that a chat template writes; None: the model does not think."""
    return next((tags for tags in TAGS if tags[1] in template), None)


@dataclass
class Thoughts:
    """Splits one reply, as its text grows, into thoughts and answer.

    Only what stands between the tags at the reply's beginning is thought.

    Attributes:
        tags: where thoughts begin and end.
        inside: whether the reply begins within them, since the prompt has written the first tag.

    Example:
        >>> thoughts = Thoughts(("<think>", "</think>"))
        >>> [thoughts.feed(piece) for piece in ("<thi", "nk> A bo", "x? </th", "ink>", " Red.")]
        [('', ''), ('A bo', ''), ('x?', ''), ('', ''), ('', 'Red.')]
    """

    tags: tuple[str, str]
    inside: bool = False
    _rest: str = field(default="", init=False)
    _begun: bool = field(default=False, init=False)
    _told: bool = field(default=False, init=False)

    def feed(self, piece: str, *, done: bool = False) -> tuple[str, str]:
        """The next piece of the reply -> what is new of the thoughts, and of the answer.

        Args:
            done: whether the reply ends with it.
        """
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
