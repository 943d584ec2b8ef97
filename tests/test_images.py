"""Pictures of every kind come out upright and RGB, or one sentence says why not."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from cof.errors import CofError
from cof.images import load_image

RED = (255, 0, 0)


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def red(wh: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", wh, RED)


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    red().save(path)
    sources = [path, str(path), path.read_bytes(), red(), np.asarray(red())]
    for source in sources:
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert loaded.tobytes() == red().tobytes()


def test_the_callers_image_is_left_alone() -> None:
    mine = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    load_image(mine)
    assert mine.mode == "RGBA"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), "blue")
    upright.paste(RED, (0, 0, 20, 10))  # red top left
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(stored, "PNG", exif=exif))
    assert loaded.tobytes() == upright.tobytes()


def test_a_turned_picture_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    once = load_image(encoded(red((40, 20)), "PNG", exif=exif))
    assert once.size == (20, 40)
    assert load_image(once).size == (20, 40)


def test_unreadable_exif_data_do_not_spoil_a_picture() -> None:
    """Cameras and editors write all kinds; what cannot be read says nothing, the rest holds."""
    header = b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    turned = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    width_as_text = b"\x01\0\0\x02\0\0\0\x0240\0\0"
    stored = encoded(red((40, 20)), "PNG", exif=header + width_as_text + turned + b"\0\0\0\0")
    assert load_image(stored).size == (20, 40)
    stored = encoded(red((40, 20)), "PNG", exif=b"Exif\0\0nonsense")
    assert load_image(stored).size == (40, 20)


def test_modes() -> None:
    grey = np.full((4, 5), 128, dtype=np.uint8)
    cases = [
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(grey.astype(np.int32) * 257),
        Image.fromarray(grey.astype(np.int32)),
        Image.fromarray(grey.astype(np.float32) / 255),
        Image.fromarray(grey.astype(np.float32)),
        Image.fromarray(grey).convert("P"),
        Image.fromarray(grey).convert("LA"),
    ]
    for picture in cases:
        assert load_image(picture).getpixel((1, 1)) == (128, 128, 128), picture.mode
    assert load_image(Image.new("1", (3, 3), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_png_is_scaled_not_cut() -> None:
    stored = encoded(Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)), "PNG")
    assert load_image(stored).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_jpeg() -> None:
    stored = encoded(red((16, 16)).convert("CMYK"), "JPEG", quality=95)
    r, g, b = load_image(stored).getpixel((8, 8))
    assert r > 240
    assert g < 15
    assert b < 15


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert load_image(half).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert load_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(format: str) -> None:
    stored = encoded(
        red((16, 16)), format, save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")]
    )
    r, _, b = load_image(stored).getpixel((8, 8))
    assert r > 240
    assert b < 15


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


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 5, 7), np.uint8), "channels come last"),
        (np.zeros((0, 5, 3), np.uint8), "H, W"),
        (np.zeros(5, np.uint8), "H, W"),
        (np.full((5, 7), 200.0), "0..1"),
        (np.full((5, 7), np.nan), "0..1"),
        (np.full((5, 7), 1e300), "0..1"),
        (np.zeros((5, 7), np.int64), "int64"),
    ],
)
def test_arrays_refused(array: np.ndarray, says: str) -> None:
    with pytest.raises(CofError, match=says):
        load_image(array)


@pytest.mark.parametrize("wh", [(1, 1), (1, 100), (3, 3), (10_000, 100)])
def test_odd_sizes_work(wh: tuple[int, int]) -> None:
    assert load_image(red(wh)).size == wh


def test_too_long_and_thin() -> None:
    with pytest.raises(CofError, match="crop it"):
        load_image(red((20_000, 20)))


def test_max_pixels_is_checked_before_decoding() -> None:
    with pytest.raises(CofError, match="more than the 1,000"):
        load_image(red((100, 100)), max_pixels=1000)
    header_only = encoded(Image.new("1", (9_000, 9_000)), "PNG")[:200]
    for source in (header_only, Image.open(io.BytesIO(header_only))):
        with pytest.raises(CofError, match="9000x9000"):
            load_image(source, max_pixels=80_000_000)


def test_pictures_that_pillow_cannot_load_any_more(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    with pytest.raises(CofError, match="truncated"):
        load_image(Image.open(io.BytesIO(encoded(noise, "PNG")[:800])))
    noise.save(tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as opened:
        pass
    with pytest.raises(CofError, match="was closed"):
        load_image(opened)


def test_decompression_bomb() -> None:
    png = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)  # IHDR's width and height, then its checksum
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(CofError, match="too large to decode"):
        load_image(bytes(png))


def test_bad_paths(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "note.png"
    text.write_text("not a picture")
    for path, says in [
        (tmp_path / "absent.png", "no image file"),
        (tmp_path, "folder"),
        (empty, "empty"),
        (text, "not an image"),
        ("/dev/zero", "no image file"),
        ("a." * 2500, "cannot be read"),
        ("a" * 5000, "not an image"),
        ("nul\x00.png", "no image file|cannot be read"),
    ]:
        with pytest.raises(CofError, match=says):
            load_image(path)


def test_other_types() -> None:
    with pytest.raises(CofError, match="NoneType"):
        load_image(None)  # type: ignore[arg-type]
    with pytest.raises(CofError, match="empty"):
        load_image(b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damage_is_one_sentence_or_still_a_picture(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), format)
    rng = random.Random(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))])
        damaged[rng.randrange(len(damaged))] ^= 0xFF
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except CofError:
            refused += 1
    assert refused > 0


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/red.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(encoded(red(), "PNG"))

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_addresses_only_on_request(server: str) -> None:
    with pytest.raises(CofError, match="allow_url"):
        load_image(f"{server}/red.png")
    assert load_image(f"{server}/red.png", allow_url=True).size == (8, 6)
    for address in (f"{server}/blue.png", f"{server}/a red.png", "http://a:b/c", "http://[::1/c"):
        with pytest.raises(CofError, match="cannot be fetched"):
            load_image(address, allow_url=True)


def test_only_some_formats_are_read() -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 2)).save(data, "TIFF")
    assert load_image(data.getvalue()).size == (4, 2)
    with pytest.raises(CofError, match="not an image of the kinds PNG, JPEG"):
        load_image(data.getvalue(), formats=("PNG", "JPEG"))


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
