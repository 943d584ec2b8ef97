"""What the commands share: options, loading a model, and one-sentence error messages."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, get_type_hints

import typer

from cof.errors import CofError, CofWarning
from cof.settings import Settings

if TYPE_CHECKING:
    from cof.pipeline import CoF

Indices = tuple[int, ...] | None
"""The type of those settings that are written like `0-15,20`."""

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)"


P = ParamSpec("P")


def sentences(command: Callable[P, None]) -> Callable[P, None]:
    """Errors meant for the user become one sentence on stderr and status 2; so do warnings, but
    the command goes on."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", CofWarning)
            warnings.showwarning = _note
            try:
                command(*args, **kwargs)
            except CofError as error:
                _fail(str(error))
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                _fail(f"{where}{error.strerror or error}.")
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                _fail(
                    "Out of memory: use a smaller model, --dtype bfloat16, --device auto, or a "
                    "smaller image."
                )

    return run


def _note(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"Note: {message}", err=True)


def _fail(sentence: str) -> None:
    typer.echo(" ".join(sentence.split()), err=True)
    raise typer.Exit(2)


def _is_out_of_memory(error: Exception) -> bool:
    """By name, because torch may not be loaded; its CPU allocator raises a bare RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="An image file, or an address with --allow-url.")
]
QuestionArgument = Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")]
SideOption = Annotated[
    int,
    typer.Option("--side", help="Side of the scenes in pixels; above 160 details are smaller."),
]
AllowUrlOption = Annotated[
    bool, typer.Option("--allow-url", help="Let IMAGE be an http(s) address.")
]
DataArgument = Annotated[
    str,
    typer.Argument(metavar="PATH", help="The data as downloaded, or hf://owner/name/folder."),
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures, if elsewhere.")
]
RulesOption = Annotated[
    str, typer.Option("--rules", help="official, llava, lmms-eval or vlmevalkit.")
]
PromptStyleOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-style",
        help="Prompts as of llava, llava-ocr, official, lmms-eval, vlmevalkit or tiny. "
        "\\[default: llava; tiny for the embedded model]",
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="About so many questions.")]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Questions in one forward pass.")
]
LongestAnswerOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")
]
OutOption = Annotated[
    Path, typer.Option("--out", help="Folder for results; an interrupted run goes on in it.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Of the random boxes and of the intervals.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True)
class ModelOptions:
    """How a command loads its model; `with_model` makes options of these fields."""

    model: str | None = None
    engine: str | None = None
    preset: str | None = None
    dtype: str | None = None
    device: str | None = None
    crop: bool = False
    quantization: str | None = None
    max_batch_tokens: int | None = None

    def load(self, settings: Mapping[str, Any] | None = None) -> CoF:
        """The pipeline.

        Args:
            settings: settings by name, over the preset's.

        Raises:
            CofError: what `CoF.from_pretrained` refuses.
        """
        from cof.pipeline import CoF
        from cof.tiny import EMBEDDED

        if self.model is None or self.model in EMBEDDED:  # loads at once
            _hide_progress_bars()
        gc.disable()  # collection would take a fifth of the imports' time and find nothing
        try:
            return CoF.from_pretrained(
                self.model,
                engine=self.engine or "transformers",
                preset=self.preset,
                dtype=self.dtype,
                device_map=self.device,
                pad_to_square=False if self.crop else None,
                quantization=self.quantization,
                max_batch_tokens=self.max_batch_tokens,
                **(settings or {}),
            )
        finally:
            gc.enable()


MODEL_HELP = {
    "model": "Hub id, local path, tiny or tiny-early (both embedded).",
    "engine": "transformers, or vllm (pip install 'cof\\[vllm]'). \\[default: transformers]",
    "preset": "Settings of paper, paper-parity or tiny; paper:llava-1.5-7b names a row.",
    "dtype": "float32, bfloat16 or float16. \\[default: by device]",
    "device": "cpu, cuda, ... or auto. \\[default: GPU if any]",
    "crop": "LLaVA: crop the centre, as the hub's processor does, instead of padding.",
    "quantization": "Load the weights in 4bit or 8bit (bitsandbytes).",
    "max_batch_tokens": "Run at most so many tokens at a time. \\[default: 16384]",
}

Command = Callable[..., None]


def with_model(default: str | None = "tiny") -> Callable[[Command], Command]:
    """A command whose parameter `model: ModelOptions` becomes one option for each of its fields.

    Args:
        default: the model that is loaded without `--model`; None: there is no such option, and the
            command fills in the model's name.

    Example: `cof example --model tiny-early --dtype bfloat16`

        @with_model()
        def example(model: ModelOptions) -> None:
            print(model.load()("photo.jpg", "What is it?").text)
    """
    hints = get_type_hints(ModelOptions)

    def parameter(field: Field[Any]) -> inspect.Parameter:
        value, help = field.default, MODEL_HELP[field.name]
        if field.name == "model":
            value, help = default, f"{help} \\[default: {default}]"
        return _option(field.name, hints[field.name], value, help, "Model", flag=_flag(field.name))

    options = [
        parameter(field)
        for field in fields(ModelOptions)
        if default is not None or field.name != "model"
    ]
    return lambda command: _expand(command, "model", options, lambda given: ModelOptions(**given))


def with_settings(names: Collection[str] | None = None) -> Callable[[Command], Command]:
    """A command whose parameter `settings: dict[str, Any]` becomes one option for each setting.

    The command gets the settings that were given, by name and with checked syntax; all others
    stay the preset's. A setting that the command declares as a parameter of its own is left to it.

    Args:
        names: the settings to offer; None: all of `cof.settings.Settings`.

    Example: `cof example --strength 4 --layers 0-15,20` prints
    `{'strength': 4.0, 'layers': (0, 1, ..., 15, 20)}`

        @with_settings()
        def example(settings: dict[str, Any]) -> None:
            print(settings)
    """
    hints = get_type_hints(Settings)

    def collect(given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: indices(_flag(name), value) if hints[name] == Indices else value
            for name, value in given.items()
            if value is not None
        }

    def expand(command: Command) -> Command:
        own = inspect.signature(command).parameters
        offered = [
            field
            for field in fields(Settings)
            if field.name not in own and (names is None or field.name in names)
        ]
        options = [_settings_option(field, hints[field.name]) for field in offered]
        return _expand(command, "settings", options, collect)

    return expand


def _settings_option(field: Field[Any], hint: Any) -> inspect.Parameter:
    choices, flag, help = field.metadata["choices"], _flag(field.name), field.metadata["help"]
    if hint is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    if choices:
        help += f" \\[{', '.join(choices)}]"
    kind = hint if hint in (bool, int, float) else str
    group = field.metadata["group"]
    complete = (lambda: list(choices)) if choices else None
    return _option(field.name, kind | None, None, help, group, flag, complete)


def _option(
    name: str,
    kind: Any,
    default: Any,
    help: str,
    panel: str,
    flag: str,
    complete: Callable[[], list[str]] | None = None,
) -> inspect.Parameter:
    info = typer.Option(
        flag, help=help, rich_help_panel=panel, show_default=False, autocompletion=complete
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, info])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _expand(
    command: Command,
    name: str,
    options: Sequence[inspect.Parameter],
    collect: Callable[[Mapping[str, Any]], Any],
) -> Command:
    """The command with `options` in place of its parameter `name`, which gets `collect` of them.

    Typer reads a command's signature and its annotations, so both are replaced.
    """
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        given = {option.name: kwargs.pop(option.name, option.default) for option in options}
        command(*args, **kwargs, **{name: collect(given)})

    kept = [each for each in signature.parameters.values() if each.name != name]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [*(each.replace(kind=keyword) for each in kept), *options]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _hide_progress_bars() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read as transformers is imported
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def indices(option: str, text: str | None) -> tuple[int, ...] | None:
    """The numbers and ranges of an option; `+` separates them like a comma.

    >>> indices("--layers", "0-3,7")
    (0, 1, 2, 3, 7)

    Raises:
        CofError: the text is something else; the message names the option.
    """
    if text is None:
        return None
    numbers: list[int] = []
    for part in re.split("[,+]", text):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise CofError(f"{option} takes numbers and ranges such as 0-15,20, not {text!r}.")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(numbers))
