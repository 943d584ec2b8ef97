"""CoF: make a vision-language model look closer, without training it (arXiv 2412.16869).

from cof import CoF

cof = CoF.from_pretrained()  # the embedded model; or a hub id, or a local path
print(cof("photo.jpg", "What digit is on the red star?").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# Names are imported on first use, so that `import cof` loads neither torch nor numpy.
_HOME = {
    "Answer": "cof.pipeline",
    "CoF": "cof.pipeline",
    "CofError": "cof.errors",
    "CofWarning": "cof.errors",
    "Decoding": "cof.types",
    "Query": "cof.pipeline",
    "Region": "cof.geometry.regions",
    "Settings": "cof.settings",
    "preset": "cof.settings",
}

__all__ = [
    "Answer",
    "CoF",
    "CofError",
    "CofWarning",
    "Decoding",
    "Query",
    "Region",
    "Settings",
    "__version__",
    "preset",
]

if TYPE_CHECKING:
    from cof.errors import CofError, CofWarning
    from cof.geometry.regions import Region
    from cof.pipeline import Answer, CoF, Query
    from cof.settings import Settings, preset
    from cof.types import Decoding


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'cof' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
