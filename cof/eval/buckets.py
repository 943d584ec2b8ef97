"""Batches of like questions: what is run together is padded to its longest, and padding is work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cof.engines.base import AttentionReader, Engine
from cof.eval.pictures import picture_wh
from cof.eval.tasks import Embedded, Example
from cof.geometry.regions import EVERYTHING
from cof.types import Highlight

TokensOf = Callable[[Example], int]
"""How many image tokens a question's picture is; any measure that grows with it will do."""


def buckets(
    examples: Sequence[Example], batch_size: int, tokens_of: TokensOf
) -> Iterator[list[Example]]:
    """All questions in batches: pictures of few tokens first, of equals those with short prompts.

    Questions about one picture stay together, so that it is encoded for as few batches as before.
    The order depends on nothing but the questions.

    Args:
        examples: a window of the task: however many may be exchanged between batches.
        batch_size: questions in a batch; the last one may have fewer.
        tokens_of: asked once for each picture.

    Example:
        >>> def ask(id, image, prompt):
        ...     return Example(id, Path(image), prompt, "")
        >>> rows = [ask("1", "a", "??????"), ask("2", "b", "?"), ask("3", "a", "??"),
        ...         ask("4", "c", "??")]
        >>> few = {"a": 10, "b": 40, "c": 10}
        >>> [[e.id for e in batch] for batch in buckets(rows, 2, lambda e: few[str(e.image)])]
        [['4', '3'], ['1', '2']]
    """
    pictures: dict[Path | Embedded, list[Example]] = {}
    for example in examples:
        pictures.setdefault(example.image, []).append(example)
    ordered = sorted(
        pictures.values(),
        key=lambda rows: (tokens_of(rows[0]), max(len(row.prompt) for row in rows)),
    )
    flat = [row for rows in ordered for row in sorted(rows, key=lambda row: len(row.prompt))]
    for start in range(0, len(flat), batch_size):
        yield flat[start : start + batch_size]


def image_tokens(engine: Engine) -> TokensOf:
    """Measures pictures for an engine: in its tokens, or in pixels if it does not tell."""

    def measure(example: Example) -> int:
        wh = picture_wh(example.image)
        if wh is None or not isinstance(engine, AttentionReader):
            return wh[0] * wh[1] if wh else 0
        return int(engine.token_mask(wh, Highlight(EVERYTHING, 2.0)).size)

    return measure
