"""Pictures of an answer: where the model looked, and what its attention did."""

from __future__ import annotations

from cof.viz.animation import save_animation
from cof.viz.page import check_path, draw, same_answer, save_overlay
from cof.viz.panels import Tokens, heat, overlay

__all__ = [
    "Tokens",
    "check_path",
    "draw",
    "heat",
    "overlay",
    "same_answer",
    "save_animation",
    "save_overlay",
]
