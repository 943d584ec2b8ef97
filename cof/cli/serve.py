"""`cof serve` and `cof web`: a model for others to ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cof.cli.common import Model, ModelArgument, group, pairs, parameters_of, sentences, with_model
from cof.engines.vllm.versions import check_version
from cof.errors import CofError
from cof.limits import Limits


@sentences
@with_model(None)
@group("limits", parameters_of(Limits), Limits)
def serve(
    name: ModelArgument = "tiny",
    vllm: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM]", help="With --engine vllm: what vllm serve takes."),
    ] = None,
    *,
    model: Model,
    engine: Annotated[str, "transformers, or vllm."] = "transformers",
    host: Annotated[str, "The address to listen at."] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="COF_API_KEY", help="The key that clients must send.")
    ] = None,
    allow_url: Annotated[bool, "Fetch images from public http(s) addresses."] = False,
    limits: Limits,
) -> None:
    """Serve a model in OpenAI's format (docs/serving.md).

    Requests with `cof` look closer, by these settings unless they bring their
    own; all others get the plain model. With `--engine vllm` it is `vllm serve`,
    with all that it can.

    Example: `cof serve MODEL --engine vllm -- --tensor-parallel-size 2`
    """
    if vllm and engine != "vllm":
        raise CofError(f"{vllm[0]} is for vllm serve: add --engine vllm, or leave it out.")
    if host not in ("127.0.0.1", "::1", "localhost") and not api_key:
        typer.echo(f"Note: whoever can reach {host} can ask: set --api-key.", err=True)
    served = Path(name).name if Path(name).is_dir() else name
    try:
        if engine == "vllm":
            if model.device:
                raise CofError("--device is for the transformers engine: leave it out.")
            check_version()
            from cof.server.vllm_app import ServeOptions, run_vllm

            load = pairs("--load", model.load, "quantization=fp8")
            square = load.pop("pad_to_square", None)
            options = ServeOptions(model.preset, model.settings, limits, allow_url, square)
            flags = {
                "host": host,
                "port": port,
                "dtype": model.dtype,
                "max_num_batched_tokens": load.pop("max_batch_tokens", None),
                "max_num_seqs": None if limits.max_batch == Limits.max_batch else limits.max_batch,
                **load,
            }
            run_vllm(name, served, options, api_key=api_key, flags=flags, more=vllm or [])
            return
        from cof.server.app import create_app, run
        from cof.server.images import Fetcher
    except ImportError as error:
        raise CofError(f"Serving needs {error.name}: pip install 'cof[serve]'.") from None

    cof = replace(model, model=name).pipeline()
    fetcher = Fetcher(limits.max_image_bytes) if allow_url else None
    app = create_app(cof, served, limits=limits, api_key=api_key or None, fetcher=fetcher)
    try:
        run(app, host, port)
    except SystemExit as error:  # uvicorn's, which has logged why
        raise CofError(f"Port {port} of {host} cannot be used: choose another --port.") from error


@sentences
@with_model("tiny-early")
def web(
    model: Model,
    host: Annotated[str, "0.0.0.0: others in the network may use it too."] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where the page is served.")] = 7860,
) -> None:
    """Ask in a browser: answers and attention side by side, while you drag lambda and alpha."""
    try:
        from cof.web.page import Page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise CofError("cof web needs Gradio: pip install 'cof[web]'.") from error
    page = Page(model.pipeline(), model.model or "tiny", other_options(model))
    try:
        address = page.launch(host, port)
    except OSError as error:
        raise CofError(f"Port {port} of {host} cannot be used: choose another --port.") from error
    typer.echo(f"{address} (Ctrl-C ends it)")
    page.blocks.block_thread()  # until it is interrupted


def other_options(model: Model) -> list[str]:
    """The options besides `--model` that load a model as this one was.

    >>> other_options(Model("tiny", dtype="bfloat16", load=["engine=vllm"]))
    ['--dtype', 'bfloat16', '--load', 'engine=vllm']
    """
    words = []
    for name, given in vars(model).items():
        if name != "model" and given is not None:
            for value in given if isinstance(given, list) else [given]:
                words += [f"--{name}", str(value)]
    return words
