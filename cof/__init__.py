"""CoF: make a vision-language model look closer, without training it (arXiv 2412.16869).

from cof import CoF

cof = CoF.from_pretrained()  # the embedded model; or a hub id, or a local path
print(cof("photo.jpg", "What digit is on the red star?").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.4.0"

# Names are imported on first use, so that `import cof` loads neither torch nor numpy.
_HOME = {
    "cof.answer": "Answer",
    "cof.errors": "CofError CofWarning",
    "cof.focuses": "Attention Beside Contrast Crop Overlay Soft Unchanged",
    "cof.geometry.regions": "Region",
    "cof.grounders": "Detector Given Logits Nowhere Prompt RelativeAttention Relevance Whole",
    "cof.looking": "look look_args",
    "cof.pipeline": "CoF",
    "cof.presets": "preset",
    "cof.query": "Query",
    "cof.settings": "Settings",
    "cof.types": "Decoding",
}
_MODULES = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [*_MODULES, "__version__"]

if TYPE_CHECKING:
    from cof.answer import Answer as Answer
    from cof.errors import CofError as CofError
    from cof.errors import CofWarning as CofWarning
    from cof.focuses import Attention as Attention
    from cof.focuses import Beside as Beside
    from cof.focuses import Contrast as Contrast
    from cof.focuses import Crop as Crop
    from cof.focuses import Overlay as Overlay
    from cof.focuses import Soft as Soft
    from cof.focuses import Unchanged as Unchanged
    from cof.geometry.regions import Region as Region
    from cof.grounders import Detector as Detector
    from cof.grounders import Given as Given
    from cof.grounders import Logits as Logits
    from cof.grounders import Nowhere as Nowhere
    from cof.grounders import Prompt as Prompt
    from cof.grounders import RelativeAttention as RelativeAttention
    from cof.grounders import Relevance as Relevance
    from cof.grounders import Whole as Whole
    from cof.looking import look as look
    from cof.looking import look_args as look_args
    from cof.pipeline import CoF as CoF
    from cof.presets import preset as preset
    from cof.query import Query as Query
    from cof.settings import Settings as Settings
    from cof.types import Decoding as Decoding


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'cof' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
