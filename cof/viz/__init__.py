"""Pictures of an answer: where the model looked, and what its attention did."""

from __future__ import annotations

from cof.viz.page import draw, save_overlay

__all__ = ["draw", "save_overlay"]
