"""`cof verify`: our claims, checked on the user's own model, machine and versions."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cof.cli.common import JsonOption, Model, ModelArgument, group, parameters_of, sentences

LOADING = [each for each in parameters_of(Model) if each.name in ("dtype", "device", "load")]
VERDICTS = {True: "[green]ok", False: "[red]FAILED", None: "[dim]not applicable"}


@sentences
@group("model", LOADING, Model)
def verify(
    name: ModelArgument = "tiny",
    *,
    model: Model,
    engine: Annotated[str, "transformers, or vllm too."] = "transformers",
    server: Annotated[str | None, "Instead, the `cof serve` at URL."] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that the model looks where it is told, here and with these versions.

    Exits with 1 if a check has failed.
    """
    import torch

    from cof.client import RemoteCoF
    from cof.verify import OUTSIDE, Trial, verify

    if server is not None:
        with RemoteCoF(server, api_key=os.environ.get("COF_API_KEY")) as remote:
            about = {"model": remote.model, "server": server, **remote._ask("GET", "/version")}
            checks = verify(Trial(remote))
    else:
        vllm, model = engine == "vllm", replace(model, model=name)
        cof: Any = (replace(model, load=None) if vllm else model).pipeline()
        dtype, device = cof.engine.model.dtype, str(cof.engine.model.device)
        about = {"model": name, "dtype": str(dtype)[6:], "device": device}
        about |= {of: f"{of} {version(of)}" for of in ("torch", "transformers")}
        last = cof.engine.adapter.shape[0] - 1
        layers = (0, last // 2, last) if vllm else ()
        trial = Trial(cof, dtype, layers)
        checks = verify(trial)
        if vllm:
            del cof, trial.cof, trial.own  # vLLM wants the GPU for itself
            torch.cuda.empty_cache()
            load = [*(model.load or ()), "engine=vllm"]
            on_vllm = replace(model, load=load, dtype=about["dtype"], device=None).pipeline()
            found = verify(Trial(on_vllm, dtype, layers), trial)
            checks |= {f"vLLM: {check}": of for check, of in found.items() if of is not OUTSIDE}
    if as_json:
        rows = {check: {"passed": of.passed, **asdict(of)} for check, of in checks.items()}
        typer.echo(json.dumps({**about, "checks": rows}))
    else:
        columns = ("check", "", "apart", "allowed", "seen")
        told = (f"version {of}" if key == "version" else of for key, of in about.items())
        table = Table(*columns, title=", ".join(told), box=box.SIMPLE_HEAD)
        for name, check in checks.items():
            numbers = ["" if n is None else f"{n:.1g}" for n in (check.apart, check.allowed)]
            table.add_row(name, VERDICTS[check.passed], *numbers, Text(check.note))
        Console().print(table)
    if any(check.passed is False for check in checks.values()):
        raise typer.Exit(1)
