"""CoF as a model of lmms-eval 0.7: `python -m lmms_eval --model cof --model_args pretrained=...`.

lmms-eval finds it by the entry point `lmms_eval.models` of this package.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model's name, and where lmms-eval finds its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="cof", chat_class_path="cof.lmms.model.CoFModel")
