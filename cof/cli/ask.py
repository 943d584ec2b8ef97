"""`cof ask` and `cof ground`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from cof.cli.common import (
    NUMBER,
    AdaptiveOption,
    AllowUrlOption,
    BoxesOption,
    CropOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    ExpandOption,
    GrounderLayersOption,
    GrounderOption,
    GroundingPromptOption,
    ImageArgument,
    JsonOption,
    MaxBatchTokensOption,
    MinConfidenceOption,
    ModelOption,
    PresetOption,
    QuantizationOption,
    QuestionArgument,
    StrengthOption,
    indices,
    load,
    sentences,
)
from cof.errors import CofError

if TYPE_CHECKING:
    from cof.geometry.boxes import XYXY
    from cof.pipeline import Answer
    from cof.settings import Settings


class BoxCommand(TyperCommand):
    """A command whose `--box` takes four numbers and may be repeated, which typer's own options
    cannot do at once; `--box x1,y1,x2,y2` works too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        position = 0
        while position < len(args):
            joined.append(args[position])
            position += 1
            if joined[-1] == "--box":
                length = 0
                while length < 4 and position + length < len(args):
                    if not re.fullmatch(NUMBER, args[position + length]):
                        break
                    length += 1
                if length:
                    joined.append(",".join(args[position : position + length]))
                position += length
        return super().parse_args(ctx, joined)


@sentences
def ask(
    image: ImageArgument,
    question: QuestionArgument,
    model: ModelOption = None,
    preset: PresetOption = None,
    grounder: GrounderOption = None,
    grounder_layers: GrounderLayersOption = None,
    detector: DetectorOption = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box",
            metavar="X1 Y1 X2 Y2",
            help="Look here: fractions of width and height; may be repeated.",
        ),
    ] = None,
    focus: Annotated[
        str | None,
        typer.Option(
            "--focus",
            help="How to make it look: attention, soft, contrast, crop, beside, overlay or none.",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="focus contrast: how far from not looking; 1: not at all."),
    ] = None,
    overlay: Annotated[
        str | None,
        typer.Option("--overlay", help="What focus overlay draws: frame, blur or dim."),
    ] = None,
    strength: StrengthOption = None,
    expand: ExpandOption = None,
    scope: Annotated[
        str | None, typer.Option("--scope", help="Which queries attend with the bias: all or text.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Only these decoder layers, such as 0-15,20.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option("--heads", help="Only these attention heads, such as 0-7.")
    ] = None,
    grounding_prompt: GroundingPromptOption = None,
    boxes: BoxesOption = None,
    min_confidence: MinConfidenceOption = None,
    on_missing: Annotated[
        str | None,
        typer.Option("--on-missing", help="When no box is found: plain, or whole (all tokens)."),
    ] = None,
    adaptive: AdaptiveOption = "off",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")
    ] = 64,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    quantization: QuantizationOption = None,
    max_batch_tokens: MaxBatchTokensOption = None,
    crop: CropOption = False,
    allow_url: AllowUrlOption = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also give the plain model's answer.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write a picture of where it looked (.png, .jpg or .webp)."),
    ] = None,
    show_layers: Annotated[
        str | None,
        typer.Option(
            "--show-layers", help="--save: average attention over these. \\[default: all]"
        ),
    ] = None,
    show_heads: Annotated[
        str | None,
        typer.Option("--show-heads", help="--save: average attention over these. \\[default: all]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question: find the place, then answer while looking at it."""
    from cof.adaptive import chosen_rule, unlike
    from cof.geometry.regions import region_from_boxes
    from cof.images import load_image
    from cof.pipeline import Query, checked_question
    from cof.tiny import resolved
    from cof.types import Decoding
    from cof.viz import check_path, save_overlay

    # all that can be refused is refused before minutes are spent on loading a model
    shown_layers = indices("--show-layers", show_layers)
    shown_heads = indices("--show-heads", show_heads)
    if save is not None:
        check_path(save)
    elif shown_layers or shown_heads:
        raise CofError("--show-layers and --show-heads choose what --save draws: add --save.")
    name = str(resolved(model))
    rule = chosen_rule(adaptive, name)
    own = boxes_of(box)
    query = Query(
        load_image(image, allow_url=allow_url),
        checked_question(question),
        region=region_from_boxes(own) if own else None,
    )
    cof = load(
        model,
        preset,
        dtype,
        device,
        crop,
        grounder=grounder,
        grounder_layers=indices("--grounder-layers", grounder_layers),
        detector=detector,
        focus=focus,
        guidance=guidance,
        overlay=overlay,
        strength=strength,
        expand=expand,
        scope=scope,
        layers=indices("--layers", layers),
        heads=indices("--heads", heads),
        grounding_prompt=grounding_prompt,
        boxes=boxes,
        min_confidence=min_confidence,
        quantization=quantization,
        max_batch_tokens=max_batch_tokens,
        on_missing=on_missing,
        adaptive=rule,
    )
    if others := unlike(adaptive, name, cof.settings.as_dict()):
        typer.echo(f"Note: the rule was fitted with {'; '.join(others)}.", err=True)
    answer = cof.batch([query], decoding=Decoding(max_new_tokens=max_new_tokens))[0]
    plain = answer.plain() if compare else None
    if as_json:
        typer.echo(json.dumps(_answer_object(answer, plain)))
    else:
        _print_answer(answer, plain)
    # last: an answer that took minutes is not lost to a full disk
    if save is not None:
        save_overlay(
            save,
            cof.engine,
            answer,
            plain=plain,
            layers=shown_layers,
            heads=shown_heads,
        )


@sentences
def ground(
    image: ImageArgument,
    question: QuestionArgument,
    model: ModelOption = None,
    preset: PresetOption = None,
    grounder: GrounderOption = None,
    grounder_layers: GrounderLayersOption = None,
    detector: DetectorOption = None,
    grounding_prompt: GroundingPromptOption = None,
    boxes: BoxesOption = None,
    min_confidence: MinConfidenceOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    quantization: QuantizationOption = None,
    max_batch_tokens: MaxBatchTokensOption = None,
    crop: CropOption = False,
    allow_url: AllowUrlOption = False,
    as_json: JsonOption = False,
) -> None:
    """Only find the place: the box of the region that holds the answer, before expansion."""
    from cof.images import load_image
    from cof.pipeline import checked_question

    picture, question = load_image(image, allow_url=allow_url), checked_question(question)
    cof = load(
        model,
        preset,
        dtype,
        device,
        crop,
        grounder=grounder or "prompt",
        grounder_layers=indices("--grounder-layers", grounder_layers),
        detector=detector,
        grounding_prompt=grounding_prompt,
        boxes=boxes,
        min_confidence=min_confidence,
        quantization=quantization,
        max_batch_tokens=max_batch_tokens,
    )
    found = cof.locate(picture, question)
    places = found.region.boxes if found.region else ()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "boxes": places,
                    "found": found.region is not None,
                    "grounding_text": found.text,
                    "confidence": found.confidence,
                    "reason": found.reason,
                    "settings": cof.settings.as_dict(),
                }
            )
        )
        return
    lines = _lines()
    _box_lines(lines, places, found.confidence, found.reason)
    if found.text:
        lines.add_row("said", Text(found.text))
    Console().print(lines)


def boxes_of(texts: list[str] | None) -> list[list[float]] | None:
    """`["0.1,0.2,0.5,0.6"]` -> `[[0.1, 0.2, 0.5, 0.6]]`."""
    if not texts:
        return None
    boxes = []
    for text in texts:
        numbers = text.split(",")
        if len(numbers) != 4 or not all(re.fullmatch(NUMBER, number) for number in numbers):
            raise CofError(f"--box takes four numbers, x1 y1 x2 y2, not {text!r}.")
        boxes.append([float(number) for number in numbers])
    return boxes


def _answer_object(answer: Answer, plain: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"answer": answer.text}
    if plain is not None:
        shown["plain_answer"] = plain
    return shown | {
        "boxes": answer.boxes,
        "found": answer.found,
        "grounding_text": answer.grounding_text,
        "confidence": answer.confidence,
        "reason": answer.reason,
        "settings": answer.settings.as_dict(),
        "timings": dict(answer.timings.as_dict()),
    }


def _lines() -> Table:
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    return lines


def _print_answer(answer: Answer, plain: str | None) -> None:
    lines = _lines()
    lines.add_row("answer", Text(answer.text, style="bold"))
    if plain is not None:
        lines.add_row("plain", Text(plain))
    _box_lines(lines, answer.boxes, answer.confidence, answer.reason)
    _settings_line(lines, answer.settings)
    times = answer.timings
    lines.add_row("time", f"{times.ground:.2f} s to look, {times.answer:.2f} s to answer")
    Console().print(lines)


def _box_lines(
    lines: Table, boxes: tuple[XYXY, ...], confidence: float | None, reason: str
) -> None:
    sure = "" if confidence is None else f"   confidence {confidence:.2f}"
    for box in boxes:
        lines.add_row("box", "  ".join(f"{value:.3f}" for value in box) + sure)
    if reason:
        lines.add_row("no box" if not boxes else "note", Text(reason))


def _settings_line(lines: Table, settings: Settings) -> None:
    lines.add_row(
        "settings",
        f"grounder {settings.grounder}, focus {settings.focus}, "
        f"expand {settings.expand:g}, strength {settings.strength:g}, scope {settings.scope}",
    )
