"""What strangers may send: the limits of the web page and of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

MAX_UPLOAD_BYTES = 10 * 2**20
"""Of one image file."""

MAX_UPLOAD_PIXELS = 20_000_000
"""Of one image (60 MB as RGB)."""

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Of Pillow's readers those that images on the web need; others start programs, or are less used
and so less tested."""


@dataclass(frozen=True)
class Limits:
    """What a server takes at most; beyond it a request is refused. Those with a help text are
    options of `cof serve`."""

    max_image_bytes: Annotated[int, "Of one image as it is sent."] = MAX_UPLOAD_BYTES
    max_pixels: Annotated[int, "Of one image."] = MAX_UPLOAD_PIXELS
    max_images: Annotated[int, "In one request."] = 4
    max_boxes: int = 64  # in one request; also the corners of a polygon
    max_question: int = 16_000  # characters of all texts of a chat, or of a grounding prompt
    max_tokens: Annotated[int, "The longest answer, and reply with a box, in tokens."] = 512
    max_queue: Annotated[int, "Requests that may wait for the engine; others get 429."] = 64
    max_batch: Annotated[int, "Requests that the engine answers at a time."] = 16
    timeout_s: Annotated[float, "Seconds for one request, to the answer."] = 120.0

    @property
    def max_body_bytes(self) -> int:
        """Of a request: its images in base64, and one MiB for the rest."""
        return self.max_images * self.max_image_bytes * 4 // 3 + 2**20
