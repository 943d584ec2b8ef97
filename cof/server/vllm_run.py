"""`vllm serve` with what `cof serve` was told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter
from vllm import plugins

from cof.engines.vllm.engine import load_processor, model_options
from cof.errors import CofError
from cof.families import family_of
from cof.server.vllm_app import Plugin, ServeOptions
from cof.tiny import resolve_model

FLAGS = {
    "logging_config.formatter": "json",
    "disable_uvicorn_access_log": True,  # we write one line for each request
    "disable_fastapi_docs": True,
    "shutdown_timeout": 30,  # seconds to answer what was begun
    "allowed_media_domains": "none.invalid",  # vLLM itself fetches nothing
}
"""Options of `vllm serve` that are the same for all models."""


def run_vllm(
    model: str,
    served_name: str,
    options: ServeOptions,
    *,
    api_key: str | None,
    flags: Mapping[str, Any],
    more: Iterable[str] = (),
) -> None:
    """Serve until a signal ends it.

    Args:
        model: hub id or path.
        served_name: the name that requests give.
        options: those of ours.
        api_key: what requests must bring.
        flags: of `vllm serve`, by name; those that are None are left out.
        more: what else `vllm serve` takes, over the others.

    Raises:
        CofError: vLLM would not find our plugins, the model is not supported, a setting is unknown,
            or vLLM does not start.
    """
    model = str(resolve_model(model))
    check_plugins()
    options.settings_for(model)  # checked before minutes are spent on loading a model
    config, processor = load_processor(model, options.pad_to_square)
    os.environ |= {
        ServeOptions.VARIABLE: TypeAdapter(ServeOptions).dump_json(options).decode(),
        "VLLM_PLUGINS": ",".join(filter(None, [os.environ.get("VLLM_PLUGINS"), Plugin.name])),
        **({"VLLM_API_KEY": api_key} if api_key else {}),  # not in the arguments, which are logged
    }
    more = list(more)
    named = [word[2:].partition("=")[0].replace("-", "_") for word in more if word[:2] == "--"]
    own = model_options(config, processor, [*named, *flags])
    given = {"served_model_name": served_name, **FLAGS, **own, **flags}
    if not getattr(processor, "chat_template", None):
        given["chat_template"] = family_of(config).chat_template or None
    _serve(["serve", model, *arguments(given), *more])


def check_plugins() -> None:
    """
    Raises:
        CofError: vLLM would not find ours, and answer as if nobody had asked to look closer.
    """
    for group in (plugins.DEFAULT_PLUGINS_GROUP, plugins.ENDPOINT_PLUGINS_GROUP):
        if Plugin.name not in entry_points(group=group).names:
            raise CofError(
                f"This installation of cof has no {group}, as those of older versions: install it "
                "again, in a clone by pip install -e '.[vllm,serve]'."
            )


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """As on a command line.

    >>> arguments({"port": 80, "enforce_eager": True, "limit_mm_per_prompt": {"image": 2}})
    ['--port', '80', '--enforce-eager', '--limit-mm-per-prompt', '{"image": 2}']
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


def _serve(words: list[str]) -> None:
    """What the command `vllm` does."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    parser, command = FlexibleArgumentParser(prog="vllm"), ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(words)
    configure_logging_from_args(args)
    try:
        command.validate(args)
        command.cmd(args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise CofError(f"vllm serve has ended; the log above says why: {error}") from error
