"""What has been told of an answer's text while it is decoded."""

from __future__ import annotations

from collections.abc import Callable

from cof.errors import CofError
from cof.types import OnText, Thought


def for_one(listener: Callable[[str], object] | None) -> OnText | None:
    """The listener of a batch of one query."""
    return None if listener is None else lambda _, piece: listener(piece)


class SentText:
    """The text of one answer, told once even if the model is run for it several times.

    Example: the second run, in another batch, goes on where the first one stopped.

        >>> told = []
        >>> text = SentText(told.append)
        >>> text.grow("a red"); text.begin(); text.grow("a"); text.grow(" red star")
        >>> text.finish("a red star.")
        >>> told
        ['a red', ' star', '.']
    """

    def __init__(
        self,
        on_text: Callable[[str], object],
        on_thought: Callable[[str], object] | None = None,
    ) -> None:
        self._on_text = on_text
        self._thoughts = on_thought and SentText(on_thought)
        self._sent = self._text = ""  # in all, and in this run

    def begin(self) -> None:
        """The model is run for it, perhaps again."""
        self._text = ""
        if self._thoughts:
            self._thoughts.begin()

    def grow(self, piece: str) -> None:
        """The next piece of this run; thoughts go to their own listener."""
        if not isinstance(piece, Thought):
            self._send(self._text + piece)
        elif self._thoughts:
            self._thoughts.grow(str(piece))

    def finish(self, text: str) -> None:
        """The whole text is known.

        Raises:
            CofError: an earlier run has sent another one.
        """
        self._send(text)
        if self._sent != text:
            raise CofError(
                "The model was run again for this answer and now gives another text than the one "
                "sent before: ask again."
            )

    def _send(self, text: str) -> None:
        self._text = text
        if len(text) > len(self._sent) and text.startswith(self._sent):
            piece, self._sent = text[len(self._sent) :], text
            self._on_text(piece)
