"""What strangers may send: the limits of the web page and of the server."""

from __future__ import annotations

MAX_UPLOAD_BYTES = 10 * 2**20
"""Of one image file."""

MAX_UPLOAD_PIXELS = 20_000_000
"""Of one image (60 MB as RGB)."""

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Of Pillow's readers those that images on the web need; others start programs, or are less used
and so less tested."""
