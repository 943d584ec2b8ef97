"""The embedded models: a small LLaVA trained from scratch on scenes that this package draws.

`tiny` was trained to the end. `tiny-early` is a checkpoint after an eighth of the same training,
when the model finds and reads most things but not all, so that looking closer can show an effect.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

EMBEDDED = {"tiny": "checkpoint", "tiny-early": "early"}


def checkpoint_path(name: str = "tiny") -> Path:
    """The folder of an embedded checkpoint (hub layout: config, weights, tokenizer, processor)."""
    return Path(__file__).parent / EMBEDDED[name]


def resolve_model(model: str | PathLike[str] | None) -> str | PathLike[str]:
    """The folder of an embedded model, given its name (None: `tiny`), unless a folder of that name
    holds a model; any other hub id or path unchanged."""
    if model is None:
        return checkpoint_path()
    known = str(model) in EMBEDDED and not (Path(model) / "config.json").exists()
    return checkpoint_path(str(model)) if known else model
