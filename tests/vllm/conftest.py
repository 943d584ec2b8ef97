"""The environment of the vLLM tests, which `make test-vllm` runs in a virtual one of their own."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
collect_ignore = ["site"]  # of all processes of this environment, not tests

_found = find_spec("vllm")
if _found is not None and _found.origin is not None:  # else it is this folder
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # scheduler and worker in this process
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TRITON_INTERPRET": "1",  # read when Triton is imported
        "TORCHDYNAMO_DISABLE": "1",  # vLLM compiles its sampler, for some ten seconds
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # vLLM's own are not errors
