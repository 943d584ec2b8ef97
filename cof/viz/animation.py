"""Attention over lambda, as an animated image."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from cof.errors import CofError
from cof.query import Query
from cof.types import EncodedImage
from cof.viz.layout import (
    GAP,
    INK,
    MARGIN,
    PAPER,
    QUESTION,
    draw_labelled,
    draw_text,
    line_up,
    stack,
)
from cof.viz.page import brightest_share, check_path, draw_scale, name_region, write_file
from cof.viz.panels import heat
from cof.viz.readout import Readout, read

if TYPE_CHECKING:
    from cof.geometry.regions import Region
    from cof.images import ImageSource
    from cof.pipeline import Answer, CoF
    from cof.types import Decoding

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

ANIMATIONS = {"WEBP": ".webp", "GIF": ".gif"}

_FRAME, _LAST_FRAME = 900, 2000  # milliseconds


def save_animation(
    path: str | os.PathLike[str],
    cof: CoF,
    image: ImageSource | EncodedImage,
    question: str,
    *,
    strengths: Sequence[float] = STRENGTHS,
    region: Region | None = None,
    decoding: Decoding | None = None,
) -> None:
    """Write how attention and answer change as lambda grows: one frame for each strength.

    The image is encoded once, and the place is looked for once (of several grounders, by the first
    that finds one).

    Args:
        path: a name that ends in .webp or .gif.
        cof: answers; its focus must use lambda, and its engine must tell its attention.
        image: what `cof` takes.
        question: to ask.
        strengths: lambdas in the order of the frames; 1 is the plain model.
        region: where to look, before expansion; None: where `cof` finds it.
        decoding: how answers are decoded.

    Raises:
        CofError: the file's name, the image, the question or a strength is refused, there is no
            region or no attention to show, or the file cannot be written.
    """
    kind = check_path(path, ANIMATIONS)
    frames = draw_frames(
        cof, image, question, strengths=strengths, region=region, decoding=decoding
    )
    data = io.BytesIO()
    frames[0].save(
        data,
        format=kind,
        save_all=True,
        append_images=frames[1:],
        duration=[_FRAME] * (len(frames) - 1) + [_LAST_FRAME],
        loop=0,
    )
    write_file(path, data.getvalue())


def draw_frames(
    cof: CoF,
    image: ImageSource | EncodedImage,
    question: str,
    *,
    strengths: Sequence[float] = STRENGTHS,
    region: Region | None = None,
    decoding: Decoding | None = None,
) -> list[Image.Image]:
    """The frames of `save_animation`: RGB, all of one size, with one scale of colours."""
    if not strengths:
        raise CofError("An animation needs at least one strength (lambda).")
    if cof.settings.option("strength") is None:
        name = cof.settings.focus.name
        raise CofError(
            f"Focus {name!r} has no lambda to animate: choose attention, soft or contrast."
        )
    encoded = image if isinstance(image, EncodedImage) else cof.encode(image)
    if region is None:
        grounding = cof.locate(encoded, question)
        region = grounding.region
        if region is None:
            raise CofError(f"There is no region to animate. {grounding.reason}")
    queries = [Query(encoded, question, region=region, strength=value) for value in strengths]
    answers = cof.batch(queries, decoding=decoding)
    readouts: list[Readout] = []
    for answer in answers:
        known = readouts[0] if readouts else None
        readout = read(cof.engine, answer, image=encoded, known=known)
        if readout is None:
            raise CofError("The engine cannot tell the attention to each image token.")
        readouts.append(readout)
    top = max(brightest_share(readout) for readout in readouts)
    # lambda 1 highlights nothing, and shows the region of the others all the same
    looked_at = next((answer.region for answer in answers if answer.region is not None), region)
    tokens = next((readout.highlighted for readout in readouts if readout.highlighted), None)
    frames = [
        _draw_frame(
            replace(answer, region=looked_at), strength, replace(readout, highlighted=tokens), top
        )
        for answer, strength, readout in zip(answers, strengths, readouts, strict=True)
    ]
    return _of_one_size(frames)


def _draw_frame(answer: Answer, strength: float, readout: Readout, top: float) -> Image.Image:
    state = readout.after or readout.before
    panel = heat(answer.image, state, top, answer.region)
    width, share = panel.width, f"{readout.inside(state):.1%}"
    values = [
        draw_labelled("lambda", f"{strength:g}", INK, width),
        draw_labelled(f"attention {name_region(answer)}", share, INK, width),
        draw_labelled("answer", answer.text or "(nothing)", INK, width),
    ]
    fits = sum(value.width for value in values) + GAP * (len(values) - 1) <= width
    body = [
        draw_text(answer.question, QUESTION, INK, width),
        *([line_up(values, GAP)] if fits else values),
        panel,
        draw_scale(width, top, state),
    ]
    return stack(body, GAP // 2)


def _of_one_size(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames on paper of one size, with a margin."""
    width = max(frame.width for frame in frames) + 2 * MARGIN
    height = max(frame.height for frame in frames) + 2 * MARGIN
    pages = [Image.new("RGB", (width, height), PAPER) for _ in frames]
    for page, frame in zip(pages, frames, strict=True):
        page.paste(frame, (MARGIN, MARGIN))
    return pages
