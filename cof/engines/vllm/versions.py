"""The versions of vLLM whose insides we know."""

from __future__ import annotations

import warnings
from importlib import import_module

from cof.errors import CofError, CofWarning

TESTED = ("0.32",)
"""Minor versions that `tests/vllm` has been run with; newer ones start if the self-test passes."""


def is_tested() -> bool:
    """Whether the vLLM of this environment is one of them."""
    from vllm import __version__

    return ".".join(__version__.split(".")[:2]) in TESTED


def check_version() -> None:
    """Hook into vLLM, with a note if its version is not known.

    Raises:
        CofError: vLLM is missing, cannot be loaded, or does not pass the self-test (`plugin.hook`).
    """
    try:
        from vllm import __version__
    except ImportError as error:
        raise CofError("The vLLM engine needs vLLM: pip install 'cof[vllm]'.") from error
    try:
        import_module("cof.engines.vllm.plugin").hook()
    except Exception as error:  # whatever has become of names that we know
        if "torchvision::" in str(error):
            raise CofError(
                "vLLM needs torchvision, and the one that is installed was built for another "
                "torch: install both from one index, such as pip install torch torchvision "
                "--index-url https://download.pytorch.org/whl/cpu."
            ) from error
        raise CofError(
            f"vLLM {__version__} does not pass our self-test ({error}): install one that does, "
            "pip install 'cof[vllm]'."
        ) from error
    if not is_tested():
        warnings.warn(
            f"vLLM {__version__} is none of those that cof was tested with "
            f"({', '.join(TESTED)}); its self-test has passed.",
            CofWarning,
            stacklevel=2,
        )
