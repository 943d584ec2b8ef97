"""vLLM's worker, which also follows the biases and maps of its requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from cof.engines.vllm.attention import Batch, BiasedAttention
from cof.engines.vllm.plugin import check_hashes

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as StockWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as StockWorker

BACKENDS = {
    AttentionBackendEnum.CPU_ATTN: "cof.engines.vllm.cpu.BiasedCPUBackend",
    AttentionBackendEnum.FLASH_ATTN: "cof.engines.vllm.gpu.BiasedFlashBackend",
    AttentionBackendEnum.TRITON_ATTN: "cof.engines.vllm.gpu.BiasedTritonBackend",
}
"""vLLM's attention -> ours, which is imported where it is used."""

UNQUANTIZED = ("auto", "float16", "bfloat16")
"""The KV caches whose numbers are as they were computed."""


class BiasedWorker(StockWorker):
    """Give it to vLLM as `worker_cls`, on CPUs and on GPUs."""

    def load_model(self, **kwargs: Any) -> None:
        """
        Raises:
            RuntimeError: the model's attention cannot be biased as it would run, or our plugin
                has not been loaded.
        """
        check_hashes()
        check_config(self.vllm_config)
        for backend, ours in BACKENDS.items():
            register_backend(backend, ours)
        super().load_model(**kwargs)
        for name, layer in self.compilation_config.static_forward_context.items():
            if isinstance(layer, Attention):
                check_layer(name, layer.impl)

    def compile_or_warm_up_model(self) -> Any:
        """
        Raises:
            RuntimeError: attention would be replayed as it was captured, without the bias.
        """
        made = super().compile_or_warm_up_model()
        layers = self.compilation_config.static_forward_context.values()
        known = all(layer.impl.captured for layer in layers if isinstance(layer, Attention))
        if self.compilation_config.cudagraph_mode.has_full_cudagraphs() and not known:
            raise RuntimeError(
                "cof: vLLM has captured CUDA graphs without the bias: start it with "
                "compilation_config={'cudagraph_mode': 'PIECEWISE'}."
            )
        return made

    @cached_property
    def batch(self) -> Batch:
        """The biased requests."""
        return Batch(lambda common: request_ids(self.model_runner, common))

    def execute_model(self, scheduler_output: Any) -> Any:
        with self.batch.step(scheduler_output), without_graphs(self.model_runner, self.batch.maps):
            return super().execute_model(scheduler_output)

    def take_map(self, name: str) -> dict[int, bytes]:
        """What this worker has of a map, which it then forgets: its heads' part by layer."""
        kept = self.batch.kept.pop(name, None)
        found = {} if kept is None else kept.found
        return {layer: part.cpu().numpy().tobytes() for layer, part in found.items()}


@contextmanager
def without_graphs(model_runner: Any, maps: Any) -> Iterator[None]:
    """No CUDA graphs inside if there are maps, which are read as attention is called."""
    # of vLLM's model runner V1 or V2
    graphs = getattr(model_runner, "cudagraph_dispatcher", None) or model_runner.cudagraph_manager
    flag = "keys_initialized" if hasattr(graphs, "keys_initialized") else "_graphs_captured"
    ready = getattr(graphs, flag)
    setattr(graphs, flag, ready and not maps)
    try:
        yield
    finally:
        setattr(graphs, flag, ready)


def request_ids(model_runner: Any, common: Any) -> list[str]:
    """The request of each row of a `CommonAttentionMetadata`, in vLLM's model runner V1 or V2."""
    if common.req_idx is None:  # V1 orders them in one place
        ids: list[str] = model_runner.input_batch.req_ids
        return ids
    return [model_runner.req_states.index_to_req_id[index] for index in common.req_idx]


def check_config(config: Any) -> None:
    """
    Raises:
        RuntimeError: a `VllmConfig` asks for what the bias does not know.
    """
    parallel = config.parallel_config
    unknown = {
        "speculative decoding": config.speculative_config is not None,
        "KV transfer": config.kv_transfer_config is not None,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or parallel.prefill_context_parallel_size > 1,
        "dual batch overlap": parallel.use_ubatching,
        "shared KV fast prefill": config.cache_config.kv_sharing_fast_prefill,
    }
    for what in filter(unknown.__getitem__, unknown):
        raise RuntimeError(f"cof: attention cannot be biased under {what}: switch it off.")
    whole = config.scheduler_config.disable_chunked_mm_input
    if config.model_config.is_mm_prefix_lm and not whole:
        raise RuntimeError(
            "cof: this model's image tokens attend to all of their image, which must not be "
            "computed in parts: start vLLM with disable_chunked_mm_input=True."
        )


def check_layer(name: str, attention: Any) -> None:
    """
    Raises:
        RuntimeError: a layer's attention is not ours, or does what ours does not.
    """
    if not isinstance(attention, BiasedAttention):
        kind = type(attention).__name__
        raise RuntimeError(
            f"cof: {name} has vLLM's {kind}, whose scores cannot be biased: on GPUs, start vLLM "
            "with attention_backend='FLASH_ATTN' or 'TRITON_ATTN'."
        )
    unknown = {
        "a soft cap of scores": attention.logits_soft_cap,
        "ALiBi": attention.alibi_slopes is not None,
        "attention sinks": attention.sinks is not None,
        "a quantized KV cache": attention.kv_cache_dtype not in UNQUANTIZED,
    }
    for what in filter(unknown.__getitem__, unknown):
        raise RuntimeError(f"cof: {name} has {what}, which cannot be biased.")
