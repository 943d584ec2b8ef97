"""The family that is assumed for a model of an unknown type; `probing.probe` checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cof.errors import CofError
from cof.families.family import Family


def assume_family(config: Any) -> Family:
    """The family of a model of an unknown type, before it is probed.

    Raises:
        CofError: the config lacks what every such model has; the message says what.
    """
    missing = [
        f"no {name}"
        for name in ("image_token_id", "vision_config", "text_config")
        if getattr(config, name, None) is None
    ]
    if missing:
        raise unsupported(config, f"its config.json has {' and '.join(missing)}")
    return Family(
        name=f"unknown ({config.model_type})",
        model_types=(config.model_type,),
        token_means=unknown_tokens,
        prefill=False,
    )


def unknown_tokens(pixels: Mapping[str, Any], config: Any) -> NDArray[np.float64]:
    """Marks a family that is not probed yet."""
    raise RuntimeError("an assumed family has no raster of image tokens before it is probed")


def unsupported(config: Any, reason: str) -> CofError:
    """The error that refuses a model of an unknown type."""
    return CofError(
        f"Models of type {config.model_type!r} are not supported, and the fallback for unknown "
        f"models cannot take this one: {reason}; `cof models` lists those that are supported."
    )
