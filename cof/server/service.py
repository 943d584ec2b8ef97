"""What a request goes through before it is answered, on either engine: limits, images, time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from fastapi import Request
from PIL.Image import Image
from starlette.requests import ClientDisconnect

from cof.errors import CofError, TooLarge
from cof.images import embedded, load_image
from cof.limits import UPLOAD_FORMATS, Limits
from cof.server.errors import ApiError
from cof.server.images import TOO_LARGE, Fetcher
from cof.server.logs import Metrics
from cof.settings import Settings

Result = TypeVar("Result")
Message = dict[str, Any]
"""Of a chat, in OpenAI's format."""


class Service:
    """What requests share.

    Args:
        settings: those that requests change.
        fetcher: fetches images from addresses; None: they are refused.
        most: how many requests may be under way.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        limits: Limits,
        fetcher: Fetcher | None,
        most: int,
    ) -> None:
        self.settings, self.metrics, self.limits = settings, metrics, limits
        self._fetcher, self._most, self._under_way = fetcher, most, 0
        self._decoded: WeakValueDictionary[bytes, Image] = WeakValueDictionary()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """While a request is under way.

        Raises:
            ApiError: it is one too many.
        """
        if self._under_way >= self._most:
            message = "Too many requests are waiting: ask again in a moment."
            raise ApiError(429, message, "queue_full")
        self._under_way += 1
        try:
            with self.metrics.under_way.track_inprogress():
                yield
        finally:
            self._under_way -= 1

    async def with_images(
        self, messages: Any, load: Callable[[Message, str, bytes], Awaitable[object]]
    ) -> list[Message]:
        """Messages with their images in the place of the addresses.

        Args:
            messages: of a chat; what is none stays as it is.
            load: gets a part, its address and the data there; gives what `cof.Query` takes.

        Raises:
            CofError: an image cannot be taken.
        """
        known: dict[int, Any] = {}
        for content, place in image_places(messages):
            part = content[place]
            given = part["image_url"]
            address = str(given.get("url") if isinstance(given, dict) else given)
            image = await load(part, address, await self.image_data(address))
            known[id(part)] = {"type": "image", "image": image}
        return [
            {**message, "content": [known.get(id(part), part) for part in message["content"]]}
            if isinstance(message, dict) and isinstance(message.get("content"), list)
            else message
            for message in messages or ()
        ]

    async def image_data(self, address: str) -> bytes:
        """The bytes of an image; no path is ever opened."""
        if address[:5].lower() == "data:":
            data = embedded(address) or b""
            if len(data) > self.limits.max_image_bytes:
                raise TooLarge(TOO_LARGE.format(self.limits.max_image_bytes))
            return data
        if not address.lower().startswith(("http://", "https://")):
            raise CofError("image_url takes a data: URL with the image in base64.")
        if self._fetcher is None:
            raise CofError(
                "This server fetches no addresses: send the image as a data: URL, or start it with "
                "--allow-url."
            )
        return await self._fetcher.fetch(address)

    def decode(self, data: bytes) -> Image:
        """The image in these bytes; equal data that are still in use give the same one, so that it
        is encoded once in a batch."""
        key = hashlib.sha256(data).digest()
        image = self._decoded.get(key)
        if image is None:
            image = load_image(data, max_pixels=self.limits.max_pixels, formats=UPLOAD_FORMATS)
            self._decoded[key] = image
        return image


def image_places(messages: Any) -> Iterator[tuple[list[Any], int]]:
    """Where the images of messages are, which may be of any kind: a content, and a place in it."""
    for message in messages if isinstance(messages, list) else []:
        content: Any = message.get("content") if isinstance(message, dict) else None
        for place, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, dict) and part.get("image_url") is not None:
                yield content, place


async def unless_gone(request: Request, result: Awaitable[Result]) -> Result:
    """A result, which is waited for while the client does so too; the body has been read.

    Raises:
        ClientDisconnect: it has gone.
    """
    gone, waiting = asyncio.ensure_future(request.receive()), asyncio.ensure_future(result)
    try:
        await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        gone.cancel()
        waiting.cancel()
