"""The pictures that questions are about: files, or bytes inside a data file."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.tasks import Embedded, Example
from cof.images import load_image
from cof.types import Decoding, EncodedImage, Request

_ORIENTATION = 0x0112
_SIDES_EXCHANGED = (5, 6, 7, 8)  # values of EXIF's orientation


def picture(source: Path | Embedded) -> Image.Image:
    """The picture of a question, upright RGB.

    Raises:
        CofError: it is missing or damaged.
    """
    if isinstance(source, Path):
        return load_image(source)
    try:
        return load_image(source.load())
    except CofError as error:
        raise CofError(f"{source.name}: {error}") from error


def encoded(engine: Engine, rows: Sequence[Example]) -> list[EncodedImage]:
    """The picture of each question, encoded once for all that will be asked about it.

    An engine may leave the state after a picture to the first question about it. It is asked one
    here, so that the time is the encoding's and not that of whatever method comes first.
    """
    pictures = {source: picture(source) for source in dict.fromkeys(row.image for row in rows)}
    images = engine.encode(list(pictures.values()), prefill=True)
    left = [Request(image, rows[0].prompt) for image in images if image.prefix is not None]
    if left:
        engine.generate(left, Decoding(max_new_tokens=1))
    by_source = dict(zip(pictures, images, strict=True))
    return [by_source[row.image] for row in rows]


def picture_wh(source: Path | Embedded) -> tuple[int, int] | None:
    """`(width, height)` in pixels of the upright picture, without decoding it; None: no picture.

    Whoever decodes it is told what is wrong with it.
    """
    try:
        data = source if isinstance(source, Path) else io.BytesIO(source.load())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(data) as opened:
                turned = opened.getexif().get(_ORIENTATION) in _SIDES_EXCHANGED
                return (opened.height, opened.width) if turned else opened.size
    except (OSError, SyntaxError, CofError, Image.DecompressionBombError):
        return None  # Pillow raises a SyntaxError on some broken headers


def picture_digest(source: Path | Embedded) -> str:
    """A fingerprint of the picture's file: equal where the bytes are, wherever they lie.

    Raises:
        CofError: it cannot be read.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.load()
    except OSError as error:
        raise CofError(f"{source} cannot be read: {error.strerror}.") from error
    return hashlib.sha256(data).hexdigest()
