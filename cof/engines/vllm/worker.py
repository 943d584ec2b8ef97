"""vLLM's worker, which also follows the biases of its requests."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vllm.model_executor.layers.attention import Attention
from vllm.v1.worker.cpu_worker import CPUWorker

from cof.engines.vllm.attention import Batch, BiasedAttention


class BiasedWorker(CPUWorker):
    """Give it to vLLM as `worker_cls`."""

    def load_model(self, **kwargs: Any) -> None:
        """
        Raises:
            RuntimeError: the model's attention cannot be biased.
        """
        super().load_model(**kwargs)
        for name, layer in self.compilation_config.static_forward_context.items():
            if isinstance(layer, Attention):
                check_layer(name, layer.impl)

    @cached_property
    def batch(self) -> Batch:
        """The biased requests."""
        return Batch(lambda common: self.model_runner.input_batch.req_ids)

    def execute_model(self, scheduler_output: Any) -> Any:
        with self.batch.step(scheduler_output):
            return super().execute_model(scheduler_output)


def check_layer(name: str, attention: Any) -> None:
    """
    Raises:
        RuntimeError: a layer's attention is not ours, or does what ours does not.
    """
    if not isinstance(attention, BiasedAttention):
        kind = type(attention).__name__
        raise RuntimeError(f"cof: {name} has vLLM's {kind}, whose scores cannot be biased.")
    unknown = {
        "a soft cap of scores": attention.logits_soft_cap,
        "ALiBi": attention.alibi_slopes is not None,
        "attention sinks": attention.sinks is not None,
        "an fp8 KV cache": attention.is_fp8_kv_cache,
    }
    for what, present in unknown.items():
        if present:
            raise RuntimeError(f"cof: {name} has {what}, which cannot be biased.")
