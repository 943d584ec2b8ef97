"""The images that questions are about: files, or bytes inside a data file."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

from PIL import ExifTags, Image

from cof.errors import CofError
from cof.eval.examples import Embedded
from cof.images import load_image


def open_image(source: Path | Embedded) -> Image.Image:
    """The image of a question, upright RGB.

    Raises:
        CofError: it is missing or damaged.
    """
    if isinstance(source, Path):
        return load_image(source)
    try:
        return load_image(source.load())
    except CofError as error:
        raise CofError(f"{source.name}: {error}") from error


def read_image_wh(source: Path | Embedded) -> tuple[int, int] | None:
    """`(width, height)` in pixels of the upright image, without decoding it; None: no image."""
    try:
        data = source if isinstance(source, Path) else io.BytesIO(source.load())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(data) as opened:
                width, height = opened.size
                orientation = opened.getexif().get(ExifTags.Base.Orientation)
                return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    except Exception:  # Pillow's readers raise many kinds on damaged files; `open_image` tells why
        return None


def image_digest(source: Path | Embedded) -> str:
    """A fingerprint of the image's file: equal where the bytes are, wherever they lie.

    Raises:
        CofError: it cannot be read.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.load()
    except OSError as error:
        raise CofError(f"{source} cannot be read: {error.strerror}.") from error
    return hashlib.sha256(data).hexdigest()
