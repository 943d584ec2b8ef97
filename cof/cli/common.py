"""What the commands share: options, loading a model, and one-sentence error messages."""

from __future__ import annotations

import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cof.errors import CofError, CofWarning
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.options import read_value
from cof.pipeline import CoF
from cof.tiny import EMBEDDED

if TYPE_CHECKING:
    from cof.eval.data.base import Benchmark

Command = Callable[..., None]

SETTINGS = ("grounder", "focus", "strength", "expand")
"""Those with options of their own."""


def sentences(command: Command) -> Command:
    """Errors meant for the user become one sentence on stderr and status 2; so do warnings, but
    the command goes on. A parameter that is annotated with a text is an option with this help."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", CofWarning)
            warnings.showwarning = lambda note, *_, **__: typer.echo(f"Note: {note}", err=True)
            try:
                return command(*args, **kwargs)
            except CofError as error:
                sentence = str(error)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                sentence = f"{where}{error.strerror or error}."
            except MemoryError:  # of ours; engines say so themselves
                sentence = "Out of memory: use a smaller model or image."
            typer.echo(" ".join(sentence.split()), err=True)
            raise typer.Exit(2)

    return _declare(run, map(_option, signature(command, eval_str=True).parameters.values()))


ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="An image file, - (standard input), or an address.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, local path, tiny or tiny-early.")
]
QuestionArgument = Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")]
AllowUrlOption = Annotated[bool, "Let IMAGE be an http(s) address."]
DataArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="The data as downloaded, or hf://owner/name/folder.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="About so many questions.")]
BatchSizeOption = Annotated[int, "Questions in one forward pass."]
LongestAnswerOption = Annotated[int, "The longest answer."]
OutOption = Annotated[Path, "Folder for results; an interrupted run goes on in it."]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True)
class Questions:
    """A benchmark's questions, and how they are asked; `with_questions` makes them of options."""

    images: Annotated[Path | None, "Folder of the pictures, if elsewhere."] = None
    rules: Annotated[str, "official, llava, lmms-eval or vlmevalkit."] = "official"
    prompt_style: Annotated[
        str | None,
        "Prompts as of llava, llava-ocr, official, lmms-eval, vlmevalkit or tiny. "
        "\\[default: llava; tiny for the embedded model]",
    ] = None
    limit: LimitOption = None
    batch_size: BatchSizeOption = 8
    max_new_tokens: LongestAnswerOption = 32

    def read(self, benchmark: str, path: str, style: str | None = None, **which: Any) -> Benchmark:
        """The benchmark of that name at a path, asked in a prompt style unless one was given."""
        from cof.eval.data import BENCHMARKS
        from cof.eval.data.hub import local

        if benchmark not in BENCHMARKS:
            raise CofError(
                f"There is no benchmark {benchmark!r}; there are {', '.join(BENCHMARKS)}."
            )
        return BENCHMARKS[benchmark](
            local(path),
            self.rules,  # type: ignore[arg-type]
            self.prompt_style or style or "llava",  # type: ignore[arg-type]
            images=self.images,
            limit=self.limit,
            **which,
        )


_KEYWORD = Parameter.KEYWORD_ONLY
_COMPLETED = {"grounder": lambda: list(GROUNDERS), "focus": lambda: list(FOCUSES)}

_PANELS = dict.fromkeys(("model", "dtype", "device", "load"), "Model")
_PANELS |= dict.fromkeys(("preset", *SETTINGS, "set"), "Looking closer")


@dataclass(frozen=True)
class Model:
    """A model and how it looks closer, as a command's options tell; `with_model` makes them."""

    model: Annotated[str | None, "Hub id, local path, tiny or tiny-early (both embedded)."] = None
    dtype: Annotated[str | None, "float32, bfloat16 or float16. \\[default: by device]"] = None
    device: Annotated[str | None, "cpu, cuda, ... or auto. \\[default: GPU if any]"] = None
    load: Annotated[
        list[str] | None,
        "NAME=VALUE of CoF.from_pretrained: quantization=4bit, pad_to_square=false, "
        "max_batch_tokens=8192, engine=vllm and what vLLM takes; may be repeated.",
    ] = None
    preset: Annotated[
        str | None,
        "Settings of a paper's model: paper, paper-parity, or such as paper:llava-1.5-7b.",
    ] = None
    grounder: Annotated[
        str | None, f"Where to look \\[{', '.join(GROUNDERS)}], or several joined by +"
    ] = None
    focus: Annotated[str | None, f"How to make the model look there \\[{', '.join(FOCUSES)}]"] = (
        None
    )
    strength: Annotated[float | None, "lambda: how much more attention; 1 changes nothing."] = None
    expand: Annotated[float | None, "alpha: by how much to enlarge the place found."] = None
    set: Annotated[
        list[str] | None,
        "NAME=VALUE of another option, such as scope=text; `cof settings` lists them.",
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were given, by name; all others stay the preset's.

        >>> Model(strength=4.0, set=["layers=0-3", "scope=text"]).settings
        {'strength': 4.0, 'layers': '0-3', 'scope': 'text'}

        Raises:
            CofError: `--set` without a name and a value.
        """
        given = {name: of for name in SETTINGS if (of := getattr(self, name)) is not None}
        return given | pairs("--set", self.set, "scope=text")

    def pipeline(self) -> CoF:
        """The pipeline.

        Raises:
            CofError: what `CoF.from_pretrained` refuses.
        """
        if self.model is None or self.model in EMBEDDED:  # loads at once
            # read as transformers is imported
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        load = pairs("--load", self.load, "quantization=4bit")
        engine = {"engine": load.pop("engine")} if "engine" in load else {}
        gc.disable()  # collection would take a tenth of the imports' time and find nothing
        try:
            return CoF.from_pretrained(
                self.model,
                preset=self.preset,
                dtype=self.dtype,
                device_map=self.device,
                engine_options=load,
                **engine,
                **self.settings,
            )
        finally:
            gc.enable()


def with_model(default: str | None = "tiny") -> Callable[[Command], Command]:
    """A command whose parameter `model: Model` becomes options.

    Args:
        default: the model that is loaded without `--model`; None: there is no such option, and the
            command fills in the model's name.
    """
    options = parameters_of(Model, model=default)
    return group("model", options[default is None :], Model)  # the first is --model


def parameters_of(kind: type, **defaults: Any) -> list[Parameter]:
    """One option for each field of a dataclass that is annotated with typer's, or with a text."""
    return [
        _option(each.replace(kind=_KEYWORD, default=defaults.get(each.name, each.default)))
        for each in signature(kind, eval_str=True).parameters.values()
        if hasattr(each.annotation, "__metadata__")
    ]


def _option(given: Parameter) -> Parameter:
    """A parameter that is annotated with a text as typer's option with this help; numbers whose
    default is 1 or more are at least 1."""
    about = getattr(given.annotation, "__metadata__", [None])[0]
    if not isinstance(about, str):
        return given
    option = typer.Option(
        f"--{given.name.removesuffix('_s').replace('_', '-')}",
        help=about,
        min=1 if isinstance(given.default, int | float) and given.default >= 1 else None,
        show_default=given.default is not None,
        rich_help_panel=_PANELS.get(given.name),
        autocompletion=_COMPLETED.get(given.name),
    )
    return given.replace(annotation=Annotated[given.annotation.__origin__, option])


def _declare(run: Command, parameters: Iterable[Parameter]) -> Command:
    """A command with these parameters. Typer reads its signature and its annotations, so both are
    replaced."""
    run.__signature__ = Signature([*parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {name: of.annotation for name, of in signature(run).parameters.items()}
    return run


def group(
    name: str, options: Sequence[Parameter], make: Callable[..., Any]
) -> Callable[[Command], Command]:
    """A command with several options in place of the parameter `name`, whose value `make` makes of
    theirs."""

    def expand(command: Command) -> Command:
        before = signature(command, eval_str=True).parameters.values()

        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            kwargs[name] = make(**{each.name: kwargs.pop(each.name) for each in options})
            command(*args, **kwargs)

        kept = [each.replace(kind=_KEYWORD) for each in before if each.name != name]
        return _declare(run, [*kept, *options])

    return expand


with_questions = group("asked", parameters_of(Questions), Questions)
"""A command whose parameter `asked: Questions` becomes options."""


def pairs(option: str, texts: Sequence[str] | None, example: str) -> dict[str, Any]:
    """`["a=1", "b=text"]` -> `{"a": 1, "b": "text"}`.

    Raises:
        CofError: a text is no `NAME=VALUE`.
    """
    given = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise CofError(f"{option} takes NAME=VALUE, such as {example}, not {text!r}.")
        given[name.strip().replace("-", "_")] = read_value(value.strip())
    return given
