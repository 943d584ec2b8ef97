"""What the commands share: options, loading a model, and errors told in one sentence."""

from __future__ import annotations

import functools
import gc
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from cof.errors import CofError, CofWarning

if TYPE_CHECKING:
    from cof.pipeline import CoF

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
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Hub id, local path, or tiny-early. \\[default: tiny, embedded]"),
]
SideOption = Annotated[
    int,
    typer.Option("--side", help="Side of the scenes in pixels; above 160 details are smaller."),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="paper, paper-parity or tiny; paper:llava-1.5-7b names a row."),
]
GrounderOption = Annotated[
    str | None,
    typer.Option(
        "--grounder",
        help="Where to look: prompt, attention, relevance, logits, detector, given, whole or none.",
    ),
]
GrounderLayersOption = Annotated[
    str | None,
    typer.Option(
        "--grounder-layers",
        help="attention, relevance: read these decoder layers, such as 12-16. \\[default: its own]",
    ),
]
DetectorOption = Annotated[
    str | None,
    typer.Option("--detector", help="Hub id or path of the open-vocabulary detector to look with."),
]
ExpandOption = Annotated[
    float | None, typer.Option("--expand", help="alpha: scale the box about its centre.")
]
StrengthOption = Annotated[
    float | None, typer.Option("--strength", help="lambda: 1 leaves the model as it is.")
]
GroundingPromptOption = Annotated[
    str | None,
    typer.Option("--grounding-prompt", help="'paper', or a template with {question} in it."),
]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option("--min-confidence", help="Boxes less sure than this (0..1) count as not found."),
]
AdaptiveOption = Annotated[
    str,
    typer.Option(
        "--adaptive",
        metavar="off|on|FILE",
        help="Look only where it pays: by the model's own rule, or one that `cof adapt` wrote.",
    ),
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. \\[default: by device]")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, ... or auto. \\[default: GPU if any]")
]
BoxesOption = Annotated[
    str | None,
    typer.Option(
        "--boxes",
        help="How the model writes its box: free (as it likes), or template (in its family's form, "
        "always readable, and faster).",
    ),
]
QuantizationOption = Annotated[
    str | None,
    typer.Option("--quantization", help="Load the weights in 4bit or 8bit (bitsandbytes)."),
]
MaxBatchTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-batch-tokens", help="Run as many tokens at a time as fit into memory. [16384]"
    ),
]
CropOption = Annotated[
    bool,
    typer.Option("--crop", help="LLaVA: crop the centre, as the hub's processor does, not pad."),
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
        "--prompt_style",
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


def load(
    model: str | None,
    preset: str | None,
    dtype: str | None,
    device: str | None,
    crop: bool,
    **settings: Any,
) -> CoF:
    """The pipeline; settings that were not given on the command line (None) stay the preset's."""
    from cof.pipeline import CoF
    from cof.tiny import EMBEDDED

    if model is None or model in EMBEDDED:  # loads in a blink
        _without_bars()
    gc.disable()  # a fifth of the imports' time would go into looking for garbage where none is
    try:
        return CoF.from_pretrained(
            model,
            preset=preset,
            dtype=dtype,
            device_map=device,
            pad_to_square=False if crop else None,
            **{name: value for name, value in settings.items() if value is not None},
        )
    finally:
        gc.enable()


def _without_bars() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read as transformers is imported
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def indices(option: str, text: str | None) -> tuple[int, ...] | None:
    """`0-3,7` -> `(0, 1, 2, 3, 7)`."""
    if text is None:
        return None
    indices: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if found is None or (found[2] and int(found[2]) < int(found[1])):
            raise CofError(f"{option} takes numbers and ranges such as 0-15,20, not {text!r}.")
        indices += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(dict.fromkeys(indices))
