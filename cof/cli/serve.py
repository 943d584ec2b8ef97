"""`cof serve`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cof.cli.common import Model, pairs, sentences, with_model
from cof.engines.vllm.versions import check_version
from cof.errors import CofError
from cof.server.limits import Limits


@sentences
@with_model(None)
def serve(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, local path, tiny or tiny-early.")
    ] = "tiny",
    vllm: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM]", help="With --engine vllm: what vllm serve takes."),
    ] = None,
    *,
    model: Model,
    engine: Annotated[
        str, typer.Option("--engine", help="transformers, or vllm.")
    ] = "transformers",
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="COF_API_KEY", help="The key that clients must send."),
    ] = None,
    allow_url: Annotated[
        bool, typer.Option("--allow-url", help="Fetch images from public http(s) addresses.")
    ] = False,
    max_image_bytes: Annotated[
        int, typer.Option("--max-image-bytes", min=1, help="Of one image as it is sent.")
    ] = Limits.max_image_bytes,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Of one image.")
    ] = Limits.max_pixels,
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, max=2, help="In one request.")
    ] = Limits.max_images,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="The longest answer, in tokens.")
    ] = Limits.max_tokens,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Requests that may wait; others get 429.")
    ] = Limits.max_queue,
    max_batch: Annotated[
        int | None,
        typer.Option("--max-batch", min=1, help="Requests answered at a time. \\[default: 16]"),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")
    ] = Limits.timeout_s,
) -> None:
    """Serve a model in OpenAI's format (docs/serving.md).

    Requests with `cof` look closer, by these settings unless they bring their own; all others get
    the plain model. With `--engine vllm` it is `vllm serve`, with all that it can.

    Example: `cof serve MODEL --engine vllm -- --tensor-parallel-size 2`
    """
    limits = Limits(
        max_image_bytes=max_image_bytes,
        max_pixels=max_pixels,
        max_images=max_images,
        max_tokens=max_tokens,
        max_queue=max_queue,
        max_batch=max_batch or Limits.max_batch,
        timeout_s=timeout,
    )
    if vllm and engine != "vllm":
        raise CofError(f"{vllm[0]} is for vllm serve: add --engine vllm, or leave it out.")
    if host not in ("127.0.0.1", "::1", "localhost") and not api_key:
        typer.echo(f"Note: whoever can reach {host} can ask: set --api-key.", err=True)
    served = Path(name).name if Path(name).is_dir() else name
    try:
        if engine == "vllm":
            check_version()
            if model.device:
                raise CofError("--device is for the transformers engine: leave it out.")
            from cof.server.vllm_app import ServeOptions
            from cof.server.vllm_run import run_vllm

            load = pairs("--load", model.load, "quantization=fp8")
            square = load.pop("pad_to_square", None)
            options = ServeOptions(model.preset, model.settings, limits, allow_url, square)
            flags = {
                "host": host,
                "port": port,
                "dtype": model.dtype,
                "max_num_batched_tokens": load.pop("max_batch_tokens", None),
                "max_num_seqs": max_batch,
                **load,
            }
            run_vllm(name, served, options, api_key=api_key, flags=flags, more=vllm or [])
            return
        from cof.server.app import create_app
        from cof.server.images import Fetcher
        from cof.server.run import run
    except ImportError as error:
        raise CofError(f"Serving needs {error.name}: pip install 'cof[serve]'.") from None

    cof = replace(model, model=name).pipeline()
    fetcher = Fetcher(max_image_bytes) if allow_url else None
    app = create_app(cof, served, limits=limits, api_key=api_key or None, fetcher=fetcher)
    run(app, host, port)
