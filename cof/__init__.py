"""CoF: make a vision-language model look closer, without training it (arXiv 2412.16869).

from cof import CoF

cof = CoF.from_pretrained()  # the embedded model; or a hub id, or a local path
print(cof("photo.jpg", "What digit is on the red star?").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.3.0"

# Names are imported on first use, so that `import cof` loads neither torch nor numpy.
_HOME = {
    "cof.answer": ("Answer",),
    "cof.errors": ("CofError", "CofWarning"),
    "cof.focuses": ("Attention", "Beside", "Contrast", "Crop", "Overlay", "Soft", "Unchanged"),
    "cof.geometry.regions": ("Region",),
    "cof.grounders": (
        "Detector",
        "Given",
        "Logits",
        "Nowhere",
        "Prompt",
        "RelativeAttention",
        "Relevance",
        "Whole",
    ),
    "cof.pipeline": ("CoF",),
    "cof.presets": ("preset",),
    "cof.query": ("Query",),
    "cof.settings": ("Settings",),
    "cof.types": ("Decoding",),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Answer",
    "Attention",
    "Beside",
    "CoF",
    "CofError",
    "CofWarning",
    "Contrast",
    "Crop",
    "Decoding",
    "Detector",
    "Given",
    "Logits",
    "Nowhere",
    "Overlay",
    "Prompt",
    "Query",
    "Region",
    "RelativeAttention",
    "Relevance",
    "Settings",
    "Soft",
    "Unchanged",
    "Whole",
    "__version__",
    "preset",
]

if TYPE_CHECKING:
    from cof.answer import Answer
    from cof.errors import CofError, CofWarning
    from cof.focuses import Attention, Beside, Contrast, Crop, Overlay, Soft, Unchanged
    from cof.geometry.regions import Region
    from cof.grounders import (
        Detector,
        Given,
        Logits,
        Nowhere,
        Prompt,
        RelativeAttention,
        Relevance,
        Whole,
    )
    from cof.pipeline import CoF
    from cof.presets import preset
    from cof.query import Query
    from cof.settings import Settings
    from cof.types import Decoding


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'cof' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
