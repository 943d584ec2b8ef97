"""The family that is assumed for a model of an unknown type, until it was probed as it loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cof.errors import CofError
from cof.families import frames
from cof.families.family import Family
from cof.prompting.dialects import LLAVA


def assumed(config: Any) -> Family:
    """The family of a model of an unknown type, still to be `probed`.

    Raises:
        CofError: the config lacks what every such model has; the message says what.
    """
    missing = [
        f"no {name}"
        for name in ("image_token_id", "vision_config", "text_config")
        if getattr(config, name, None) is None
    ]
    if missing:
        raise refused(config, f"its config.json has {' and '.join(missing)}")
    return Family(
        name=f"unknown ({config.model_type})",
        model_types=(config.model_type,),
        adapter="decoder",
        dialect=LLAVA,
        brightness=unknown_tokens,
        frame=frames.whole_image,
    )


def unknown_tokens(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    raise RuntimeError("an assumed family has no raster before it was probed")


def refused(config: Any, reason: str) -> CofError:
    return CofError(
        f"Models of type {config.model_type!r} are not supported, and the fallback for unknown "
        f"models cannot take this one: {reason}; `cof models` lists those that are supported."
    )
