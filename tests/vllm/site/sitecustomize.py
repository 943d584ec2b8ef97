"""Loaded by every Python process of `.venv-vllm`, as vLLM starts some of its own, and `.venv-newest`.

PyPI's torchvision is built for a torch with CUDA. Beside torch for CPUs it cannot load its
operators, and fails at import unless somebody has said what they look like. None of them is run.
"""

from importlib.metadata import version

if version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu"):
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
