"""`cof web`: a page to ask, look, drag, draw and compare."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer

from cof.cli.common import Model, sentences, with_model
from cof.errors import CofError


@sentences
@with_model("tiny-early")
def web(
    model: Model,
    host: Annotated[
        str, typer.Option("--host", help="0.0.0.0: others in the network may use it too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Where the page is served.")] = 7860,
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
    page.wait()


def other_options(model: Model) -> list[str]:
    """The options besides `--model` that load a model as this one was.

    >>> other_options(Model("tiny", dtype="bfloat16", load=["engine=vllm"]))
    ['--dtype', 'bfloat16', '--load', 'engine=vllm']
    """
    words = []
    for field in fields(model):
        given = getattr(model, field.name)
        if field.name != "model" and given is not None:
            for value in given if isinstance(given, list) else [given]:
                words += [f"--{field.name}", str(value)]
    return words
