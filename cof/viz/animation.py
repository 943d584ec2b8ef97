"""Attention over lambda, as an animated image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from cof.errors import CofError
from cof.types import EncodedImage
from cof.viz.page import INK, brightest_share, check_path, heat_panel, lay_out, render, save
from cof.viz.readout import Readout, read

if TYPE_CHECKING:
    from cof.geometry.regions import Region
    from cof.images import ImageSource
    from cof.types import Decoding

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

ANIMATIONS = {"WEBP": ".webp", "GIF": ".gif"}

_FRAME, _LAST_FRAME = 900, 2000  # milliseconds


def save_animation(
    path: str | os.PathLike[str],
    cof: Any,
    image: ImageSource | EncodedImage,
    question: str,
    **options: Any,
) -> None:
    """Write how attention and answer change as lambda grows: one frame for each strength.

    Args:
        path: a name that ends in .webp or .gif.
        cof, image, question, options: as of `draw_frames`.

    Raises:
        CofError: what `check_path` and `draw_frames` refuse, or the file cannot be written.
    """
    kind = check_path(path, ANIMATIONS)
    frames = draw_frames(cof, image, question, **options)
    duration = [_FRAME] * (len(frames) - 1) + [_LAST_FRAME]
    save(path, frames, kind, duration=duration, loop=0)


def draw_frames(
    cof: Any,
    image: ImageSource | EncodedImage,
    question: str,
    *,
    strengths: Sequence[float] = STRENGTHS,
    region: Region | None = None,
    decoding: Decoding | None = None,
) -> list[Image.Image]:
    """The frames of an animation: RGB, all of one size, with one scale of colours.

    The image is encoded once, and the place is looked for once (of several grounders, by the first
    that finds one).

    Args:
        cof: a `cof.CoF`; its focus must use lambda, and its engine must tell its attention.
        image: what `cof` takes.
        question: to ask.
        strengths: lambdas in the order of the frames; 1 is the plain model.
        region: where to look, before expansion; None: where `cof` finds it.
        decoding: how answers are decoded.

    Raises:
        CofError: the image, the question or a strength is refused, or there is no region or no
            attention to show.
    """
    from matplotlib.figure import Figure

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
    query = {"image": encoded, "question": question, "region": region}
    queries = [{**query, "strength": value} for value in strengths]
    answers = cof.batch(queries, decoding=decoding)
    readouts: list[Readout] = []
    for answer in answers:
        known = readouts[0] if readouts else None
        readout = read(cof.engine, answer, image=encoded, known=known)
        if readout is None:
            raise CofError("The engine cannot tell the attention to each image token.")
        readouts.append(readout)
    top = max(map(brightest_share, readouts))
    # lambda 1 highlights nothing, and shows the region of the others all the same
    looked_at = next((answer.region for answer in answers if answer.region is not None), region)
    tokens = next((readout.highlighted for readout in readouts if readout.highlighted), None)
    frames = []
    for answer, strength, readout in zip(answers, strengths, readouts, strict=True):
        state = readout.after or readout.before
        title = f"Attention: {replace(readout, highlighted=tokens).told(state)}"
        panel = heat_panel(replace(answer, region=looked_at), title, state, top)
        said = (answer.question, f"lambda {strength:g}: {answer.text or '(nothing)'}")
        figure = Figure()
        lay_out(figure, answer.image.size, [panel], [(line, INK) for line in said])
        frames.append(render(figure))
    # texts of different lengths make figures of different sizes: panels lie over one another
    width, height = (max(frame.size[side] for frame in frames) for side in (0, 1))
    return [
        ImageOps.expand(frame, (0, height - frame.height, width - frame.width, 0), "white")
        for frame in frames
    ]
