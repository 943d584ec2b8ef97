"""The versions of vLLM whose insides we know."""

from __future__ import annotations

from cof.errors import CofError

SUPPORTED = ("0.32",)
"""Minor versions that `tests/vllm` has been run with."""


def supported() -> bool:
    """Whether the vLLM of this environment is one of them."""
    from vllm import __version__

    return ".".join(__version__.split(".")[:2]) in SUPPORTED


def check_version() -> None:
    """
    Raises:
        CofError: vLLM is missing, or of another version.
    """
    try:
        from vllm import __version__
    except ImportError as error:
        raise CofError("The vLLM engine needs vLLM: pip install 'cof[vllm]'.") from error
    if not supported():
        raise CofError(
            f"vLLM {__version__} is not supported, only {', '.join(SUPPORTED)}: "
            "pip install 'cof[vllm]'."
        )
