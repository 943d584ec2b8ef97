"""Load any image as upright RGB, or say in one sentence why not."""

from __future__ import annotations

import base64
import http.client
import io
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cof.errors import CofError, TooLarge

MAX_PIXELS = 100_000_000
"""The largest image that is decoded by default (0.3 GB as RGB); larger ones may be bombs."""

MAX_ASPECT = 200
"""Images with a longer side more than so many times the shorter one are unusable once resized."""

_MAX_DOWNLOAD = 64 * 2**20  # bytes
_DOWNLOAD_TIMEOUT = 20  # seconds

_LIMITING = Lock()

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What follows `ftyp` in the image files of many phones."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.generic]"


def load_image(
    source: ImageSource,
    *,
    allow_url: bool = False,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Load any image as an upright RGB `PIL.Image`.

    EXIF rotation is applied (so boxes refer to what a viewer shows), transparent parts become
    white, 16 bits are scaled to 8 bits, and of an animation the first frame is taken.

    Args:
        source: a path (`-`: the standard input), the bytes of an image file, a PIL image, a numpy
            array `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)` (uint8, uint16, or floats in
            0..1), a `data:` URL, an image file in base64, or, with `allow_url`, an http(s) address.
        allow_url: whether addresses are fetched.
        max_pixels: larger images are refused undecoded; `PIL.Image.MAX_IMAGE_PIXELS` gives way.
        formats: the formats of Pillow that are accepted, such as `PNG`; None: all.

    Raises:
        TooLarge: it has more pixels.
        CofError: the image is missing, empty, damaged, too long and thin, or of an unknown format.
    """
    image, name = open_checked(source, allow_url, max_pixels, formats)
    try:
        try:
            image.load()
        except Image.DecompressionBombError:
            with _limit_of_pillow(image.width * image.height):
                image.load()
        loaded = _to_rgb(_turn_upright(image))
    except CofError:
        raise
    except Exception as error:  # on damaged data Pillow raises exceptions of many types
        reason = str(error) or type(error).__name__
        raise CofError(
            f"{name} cannot be decoded ({reason}): the file is damaged, or was closed."
        ) from error
    loaded.info = {}  # its EXIF data have been applied
    return loaded


def is_plain(data: bytes) -> bool:
    """Whether every program that reads this image file sees the pixels that `load_image` gives."""
    with Image.open(io.BytesIO(data)) as image:
        # Pillow decodes a PNG to read what stands after its pixels; most have no such chunk
        chunks = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        told = image.format != "PNG" or any(chunk in data for chunk in chunks)
        try:
            upright = not told or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        except Exception:  # on damaged data Pillow raises exceptions of many types
            return False
        return upright and image.mode == "RGB" and not image.has_transparency_data


def image_file(image: Image.Image, kind: str) -> bytes:
    """An image without loss as a file: `PNG`, or `BMP`, which is larger but takes a fifth of the
    time, for programs of one machine."""
    data = io.BytesIO()
    image.save(data, kind, compress_level=1)  # of PNG: fast
    return data.getvalue()


def data_url(image: Image.Image | bytes, kind: str = "png") -> str:
    """An image without loss, or a file of some kind with one, as an address that holds it."""
    file = image if isinstance(image, bytes) else image_file(image, "PNG")
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def open_checked(
    source: ImageSource, allow_url: bool, max_pixels: int, formats: tuple[str, ...] | None
) -> tuple[Image.Image, str]:
    """What `load_image` takes, not decoded yet, and its name for messages.

    Raises:
        CofError: it is missing, too large, too long and thin, or of an unknown format.
    """
    image, name = _open(source, allow_url, formats)
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"{name} has {width}x{height} pixels, more than the {max_pixels:,} that max_pixels "
            "allows: scale it down."
        )
    if width == 0 or height == 0:
        raise CofError(f"{name} is empty ({width}x{height} pixels).")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise CofError(
            f"{name} is {width}x{height} pixels, one side more than {MAX_ASPECT} times the "
            "other: crop it first."
        )
    return image, name


def _open(
    source: ImageSource, allow_url: bool, formats: tuple[str, ...] | None
) -> tuple[Image.Image, str]:
    """The image, not decoded yet, and its name for messages."""
    if isinstance(source, Image.Image):
        return source, "The image"
    if isinstance(source, np.ndarray):
        return _from_array(source), "The array"
    data: Any = source
    name = "The image"
    if isinstance(source, (str, os.PathLike)):
        address = os.fsdecode(source)
        if (data := embedded(address)) is None:
            is_url, name = address.lower().startswith(("http://", "https://")), address
            data = _download(address, allow_url) if is_url else _read(address)
    if not isinstance(data, (bytes, bytearray)):
        kind = type(source).__name__
        raise CofError(f"An image must be a path, bytes, a PIL image or a numpy array, not {kind}.")
    return _identify(bytes(data), name, formats), name


def embedded(text: str) -> bytes | None:
    """The bytes in a `data:` URL or a base64 text; None: the text is a path or an address.

    Raises:
        CofError: they are no base64.
    """
    if text[:5].lower() == "data:":
        head, _, body = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise CofError("A data: URL of an image begins data:image/png;base64, or alike.")
    elif _BASE64.fullmatch(text) and not os.path.isfile(text):
        body = text
    else:
        return None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError:
        raise CofError("The text given as an image is neither a path nor valid base64.") from None


def _read(path: str) -> bytes:
    file = Path(path)
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        if file.is_dir():
            raise CofError(f"{path} is a folder: name an image file in it.")
        if not (file.is_file() or file.is_fifo()):
            raise CofError(f"There is no image file {path}.")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CofError(f"{path} cannot be read: {reason}.") from error


def _download(address: str, allow_url: bool) -> bytes:
    if not allow_url:
        raise CofError(
            f"{address} is an address, which is fetched only if you allow it: pass "
            "allow_url=True (command line: --allow-url), or save the image and name the file."
        )
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "cof"})
        with urllib.request.urlopen(request, timeout=_DOWNLOAD_TIMEOUT) as reply:
            data: bytes = reply.read(_MAX_DOWNLOAD + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise CofError(f"{address} cannot be fetched: {reason}.") from error
    if len(data) > _MAX_DOWNLOAD:
        raise CofError(f"{address} is larger than {_MAX_DOWNLOAD >> 20} MiB: save a smaller copy.")
    return data


@contextmanager
def _limit_of_pillow(pixels: int | None) -> Iterator[None]:
    """Pillow's own limit, which is the whole process's, is this one for a moment."""
    with _LIMITING:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _identify(data: bytes, name: str, formats: tuple[str, ...] | None) -> Image.Image:
    if not data:
        raise CofError(f"{'Standard input' if name == '-' else name} is empty (0 bytes).")
    try:
        with _limit_of_pillow(None):
            return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        kinds = "a kind that Pillow reads" if formats is None else f"the kinds {', '.join(formats)}"
        heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF
        register = ", or register the package pillow-heif" if formats is None else ""
        hint = f": save it as JPEG{register}" if heif else ""
        raise CofError(f"{name} is not an image of {kinds}{hint}.") from None
    except Exception as error:  # on damaged data Pillow raises exceptions of many types
        raise CofError(f"{name} cannot be decoded ({error}): the file is damaged.") from error


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise CofError(
            f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not "
            f"{array.shape}; channels come last."
        )
    pixels = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(_to_eight_bits(pixels))


def _to_eight_bits(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    kind, top = pixels.dtype, 65535 if pixels.dtype == np.uint16 else 1
    if kind != np.uint16 and kind.kind not in "bf":
        raise CofError(f"An image array must be uint8, uint16 or floats in 0..1, not {kind}.")
    if not (pixels.min() >= 0 and pixels.max() <= top):  # NaN is neither
        raise CofError("An image array of floats must hold numbers in 0..1: divide 0..255 by 255.")
    return np.round(pixels.astype(np.float32) * np.float32(255 / top)).astype(np.uint8)


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; metadata that cannot be read are ignored.

    `ImageOps.exif_transpose` also writes the metadata anew, and fails on those that many cameras
    and editors have written wrongly: it gets the orientation alone.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # on damaged data Pillow raises exceptions of many types
        return image
    if orientation == 1:
        return image
    alone = image.copy()
    alone.info = {name: of for name, of in image.info.items() if name == "transparency"}
    alone.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(alone)


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new image, never the same one."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image).astype(np.uint16)))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_scale_grey(np.asarray(image)))
    if image.mode == "LAB":
        raise CofError("The image is in the LAB colour space: save it as RGB.")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _scale_grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """32-bit greys as 8 bits; files do not say their range: the smallest usual one that fits."""
    floats = values.astype(np.float64)
    low, high = floats.min(), floats.max()
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top and (top > 1 or values.dtype.kind == "f"):
            return np.round(floats * (255 / top)).astype(np.uint8)
    raise CofError(f"The image's greys run from {low:g} to {high:g}: scale them to 0..65535.")
