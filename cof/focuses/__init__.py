"""How to make the model look there: a focus edits a request (stage 2 of the paper).

To add one: a file with a frozen dataclass (`cof.focuses.base.Focus`), and a line in `FOCUSES`.
"""

from __future__ import annotations

from cof.focuses.attention import AttentionFocus, ContrastFocus, NoFocus, SoftFocus
from cof.focuses.base import Focus
from cof.focuses.crop import BesideFocus, CropFocus
from cof.focuses.overlay import OverlayFocus

__all__ = [
    "FOCUSES",
    "AttentionFocus",
    "BesideFocus",
    "ContrastFocus",
    "CropFocus",
    "Focus",
    "NoFocus",
    "OverlayFocus",
    "SoftFocus",
]

FOCUSES: dict[str, type[Focus]] = {
    "attention": AttentionFocus,
    "soft": SoftFocus,
    "contrast": ContrastFocus,
    "crop": CropFocus,
    "beside": BesideFocus,
    "overlay": OverlayFocus,
    "none": NoFocus,
}
