"""`cof serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cof.cli.common import (
    CropOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    MaxBatchTokensOption,
    PresetOption,
    QuantizationOption,
    load,
    sentences,
)
from cof.errors import CofError


@sentences
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, local path, tiny or tiny-early.")
    ] = "tiny",
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="COF_API_KEY", help="What clients must send."),
    ] = None,
    allow_url: Annotated[
        bool,
        typer.Option("--allow-url", help="Fetch images from public http(s) addresses."),
    ] = False,
    max_image_bytes: Annotated[
        int, typer.Option("--max-image-bytes", min=1, help="Of one image as it is sent.")
    ] = 10 * 2**20,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Of one image.")
    ] = 20_000_000,
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, max=2, help="In one request.")
    ] = 2,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="The longest answer that may be asked for.")
    ] = 512,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Requests that may wait; others get 429.")
    ] = 64,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Requests answered at a time.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")
    ] = 120.0,
    preset: PresetOption = None,
    detector: DetectorOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    quantization: QuantizationOption = None,
    max_batch_tokens: MaxBatchTokensOption = None,
    crop: CropOption = False,
) -> None:
    """Serve a model in OpenAI's format, with and without CoF (docs/serving.md)."""
    try:
        from cof.server.app import create_app
        from cof.server.images import Fetcher
        from cof.server.limits import Limits
        from cof.server.run import run
    except ImportError as error:
        raise CofError(f"Serving needs {error.name}: pip install 'cof[serve]'.") from None

    limits = Limits(
        max_image_bytes=max_image_bytes,
        max_pixels=max_pixels,
        max_images=max_images,
        max_tokens=max_tokens,
        max_queue=max_queue,
        max_batch=max_batch,
        timeout_s=timeout,
    )
    cof = load(
        model,
        preset,
        dtype,
        device,
        crop,
        detector=detector,
        quantization=quantization,
        max_batch_tokens=max_batch_tokens,
    )
    if host not in ("127.0.0.1", "::1", "localhost") and not api_key:
        typer.echo(f"Note: whoever can reach {host} can ask: set --api-key.", err=True)
    fetcher = Fetcher(max_image_bytes) if allow_url else None
    name = Path(model).name if Path(model).is_dir() else model
    app = create_app(cof, name, limits=limits, api_key=api_key or None, fetcher=fetcher)
    run(app, host, port)
