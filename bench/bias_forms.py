"""Measure the forms that the attention bias can take, in one decoder layer's attention.

    python -m bench.bias_forms
    python -m bench.bias_forms --tokens 3136 --heads 32 --device cuda --dtype bfloat16

All of them are equation 3, `softmax(A + log(lambda) M)`, causal, for every query:

* `mask`: M as an additive `(1, 1, Q, K)` mask of the fused kernel. `mask made` also builds the
  mask, which a forward pass does once for all of its layers.
* `dims`: queries and keys get 8 more dimensions whose product is the bias; the kernel stays causal
  and needs no mask. `dims, v too`: the values are widened as well, as flash kernels ask for.
* `merge`: causal attention without bias merged with attention over the region's keys alone, by
  their log-sum-exps, the latter shifted by log(lambda - 1); lambda above 1 only.
* `flex`: FlexAttention, compiled, with the bias as its `score_mod`.

Every form is compared with the formula in float32 before it is timed. Times are the fastest of
interleaved rounds, as ratios to `causal`, the same attention without a bias. On a CPU they are
seconds of the process, which do not count other programs. One query is a step of decoding.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from bench.machine import machine

STRENGTH = 2.0
TEXT = 32  # tokens after the image
WIDER = 8  # additional dimensions, so that a head's size stays a multiple of 8


@dataclass(frozen=True)
class Case:
    """One layer's queries, keys and values, `(1, H, tokens, D)`, and the bias on the scores.

    Attributes:
        added: `(K,)` float32, log(lambda) at the region's keys.
        region: the region's key positions.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    added: Tensor
    region: Tensor

    @property
    def causal(self) -> bool:
        return self.query.shape[2] > 1

    def visible(self) -> Tensor:
        """`(Q, K)` bool: keys that do not come after a query."""
        n_queries, n_keys = self.query.shape[2], self.key.shape[2]
        at = torch.arange(n_keys, device=self.query.device)
        return at[None, :] <= at[n_keys - n_queries :, None]

    def mask(self) -> Tensor:
        added = self.added.to(self.query.dtype)
        return torch.where(self.visible(), added, torch.finfo(added.dtype).min)[None, None]


def make_case(
    tokens: int, heads: int, size: int, dtype: torch.dtype, device: str, one: bool
) -> Case:
    """Random states; the region is a fifth of the image in width and height, in its middle."""
    torch.manual_seed(0)
    n_keys = tokens + TEXT
    n_queries = 1 if one else n_keys
    query, key, value = (
        torch.randn(1, heads, n, size).to(device, dtype) for n in (n_queries, n_keys, n_keys)
    )
    side = math.isqrt(tokens)
    middle = torch.arange(2 * side // 5, 2 * side // 5 + max(1, side // 5))
    region = (middle[:, None] * side + middle).flatten().to(device)
    added = torch.zeros(n_keys, device=device)
    added[region] = math.log(STRENGTH)
    return Case(query, key, value, added, region)


def formula(case: Case) -> Tensor:
    """The equation, in float32."""
    query, key, value = (states.float() for states in (case.query, case.key, case.value))
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + case.added
    return scores.masked_fill(~case.visible(), -math.inf).softmax(-1) @ value


def causal(case: Case) -> Callable[[], Tensor]:
    return lambda: scaled_dot_product_attention(
        case.query, case.key, case.value, is_causal=case.causal
    )


def mask(case: Case) -> Callable[[], Tensor]:
    made = case.mask()
    return lambda: scaled_dot_product_attention(case.query, case.key, case.value, attn_mask=made)


def mask_made(case: Case) -> Callable[[], Tensor]:
    return lambda: scaled_dot_product_attention(
        case.query, case.key, case.value, attn_mask=case.mask()
    )


def dims(case: Case, wide_values: bool = False) -> Callable[[], Tensor]:
    scale = case.query.shape[-1] ** -0.5

    def run() -> Tensor:
        query = pad(case.query, (0, WIDER))
        key = pad(case.key, (0, WIDER))
        # In two parts, so that half precision keeps what it can keep: 16 * rest is exact too.
        whole = (case.added / scale / 16).to(key.dtype)
        query[..., -WIDER : 2 - WIDER] = 16
        key[..., -WIDER] = whole
        key[..., 1 - WIDER] = (case.added / scale / 16 - whole.float()).to(key.dtype)
        value = pad(case.value, (0, WIDER)) if wide_values else case.value
        out = scaled_dot_product_attention(query, key, value, is_causal=case.causal, scale=scale)
        return out[..., : case.value.shape[-1]]

    return run


def merge(case: Case) -> Callable[[], Tensor]:
    if STRENGTH <= 1:
        raise ValueError("merging needs a lambda above 1")
    kernel = _on_cpu if case.query.device.type == "cpu" else _on_gpu
    scope = torch.where(case.visible()[:, case.region], 0.0, -math.inf)
    scope = scope.to(case.query.dtype).expand(1, case.query.shape[1], -1, -1)

    def run() -> Tensor:
        everything, total = kernel(case.query, case.key, case.value, None, case.causal)
        key, value = case.key[:, :, case.region], case.value[:, :, case.region]
        inside, part = kernel(case.query, key, value, scope, False)
        # a query before the region sees none of it
        share = torch.sigmoid(part.nan_to_num(-math.inf) + math.log(STRENGTH - 1) - total)
        share = torch.where(scope[..., 0] < 0, 0.0, share)[..., None]
        return torch.lerp(everything.float(), inside.float().nan_to_num(), share).to(key.dtype)

    return run


def _on_cpu(
    query: Tensor, key: Tensor, value: Tensor, scope: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=scope
    )
    return out, lse


def _on_gpu(
    query: Tensor, key: Tensor, value: Tensor, scope: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor]:
    aten, n = torch.ops.aten, query.shape[2]
    if scope is None and query.dtype != torch.float32:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)
        return out, lse[..., :n]
    if scope is not None:  # its rows have to begin at multiples of 16 bytes
        keys = scope.shape[-1]
        scope = pad(scope, (0, -keys % 8))[..., :keys]
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(
        query, key, value, scope, True, 0.0, is_causal
    )
    return out, lse[..., :n]  # the kernel rounds the number of queries up


def flex(case: Case) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    n_queries, n_keys = case.query.shape[2], case.key.shape[2]
    before = n_keys - n_queries
    added = case.added

    def past(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return q + before >= k

    def bias(score: Any, batch: Any, head: Any, q: Any, k: Any) -> Any:
        return score + added[k]

    blocks = create_block_mask(past, None, None, n_queries, n_keys, device=case.query.device.type)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(case.query, case.key, case.value, score_mod=bias, block_mask=blocks)


FORMS: dict[str, Callable[[Case], Callable[[], Tensor]]] = {
    "causal": causal,
    "mask": mask,
    "mask made": mask_made,
    "dims": dims,
    "dims, v too": lambda case: dims(case, wide_values=True),
    "merge": merge,
    "flex": flex,
}


def measure(case: Case, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Error and time of every form, or why it does not run."""
    torch._dynamo.reset()  # each case is compiled anew
    expected = formula(case)
    records: list[dict[str, Any]] = []
    runs: dict[str, Callable[[], Tensor]] = {}
    for name in names:
        form = FORMS[name]
        record: dict[str, Any] = {"form": name}
        records.append(record)
        try:
            run = form(case)
            error = float((run().float() - expected).abs().max())
        except Exception as problem:  # a kernel may be missing: the others are still measured
            lines = str(problem).splitlines() or [""]
            record["failed"] = f"{type(problem).__name__}: {lines[0]}"
            continue
        tolerance = 1e-5 if case.query.dtype == torch.float32 else 2e-2
        if name != "causal" and not error <= tolerance:
            raise RuntimeError(f"{name} differs from the formula by {error}")
        record["error"] = error
        runs[name] = run
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_timed(run, case.query.device))
    for record in records:
        if record["form"] in runs:
            record["seconds"] = min(seconds[record["form"]])
            record["ratio"] = record["seconds"] / min(seconds["causal"])
    return records


def _timed(run: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 10


def table(records: list[dict[str, Any]]) -> str:
    """One line for each case, one column for each form: ratios of time to `causal`."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        key = (record["tokens"], record["heads"], record["queries"])
        cases.setdefault(key, {})[record["form"]] = record
    measured = {record["form"] for record in records}
    names = [name for name in FORMS if name in measured and name != "causal"]
    head = ["image tokens", "heads", "queries", "causal (ms)", *names]
    lines = [f"| {' | '.join(head)} |", "|" + "--:|" * len(head)]
    for key, forms in cases.items():
        cells = [*map(str, key), f"{1e3 * forms['causal']['seconds']:.2f}"]
        cells += [f"{forms[n]['ratio']:.2f}" if "ratio" in forms[n] else "fails" for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", action="append", type=int)
    parser.add_argument("--heads", action="append", type=int)
    parser.add_argument("--form", action="append", choices=list(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args(argv)
    names = ["causal", *(args.form or list(FORMS))]  # the ratios need it
    names = [name for name in FORMS if name in names]
    records = []
    for tokens in args.tokens or [576, 1024, 3136]:
        for heads in args.heads or [16, 32]:
            size = 64 if heads == 16 else 128  # as in the 0.3b and 7b shapes
            for one in (False, True):
                case = make_case(tokens, heads, size, getattr(torch, args.dtype), args.device, one)
                where = {"tokens": tokens, "heads": heads, "head_size": size}
                where["queries"] = case.query.shape[2]
                with torch.inference_mode():
                    results = measure(case, names, args.rounds)
                records += [where | record for record in results]
                for record in results:
                    note = record.get("failed") or f"{1e3 * record['seconds']:.3f} ms"
                    print(tokens, heads, case.query.shape[2], record["form"], note)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(args.device), "dtype": args.dtype, "records": records}
    name = f"bias-forms-{torch.device(args.device).type}"
    (args.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    (args.out / f"{name}.md").write_text(table(records), "utf-8")
    print("\n" + table(records))


if __name__ == "__main__":
    main()
