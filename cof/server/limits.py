"""What a server takes at most."""

from __future__ import annotations

from dataclasses import dataclass

from cof.limits import MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What a server takes at most; beyond it a request is refused.

    Attributes:
        max_image_bytes: of one image as it is sent.
        max_pixels: of one image.
        max_images: in one request; two are the most that is looked at.
        max_boxes: in one request; also the corners of a polygon.
        max_question: characters of a question or a grounding prompt.
        max_tokens: of an answer, and of the reply with the box.
        max_queue: requests that wait for the engine.
        max_batch: requests that the engine answers at a time.
        timeout_s: seconds for one request, from its first byte to the answer.
    """

    max_image_bytes: int = MAX_UPLOAD_BYTES
    max_pixels: int = MAX_UPLOAD_PIXELS
    max_images: int = 2
    max_boxes: int = 64
    max_question: int = 4000
    max_tokens: int = 512
    max_queue: int = 64
    max_batch: int = 16
    timeout_s: float = 120.0

    @property
    def max_body_bytes(self) -> int:
        """Of a request: its images in base64, and one MiB for the rest."""
        return self.max_images * self.max_image_bytes * 4 // 3 + MIB
