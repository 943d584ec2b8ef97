"""The embedded models: a small LLaVA trained from scratch on scenes that this package draws.

`tiny` was trained to the end; `tiny-early` is the same training left off after an eighth of it,
when it finds and reads most things but not all: a model on which a way to look can show what it
is good for.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

EMBEDDED = {"tiny": "checkpoint", "tiny-early": "early"}


def checkpoint_path(name: str = "tiny") -> Path:
    """The folder of an embedded checkpoint (hub layout: config, weights, tokenizer, processor).

    Args:
        name: a key of `EMBEDDED`.
    """
    return Path(__file__).parent / EMBEDDED[name]


def resolved(model: str | PathLike[str] | None) -> str | PathLike[str]:
    """The folder of an embedded model for its name (None: `tiny`); anything else as it is, a
    model's folder of the same name included."""
    if model is None:
        return checkpoint_path()
    known = str(model) in EMBEDDED and not (Path(model) / "config.json").exists()
    return checkpoint_path(str(model)) if known else model
