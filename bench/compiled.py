"""What torch.compile saves of decoding, and what it costs to begin with.

    python -m bench.compiled --shape 0.3b

The same image and question, its prefix kept, plainly and with a highlight whose region changes from
round to round: answers as usual and compiled in turn, so that a slow minute weighs on both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CompileConfig

from bench.machine import folder_name, machine, sources
from bench.shapes import SHAPES, engine_of, question
from cof.engine import TransformersEngine
from cof.eval.store import write_atomically
from cof.types import Decoding, EncodedImage, Highlight, Region, Request

IMAGE_TOKENS = 576


def measured(
    engine: TransformersEngine, tokens: int, rounds: int, how: bool | CompileConfig = True
) -> list[dict[str, Any]]:
    """Seconds of answers of so many tokens, plain ones and CoF's.

    Args:
        how: the engine's `compile`.

    Returns:
        For each its `answer`, and of both ways, `usual` and `compiled`, the `first` call's seconds
        (compiling included) and those of the `later` ones.
    """
    made = TransformersEngine(engine.model, engine.processor, name=engine.name, compile=how)
    picture = Image.effect_noise((640, 480), 64.0).convert("RGB")
    encoded = engine.encode([picture], prefill=True)[0]
    ways = {"usual": engine, "compiled": made}
    found = []
    for answer in ("plain", "CoF, text"):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(1 + rounds):
            request = _request(encoded, number, answer)
            for way in ways if number % 2 == 0 else reversed(ways):
                seconds[way].append(_timed(ways[way], request, tokens))
        found.append(
            {
                "answer": answer,
                "first": {way: of[0] for way, of in seconds.items()},
                "later": {way: of[1:] for way, of in seconds.items()},
            }
        )
    return found


def _request(encoded: EncodedImage, number: int, answer: str) -> Request:
    if answer == "plain":
        return Request(encoded, question(number))
    left = 0.1 * (number % 8)
    region = Region(boxes=((left, 0.3, left + 0.2, 0.5),))
    return Request(encoded, question(number), Highlight(region, 2.0 + number, scope="text"))


def _timed(engine: TransformersEngine, request: Request, tokens: int) -> float:
    start = time.perf_counter()
    (reply,) = engine.generate([request], Decoding(max_new_tokens=tokens))
    assert len(reply.token_ids) == tokens  # they never end, and reading them waited for the GPU
    return time.perf_counter() - start


def table(about: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The figures as Markdown, each ratio that of a round's two runs."""
    lines = [
        f"{about['device']} ({about['threads']} threads), {about['dtype']}, torch "
        f"{about['torch']}, transformers {about['transformers']}: the {about['shape']} model, "
        f"answers of {about['tokens']} tokens behind a kept prefix of {IMAGE_TOKENS} image tokens.",
        "",
        "| answer | usual, s | compiled, s | compiled, x usual | first compiled call, s | rounds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for of in records:
        usual, compiled = (of["later"][way] for way in ("usual", "compiled"))
        ratio = statistics.median(b / a for a, b in zip(usual, compiled, strict=True))
        lines.append(
            f"| {of['answer']} | {statistics.median(usual):.3f} | {statistics.median(compiled):.3f}"
            f" | {ratio:.2f} | {of['first']['compiled']:.1f} | {len(usual)} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=list(SHAPES), default="7b" if gpu else "0.3b")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    engine = engine_of(args.shape, IMAGE_TOKENS, args.dtype, args.device)
    about = {
        **machine(args.device),
        **{name: getattr(args, name) for name in ("shape", "tokens", "dtype")},
        "sources": sources(),
    }
    records = measured(engine, args.tokens, args.rounds)
    folder = args.out / folder_name(about, args.device)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": about, "records": records}, indent=1) + "\n"
    write_atomically(folder / "compiled.json", content)
    write_atomically(folder / "compiled.md", table(about, records))
    print(table(about, records), end="")


if __name__ == "__main__":
    main()
