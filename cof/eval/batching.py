"""Batches of like questions: a batch is padded to its longest question, and padding is work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cof.engines.base import AttentionReader, Engine
from cof.eval.examples import Embedded, Example
from cof.eval.images import read_image_wh
from cof.geometry.regions import EVERYTHING
from cof.types import Highlight

CountTokens = Callable[[Example], int]
"""The number of image tokens of a question's image, or any measure that grows with it."""


def like_batches(
    examples: Sequence[Example], batch_size: int, count_tokens: CountTokens
) -> Iterator[list[Example]]:
    """All questions in batches: images of few tokens first, of equals those with short prompts.

    Questions about one image stay together, so that it is encoded for as few batches as before.
    The order depends on nothing but the questions.

    Args:
        examples: a window of the task: however many may be exchanged between batches.
        batch_size: questions in a batch; the last one may have fewer.
        count_tokens: asked once for each image.

    Example:
        >>> def ask(id, image, prompt):
        ...     return Example(id, Path(image), prompt, "")
        >>> examples = [ask("1", "a", "??????"), ask("2", "b", "?"), ask("3", "a", "??"),
        ...             ask("4", "c", "??")]
        >>> tokens = {"a": 10, "b": 40, "c": 10}
        >>> batches = like_batches(examples, 2, lambda e: tokens[str(e.image)])
        >>> [[e.id for e in batch] for batch in batches]
        [['4', '3'], ['1', '2']]
    """
    by_image: dict[Path | Embedded, list[Example]] = {}
    for example in examples:
        by_image.setdefault(example.image, []).append(example)
    ordered = sorted(
        by_image.values(),
        key=lambda group: (count_tokens(group[0]), max(len(example.prompt) for example in group)),
    )
    flat = [e for group in ordered for e in sorted(group, key=lambda e: len(e.prompt))]
    for start in range(0, len(flat), batch_size):
        yield flat[start : start + batch_size]


def image_token_counter(engine: Engine) -> CountTokens:
    """Measures images for an engine: in its tokens, or in pixels if it does not tell."""

    def count(example: Example) -> int:
        wh = read_image_wh(example.image)
        if wh is None or not isinstance(engine, AttentionReader):
            return wh[0] * wh[1] if wh else 0
        return int(engine.token_mask(wh, Highlight(EVERYTHING, 2.0)).size)

    return count
