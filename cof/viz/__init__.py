"""Pictures of an answer: where the model looked, and what its attention did."""

from __future__ import annotations

from cof.viz.animation import save_animation
from cof.viz.page import draw, save_overlay

__all__ = ["draw", "save_animation", "save_overlay"]
