"""Pictures of every kind come out upright and RGB, or one sentence says why not."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from models import picture
from PIL import Image
from test_client import serving

from cof.errors import CofError, TooLarge
from cof.images import load_image

RED = (255, 0, 0)
GREY = np.full((4, 5), 128, dtype=np.uint8)


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def red(wh: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", wh, RED)


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    red().save(path)
    for source in (path, str(path), path.read_bytes(), red(), np.asarray(red())):
        loaded = load_image(source)
        assert (loaded.mode, loaded.tobytes()) == ("RGB", red().tobytes())


UNDO = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270"


@pytest.mark.parametrize(("orientation", "undo"), [*enumerate(["", *UNDO.split()], 1)])
def test_exif_rotation_is_applied_once(orientation: int, undo: str) -> None:
    upright = Image.new("RGB", (40, 20), "blue")
    upright.paste(RED, (0, 0, 20, 10))  # red top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(Image.Transpose[undo]) if undo else upright
    loaded = load_image(encoded(stored, exif=exif))
    assert loaded.tobytes() == load_image(loaded).tobytes() == upright.tobytes()


def test_unreadable_exif_data_do_not_spoil_a_picture() -> None:
    """Cameras and editors write all kinds; what cannot be read says nothing, the rest holds."""
    header = b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    turned = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    width_as_text = b"\x01\0\0\x02\0\0\0\x0240\0\0"
    stored = encoded(red((40, 20)), exif=header + width_as_text + turned + b"\0\0\0\0")
    assert load_image(stored).size == (20, 40)
    assert load_image(encoded(red((40, 20)), exif=b"Exif\0\0nonsense")).size == (40, 20)


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] * 256)
    return image


@pytest.mark.parametrize(
    ("source", "pixel"),
    [
        (Image.fromarray(GREY), 128),
        (Image.fromarray(GREY.astype(np.uint16) * 257), 128),
        (Image.fromarray(GREY.astype(np.int32) * 257), 128),
        (Image.fromarray(GREY.astype(np.int32)), 128),
        (Image.fromarray(GREY.astype(np.float32) / 255), 128),
        (Image.fromarray(GREY.astype(np.float32)), 128),
        (Image.fromarray(GREY).convert("P"), 128),
        (Image.fromarray(GREY).convert("LA"), 128),
        (Image.new("1", (3, 3), 1), 255),
        (encoded(Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))), 128),  # scaled, not cut
        # transparent parts lie on white
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 255),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), 127),
        (encoded(palette(), transparency=0), 255),
    ],
)
def test_modes(source: Any, pixel: int) -> None:
    mode = getattr(source, "mode", None)
    assert load_image(source).getpixel((1, 1)) == (pixel,) * 3
    assert getattr(source, "mode", None) == mode  # the caller's image is left alone


BLUE = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "blue")]}


@pytest.mark.parametrize(
    "stored",
    [
        *(encoded(red((16, 16)), format, **BLUE) for format in ("GIF", "PNG", "WEBP")),
        encoded(red((16, 16)).convert("CMYK"), "JPEG", quality=95),
    ],
)
def test_first_frames_and_inks(stored: bytes) -> None:
    r, g, b = load_image(stored).getpixel((8, 8))
    assert r > 240 > 15 > max(g, b)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
def test_arrays(shape: tuple[int, ...], dtype: type) -> None:
    top = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    loaded = load_image(np.full(shape, top, dtype=dtype))
    assert loaded.size == (7, 5)
    assert loaded.getpixel((3, 3)) == (255, 255, 255)


def test_a_transposed_array_is_read_in_its_own_order() -> None:
    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(3, 5, 7).transpose(1, 2, 0)
    assert (np.asarray(load_image(array)) == array).all()


def bomb() -> bytes:
    png = bytearray(encoded(Image.new("1", (1, 1))))
    png[16:24] = struct.pack(">II", 60_000, 60_000)  # IHDR's width and height, then its checksum
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


HEADER_ONLY = encoded(Image.new("1", (9_000, 9_000)))[:200]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.zeros((3, 5, 7), np.uint8), "channels come last"),
        *((np.zeros(shape, np.uint8), "H, W") for shape in ((0, 5, 3), 5)),
        *((np.full((5, 7), value), "0..1") for value in (200.0, np.nan, 1e300)),
        (np.zeros((5, 7), np.int64), "int64"),
        (red((20_000, 20)), "crop it"),
        (red((9_000, 9_000)), "more than the 80,000,000"),
        # the size is checked before decoding
        (HEADER_ONLY, "9000x9000"),
        (Image.open(io.BytesIO(HEADER_ONLY)), "9000x9000"),
        (bomb(), "60000x60000"),
        (Image.open(io.BytesIO(encoded(picture((40, 30)))[:800])), "truncated"),
        ("absent.png", "no image file"),
        (Path(__file__).parent, "folder"),
        (__file__, "not an image of a kind that Pillow reads.$"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "pillow-heif"),
        ("/dev/zero", "no image file"),
        ("a." * 2500, "cannot be read"),
        ("a" * 5000, "not an image"),
        ("nul\x00.png", "no image file|cannot be read"),
        (None, "NoneType"),
        (b"", "empty"),
    ],
)
def test_refusals(source: Any, says: str) -> None:
    with pytest.raises(CofError, match=says):
        load_image(source, max_pixels=80_000_000)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])  # Pillow looks at the size of TIFF twice
def test_the_limit_is_ours_and_not_pillows(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(encoded(red(), format), max_pixels=48).size == (8, 6)
    with pytest.raises(TooLarge, match=r"8x6 pixels, more than the 47 .*: scale it down\.$"):
        load_image(encoded(red(), format), max_pixels=47)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pipes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(red())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert load_image("-").tobytes() == red().tobytes()
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_bytes, args=[data])
    writer.start()
    assert load_image(tmp_path / "pipe").tobytes() == red().tobytes()
    writer.join()


def test_an_empty_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(CofError, match=r"^Standard input is empty \(0 bytes\)\.$"):
        load_image("-")


def test_a_file_that_was_closed(tmp_path: Path) -> None:
    picture((40, 30)).save(tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as opened:
        pass
    with pytest.raises(CofError, match="was closed"):
        load_image(opened)


def test_addresses_only_on_request() -> None:
    with serving((200, encoded(red())), (404, b"")) as url:
        with pytest.raises(CofError, match="allow_url"):
            load_image(f"{url}/red.png")
        assert load_image(f"{url}/red.png", allow_url=True).size == (8, 6)
        for address in (f"{url}/blue.png", f"{url}/a red.png", "http://a:b/c", "http://[::1/c"):
            with pytest.raises(CofError, match="cannot be fetched"):
                load_image(address, allow_url=True)


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:;base64,", ""])
def test_an_image_in_base64_is_read(head: str) -> None:
    text = base64.b64encode(encoded(red((30, 20)), "PNG")).decode()
    assert load_image(head + text).tobytes() == red((30, 20)).tobytes()


@pytest.mark.parametrize("text", ["data:image/png;base64,%%%", "data:image/png,abc", "A" * 400_001])
def test_no_message_repeats_a_long_text(text: str) -> None:
    with pytest.raises(CofError) as caught:
        load_image(text)
    assert len(str(caught.value)) < 200
    with pytest.raises(CofError) as caught:
        load_image("no/such/" + "x" * 400_000 + ".png")
    assert len(str(caught.value)) < 1100
