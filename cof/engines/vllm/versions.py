"""The versions of vLLM whose insides we know."""

from __future__ import annotations

import warnings

from cof.errors import CofError, CofWarning

OLDEST = (0, 32)
"""Older ones are refused."""

TESTED = ("0.32",)
"""Minor versions that `tests/vllm` has been run with; newer ones have to pass the self-test."""


def minor_version() -> str:
    """That of this environment's vLLM, such as 0.32."""
    from vllm import __version__

    return ".".join(__version__.split(".")[:2])


def known() -> bool:
    """Whether this environment's vLLM is old enough to be tested, and new enough."""
    found = minor_version()
    return found in TESTED
