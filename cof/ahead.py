"""The images of the next batch, read and processed while the model answers this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from PIL.Image import Image

from cof.engines.base import ImageProcessor
from cof.errors import CofError

Part = TypeVar("Part")
Result = TypeVar("Result")


def work_ahead(work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """What a function makes of each part, in order: that of the next one is made in a thread while
    the caller uses this one. An error comes when it is the part's turn.

    >>> list(work_ahead(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    todo = iter(parts)
    for first in todo:
        ready = work(first)
        for part in todo:
            following = _start(work, part)
            yield ready
            ready = following.result()
        yield ready


def _start(work: Callable[[Part], Result], part: Part) -> Future[Result]:
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work(part))
        except BaseException as error:
            future.set_exception(error)

    # Python waits for a pool's threads before it ends, so that an interrupt would have to wait
    Thread(target=run, daemon=True).start()
    return future


def process_images(engine: Any, images: Iterable[object]) -> dict[int, Any]:
    """What the engine takes in place of each PIL image, by the image's `id`; empty if it does not
    process images apart from encoding them, or refuses one: encoding them says so again."""
    given = {id(image): image for image in images if isinstance(image, Image)}
    if not given or not isinstance(engine, ImageProcessor):
        return {}
    try:
        return dict(zip(given, engine.process(list(given.values())), strict=True))
    except CofError:
        return {}
