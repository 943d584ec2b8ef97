"""The GPU's attention without a GPU: vLLM runs it here with an interpreted kernel."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm.version")
pytest.importorskip("triton")

import torch
from checkpoints import checkpoint
from helpers import (
    HIGHLIGHTS,
    assert_equal,
    assert_same_maps,
    mixed_requests,
    reference_engine,
    vllm_engine,
)
from test_vllm_kernel import plain
from vllm import SamplingParams
from vllm.config import CompilationConfig, CUDAGraphMode
from vllm.v1.attention import selector
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from cof.engines.vllm import attention, gpu, maps, worker
from cof.engines.vllm.attention import Batch, biased_rows
from cof.engines.vllm.bias import PlacedBias
from cof.engines.vllm.gpu import (
    BiasedBuilder,
    BiasedFlashBackend,
    BiasedTritonBackend,
    TileBuffer,
)
from cof.engines.vllm.kernel import TILE, attend
from cof.errors import CofError


def test_vllm_with_the_interpreted_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {AttentionBackendEnum.CPU_ATTN: "interpreted.Backend"}
    monkeypatch.setattr(worker, "BACKENDS", ours)
    small = {"max_num_batched_tokens": 100, "max_num_seqs": 9, "block_size": 32}
    selector._cached_get_attn_backend.cache_clear()
    try:
        engine = vllm_engine(checkpoint("llava"), **small)
    finally:
        selector._cached_get_attn_backend.cache_clear()
    some = (None, *HIGHLIGHTS[3::3], HIGHLIGHTS[-1])
    requests = [request for request in mixed_requests(images=1) if request.highlight in some]
    reference = reference_engine(checkpoint("llava"))
    assert_equal(engine, reference, requests)
    assert_same_maps(engine, reference, requests)


def bias(start: int, values: list[float], **scope: tuple[int, ...]) -> PlacedBias:
    chosen = {"layers": None, "heads": None, **scope}
    return PlacedBias(np.array(values, dtype=np.float32), start, "digest", **chosen)


def step_of(lengths: list[int], queries: list[int], images: Any = None) -> SimpleNamespace:
    """A `CommonAttentionMetadata` of requests."""
    return SimpleNamespace(
        mm_req_doc_ranges=images,
        query_start_loc_cpu=torch.tensor([0, *np.cumsum(queries)]),
        seq_lens_cpu_upper_bound=torch.tensor(lengths),
        num_actual_tokens=sum(queries),
        num_reqs=len(queries),
    )


def test_rows_and_tiles_of_a_step() -> None:
    # the third is in the middle of its prompt, the last has not come to its bias
    queries = [30, 1, 80, 8]
    common = step_of([30, 50, 90, 8], queries)
    batch = Batch(lambda common: ["plain", "decoding", "prompt", "early"])
    batch.biases |= {
        "decoding": bias(3, [0, 0, 0, 1.5], heads=(3,)),
        "prompt": bias(12, [0] * 12 + [0.5], layers=(1,)),
        "early": bias(8, [0] * 4 + [2.0]),
    }
    assert biased_rows(common) is None  # outside a step
    with batch.step(SimpleNamespace(finished_req_ids=["gone"], scheduled_new_reqs=[])):
        rows = biased_rows(common) or []
    found = [(r.row, r.start, r.stop, r.position) for r in rows]
    assert found == [(1, 30, 31, 49), (2, 33, 111, 12)]
    buffer = TileBuffer(sum(queries), (2, 2), 2, "cpu")  # of a worker's heads 2 and 3
    place = buffer.tiles.data_ptr()
    packed = buffer.write(rows, sum(queries), 0)
    assert packed is not None
    assert packed.count == 1 + len(range(0, 78, TILE))
    assert packed.last_keys is None
    first, rest = [1, 30, 49, 1], [[2, 33 + at, 12 + at, min(TILE, 78 - at)] for at in (0, 32, 64)]
    assert packed.tiles[:4, :4].tolist() == [first, *rest]
    assert not packed.tiles[4:].any()
    packs = [buffer._bias(row.bias) for row in rows]
    assert packed.tiles[[0, 3], 4].tolist() == [pack.data_ptr() for pack in packs]
    assert packed.tiles[[0, 3], 5].tolist() == [4, 13]
    assert packs[0].tolist() == [0, 1, 0, 1, 0, 0, 0, 1.5]  # head 3 of both layers
    assert packs[1].tolist() == [0, 0, 1, 1, *[0] * 12, 0.5]
    # later steps leave nothing of earlier ones, at the same place
    again = buffer.write(rows[:1], 1, 0)
    assert again is not None
    assert (again.count, again.tiles[0, :4].tolist()) == (1, first)
    assert not again.tiles[1:].any()
    assert buffer.write([], 9, 0) is None
    assert not buffer.tiles.any()
    assert buffer.tiles.data_ptr() == place


def test_what_a_graph_captures_does_nothing_but_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up batches launch the kernel for all that a step could bias; a replay reads the step's
    tiles in their place."""
    monkeypatch.setattr(gpu, "get_tensor_model_parallel_rank", lambda: 0)
    made = type("Made", (BiasedBuilder, Stock), {})()
    batch = Batch(lambda common: ["a", "b", "c"])
    batch.biases["b"] = bias(2, [0, 0, 1.5])
    common = step_of([5, 6, 7], [1, 1, 1])
    captured = made.build(0, common).biased
    torch.manual_seed(0)
    query, cache = torch.randn(3, 2, 32), torch.randn(3, 2, 16, 64)
    table = torch.tensor([[2], [0], [1]], dtype=torch.int32)

    def replay() -> torch.Tensor:
        output = torch.full((3, 2, 32), 7.0)
        attend(query, cache, table, output, captured, layer=1, scale=0.3)
        return output

    assert captured.count == 3
    assert (replay() == 7).all()
    with batch.step(SimpleNamespace(finished_req_ids=[], scheduled_new_reqs=[])):
        step = made.build(0, common).biased
        output = replay()
    assert (step.count, step.tiles.data_ptr()) == (1, captured.tiles.data_ptr())
    assert (output[[0, 2]] == 7).all()
    keys, values = cache[0].transpose(0, 1)[:6].split(32, -1)
    added = torch.tensor([[0, 0, 1.5, 0, 0, 0]]).expand(2, -1)
    expected = plain(query[1:2], keys, values, added, torch.tensor([5]), scale=0.3)
    assert (output[1:2] - expected).abs().max() < 1e-5
    with batch.step(SimpleNamespace(finished_req_ids=["b"], scheduled_new_reqs=[])):
        assert made.build(0, common).biased is None
        assert (replay() == 7).all()


class Stock:
    """A stock builder of metadata, as far as ours needs it."""

    num_heads_q, device = 2, "cpu"
    model_config = SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=2))
    vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=77))

    def build(self, *args: Any) -> SimpleNamespace:
        return SimpleNamespace()


def test_queries_of_images_see_all_of_it() -> None:
    common = step_of([9, 12], [9, 3], images={0: [(2, 5)], 1: [(2, 5)]})
    batch = Batch(lambda common: ["biased", "plain"])
    batch.biases["biased"] = bias(3, [0, 0, 0, 1.0])
    with batch.step(SimpleNamespace(finished_req_ids=[], scheduled_new_reqs=[])):
        (row,) = biased_rows(common) or ()
        (whole,) = biased_rows(common, whole_images=False) or ()  # the plain one is past its image
    assert (row.position, row.last_keys.tolist()) == (3, [5, 5, 5, 6, 7, 8])
    assert (whole.position, whole.last_keys.tolist()) == (2, [5, 5, 5, 5, 6, 7, 8])
    packed = TileBuffer(12, (1, 1), 0, "cpu").write([row], 12, 0)
    assert packed is not None
    assert packed.last_keys.tolist() == [0, 0, 0, 5, 5, 5, 6, 7, 8, 0, 0, 0]


def test_maps_are_read_where_their_prompts_end_and_kept_until_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def new(name: str, image: int = 0) -> SimpleNamespace:
        order = SamplingParams(extra_args={maps.KEY: (name, image, [1])})
        position = SimpleNamespace(offset=2, length=3, is_embed=None)
        images = [SimpleNamespace(mm_position=position)]
        return SimpleNamespace(req_id=name, sampling_params=order, mm_features=images, prompt_len=9)

    monkeypatch.setattr(attention, "MOST", 2)
    batch = Batch(lambda common: ["a", "b", "c", "plain"])
    several = SimpleNamespace(
        finished_req_ids=[], scheduled_new_reqs=[*map(new, "abc"), new("d", image=1)]
    )
    with batch.step(several):
        biased_rows(step_of([9, 8, 10, 9], [4, 8, 2, 9]))  # the second is in parts
        assert [(row, token, of.name) for row, token, of in batch.reading] == [
            (0, 3, "a"),
            (2, 12, "c"),
        ]
        assert batch.maps["a"].keys.tolist() == [2, 3, 4]
    assert list(batch.kept) == ["b", "c"]
    with batch.step(SimpleNamespace(finished_req_ids=["a", "b"], scheduled_new_reqs=[])):
        assert list(batch.maps) == ["c"]
    half = np.arange(6, dtype=np.float32)
    found = maps.join_parts([{1: half.tobytes()}, {1: (half + 6).tobytes()}, {}], [1], 4)
    assert found.tolist() == np.arange(12).reshape(1, 4, 3).tolist()
    with pytest.raises(CofError, match="is full"):
        maps.join_parts([{}, {}], [1], 4)
    with pytest.raises(ValueError, match="validation error"):
        SamplingParams(extra_args={maps.KEY: "a"})


def test_rows_of_model_runner_2() -> None:
    runner = SimpleNamespace(req_states=SimpleNamespace(index_to_req_id={4: "a", 0: "b"}))
    common = SimpleNamespace(req_idx=np.array([0, 4]))
    assert worker.request_ids(runner, common) == ["b", "a"]


@pytest.mark.parametrize("backend", [BiasedFlashBackend, BiasedTritonBackend])
def test_steps_that_decode_are_in_cuda_graphs(backend: Any) -> None:
    config = CompilationConfig(mode=3, cudagraph_mode=CUDAGraphMode.FULL)
    config.set_splitting_ops_for_v1(all2all_backend="naive")
    support = backend.get_builder_cls().get_cudagraph_support(None, None)
    config.resolve_cudagraph_mode_and_sizes(support, backend.get_name())
    assert config.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE


@pytest.mark.parametrize(
    ("runner", "graphs"),
    [("cudagraph_dispatcher", CudagraphDispatcher), ("cudagraph_manager", CudaGraphManager)],
)
def test_maps_are_read_outside_of_cuda_graphs(runner: str, graphs: Any) -> None:
    made = graphs.__new__(graphs)
    flag = "keys_initialized" if graphs is CudagraphDispatcher else "_graphs_captured"
    setattr(made, flag, True)
    for wanted in ({}, {"a": None}):
        with worker.without_graphs(SimpleNamespace(**{runner: made}), wanted):
            assert getattr(made, flag) == (not wanted)
    assert getattr(made, flag)


def config(**changed: object) -> SimpleNamespace:
    """A `VllmConfig`, as far as it is checked."""
    none = dict.fromkeys(("speculative_config", "kv_transfer_config"))
    no = ("use_ubatching", "kv_sharing_fast_prefill", "disable_chunked_mm_input", "is_mm_prefix_lm")
    one = ("decode_context_parallel_size", "prefill_context_parallel_size")
    made = SimpleNamespace(**none, **dict.fromkeys(no, False), **dict.fromkeys(one, 1))
    vars(made).update(changed)
    made.parallel_config = made.cache_config = made.scheduler_config = made.model_config = made
    return made


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"speculative_config": "ngram"}, "speculative decoding"),
        ({"kv_transfer_config": "lmcache"}, "KV transfer"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"use_ubatching": True}, "dual batch overlap"),
        ({"is_mm_prefix_lm": True}, "disable_chunked_mm_input=True"),
    ],
)
def test_what_the_bias_does_not_know_is_refused(changed: dict[str, object], sentence: str) -> None:
    worker.check_config(config())
    with pytest.raises(RuntimeError, match=sentence):
        worker.check_config(config(**changed))


def test_attention_that_cannot_be_biased_is_refused() -> None:
    with pytest.raises(RuntimeError, match="attention_backend='FLASH_ATTN'"):
        worker.check_layer("layers.0", SimpleNamespace())
    ours = BiasedFlashBackend.get_impl_cls()
    capped = ours.__new__(ours)
    vars(capped).update(kv_cache_dtype="auto", alibi_slopes=None, sinks=None, logits_soft_cap=0)
    worker.check_layer("layers.0", capped)
    capped.logits_soft_cap = 50.0
    with pytest.raises(RuntimeError, match="soft cap"):
        worker.check_layer("layers.0", capped)


def test_graphs_without_the_bias_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.StockWorker, "compile_or_warm_up_model", lambda self: "done")
    layer = worker.Attention.__new__(worker.Attention)
    made = worker.BiasedWorker.__new__(worker.BiasedWorker)
    for captured, mode in ((True, "FULL_AND_PIECEWISE"), (False, "PIECEWISE"), (False, "FULL")):
        vars(layer)["impl"] = SimpleNamespace(captured=captured)
        mode = CUDAGraphMode[mode]
        made.compilation_config = SimpleNamespace(
            cudagraph_mode=mode, static_forward_context={"": layer}
        )
        if mode != CUDAGraphMode.FULL:
            assert made.compile_or_warm_up_model() == "done"
    with pytest.raises(RuntimeError, match="PIECEWISE"):
        made.compile_or_warm_up_model()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cof.engines.vllm.kernel import _kernel

names = _kernel.arg_names
numbers = dict(BLOCK=16, GROUP=7, SIZE=80, WIDTH=128, WINDOW=24, TILE=32, KEYS=32)
types = {name: "i64" if name.startswith("cache") else "i32" for name in names}
types |= dict.fromkeys(("query", "kv_cache", "output"), "*bf16")
types |= dict.fromkeys(("blocks", "last_keys"), "*i32")
types |= {"tiles": "*i64", "scale": "fp32"} | dict.fromkeys(numbers, "constexpr")
places = {(names.index(name),): number for name, number in numbers.items()}
for capability in (80, 90):
    made = triton.compile(ASTSource(_kernel, types, places), GPUTarget("cuda", capability, 32))
    assert "mma" in made.asm["ptx"] and made.asm["cubin"]
"""


def test_it_compiles_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    subprocess.run([sys.executable, "-c", COMPILE], check=True)
