"""How to make the model look there: a focus edits a request (stage 2 of the paper).

To add one: a file with a frozen dataclass (`cof.focuses.base.Focus`), and its place in `FOCUSES`.
"""

from __future__ import annotations

from cof.focuses.attention import Attention, Contrast, Soft, Unchanged
from cof.focuses.base import Focus
from cof.focuses.image import Beside, Crop, Overlay

FOCUSES: dict[str, type[Focus]] = {
    each.name: each for each in (Attention, Soft, Contrast, Crop, Beside, Overlay, Unchanged)
}

__all__ = [
    "FOCUSES",
    "Attention",
    "Beside",
    "Contrast",
    "Crop",
    "Focus",
    "Overlay",
    "Soft",
    "Unchanged",
]
