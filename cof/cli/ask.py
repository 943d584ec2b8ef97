"""`cof ask` and `cof ground`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from cof.answer import Answer
from cof.cli.common import (
    AllowUrlOption,
    ImageArgument,
    JsonOption,
    Model,
    QuestionArgument,
    sentences,
    with_model,
)
from cof.errors import CofError
from cof.geometry.boxes import XYXY
from cof.geometry.regions import Region, region_from_mask
from cof.images import load_image
from cof.query import Query, check_question
from cof.types import Decoding

_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)"


class BoxCommand(TyperCommand):
    """A command whose `--box` takes four numbers and may be repeated, which typer's own options
    cannot do at once; `--box x1,y1,x2,y2` works too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        boxes = re.compile(rf"(?<=--box)\0{_NUMBER}(?:\0{_NUMBER}){{0,3}}(?=\0|$)")
        joined = boxes.sub(lambda box: "\0" + box[0][1:].replace("\0", ","), "\0".join(args))
        return super().parse_args(ctx, joined.split("\0") if args else args)


@sentences
@with_model()
def ask(
    image: ImageArgument,
    question: QuestionArgument,
    model: Model,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X1 Y1 X2 Y2", help="Look here: fractions of width and height; may be repeated."
        ),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="FILE", help="Or look at the white part of this image.")
    ] = None,
    compare: Annotated[bool, "Also give the plain model's answer."] = False,
    max_new_tokens: Annotated[int, "Longest answer, in tokens."] = 64,
    save: Annotated[Path | None, "Write an image of where it looked (.png, .jpg or .webp)."] = None,
    allow_url: AllowUrlOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question: find the place, then answer while looking at it.

    What is not given is the preset's, or the model's own; `cof settings` lists all options.
    """
    from cof.viz.page import check_path, save_overlay
    from cof.web.view import read_boxes

    # refuse what can be refused before minutes are spent on loading a model
    if save is not None:
        check_path(save)
    boxes = read_boxes(";".join(box or ()))
    region = Region(boxes=boxes) if boxes else None
    if region and mask:
        raise CofError("--box and --mask both say where to look: give one of them.")
    if mask is not None:
        region = region_from_mask(np.asarray(load_image(mask).convert("L")))
    photo = load_image(image, allow_url=allow_url)
    query = Query(photo, check_question(question), region=region)
    cof = model.pipeline()
    (answer,) = cof.batch([query], decoding=Decoding(max_new_tokens=max_new_tokens))
    plain = answer.plain() if compare else None
    try:
        if as_json:
            compared = {} if plain is None else {"plain_answer": plain}
            typer.echo(json.dumps({"answer": answer.text, **compared, **answer.as_dict()}))
        else:
            _print_answer(answer, plain)
    finally:  # neither a full disk nor a closed console costs an answer that took minutes
        if save is not None:
            save_overlay(save, cof.engine, answer, plain=plain)


@sentences
@with_model()
def ground(
    image: ImageArgument,
    question: QuestionArgument,
    model: Model,
    allow_url: AllowUrlOption = False,
    as_json: JsonOption = False,
) -> None:
    """Only find the place: the box of the region that holds the answer, before expansion."""
    loaded, question = load_image(image, allow_url=allow_url), check_question(question)
    cof = model.pipeline()
    grounding = cof.locate(loaded, question)
    boxes = grounding.region.boxes if grounding.region else ()
    if as_json:
        shown = {
            "boxes": boxes,
            "found": grounding.region is not None,
            "grounding_text": grounding.text,
            "confidence": grounding.confidence,
            "reason": grounding.reason,
            "settings": cof.settings.as_dict(),
        }
        typer.echo(json.dumps(shown))
        return
    _print([*_looked(boxes, grounding.confidence, grounding.reason), ("reply", grounding.text)])


def _print_answer(answer: Answer, plain: str | None) -> None:
    settings, times = answer.settings.as_dict(), answer.timings
    shown = ("grounder", "focus", "expand", "strength", "scope")
    _print(
        [
            ("answer", answer.text or "(nothing)"),
            ("plain", plain or ""),
            *_looked(answer.boxes, answer.confidence, answer.reason),
            ("found by", answer.grounder if len(answer.settings.grounders) > 1 else ""),
            ("settings", ", ".join(f"{n} {settings[n]}" for n in shown if n in settings)),
            ("time", f"{times.ground:.2f} s to look, {times.answer:.2f} s to answer"),
        ]
    )


def _looked(boxes: Sequence[XYXY], sure: float | None, reason: str) -> list[tuple[str, str]]:
    confidence = "" if sure is None else f"   confidence {sure:.2f}"
    lines = [("box", "  ".join(f"{side:.3f}" for side in box) + confidence) for box in boxes]
    return [*lines, ("note" if boxes else "no box", reason)]


def _print(lines: Sequence[tuple[str, str]]) -> None:
    """The lines that say something."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        if text:
            table.add_row(name, Text(text, style="bold" if name == "answer" else ""))
    Console().print(table)
