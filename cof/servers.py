"""Several servers of one model: which of them is asked, and which are left alone for a while."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

from cof.errors import CofError, ServerError

Reply = TypeVar("Reply")

_PAUSE_S = 1.0
"""How long a server that is away is left alone; ours say so too (`Retry-After`)."""

_LOOK_S = 0.02
"""How often a request that waits looks whether a server is there again."""


class Away(ServerError):
    """A server cannot be reached, or takes no more requests at the moment."""


class Servers:
    """Servers that give the same answers.

    Each request goes to the one with the fewest under way. One that is away is left alone but for
    one request a second, while the others are asked; what it had begun is sent to another one.
    """

    def __init__(self, urls: str | Sequence[str], retry_s: float) -> None:
        """
        Args:
            urls: one, several with commas between them, or a sequence of them.
            retry_s: how long a request waits or is sent again while they are away.

        Raises:
            CofError: there is none.
        """
        given = urls.split(",") if isinstance(urls, str) else urls
        self.urls = tuple(dict.fromkeys(url.strip().rstrip("/") for url in given if url.strip()))
        if not self.urls:
            raise CofError("There is no server to ask: give a URL such as http://127.0.0.1:8000.")
        self._retry_s = retry_s
        self._under_way: Counter[str] = Counter()  # requests, by URL
        self._away_until: dict[str, float] = {}  # of those that gave no reply to the last request
        self._problem = Away()
        self._lock = Lock()

    def ask(self, send: Callable[[str], Reply]) -> Reply:
        """What a request brings from one of the servers.

        Args:
            send: sends the request to a URL, and returns the reply; raises `Away` where it has to
                be sent again.

        Raises:
            CofError: what `send` raises; `Away` only after `retry_s`.
        """
        ends, is_first = time.monotonic() + self._retry_s, True
        while True:
            url, away_until = self._take(ends), 0.0
            try:
                return send(url)
            except Away as problem:
                self._problem, now = problem, time.monotonic()
                # not all that ask a server come back to it at once
                away_until = now + _PAUSE_S * random.uniform(0.5, 1)
                if is_first:  # what it took until then was no waiting
                    ends, is_first = now + self._retry_s, False
                elif now > ends:
                    raise self._none_answers from None
            finally:
                with self._lock:
                    self._under_way[url] -= 1
                    self._away_until.pop(url, None)
                    if away_until:
                        self._away_until[url] = away_until

    def _take(self, ends: float) -> str:
        """The server to ask, once one is ready; after being away it gets one request at first, to
        see if it is back.

        Raises:
            Away: none is until then.
        """
        while True:
            with self._lock:
                now, busy = time.monotonic(), self._under_way
                ready = [
                    url
                    for url in self.urls
                    if (until := self._away_until.get(url)) is None
                    or (until <= now and not busy[url])
                ]
                if ready:
                    url = min(ready, key=busy.__getitem__)
                    busy[url] += 1
                    return url
                if now > ends and not any(busy.values()):  # one under way may bring a server back
                    raise self._none_answers
            time.sleep(_LOOK_S)

    @property
    def _none_answers(self) -> Away:
        if len(self.urls) == 1:
            return self._problem
        return Away(f"None of {len(self.urls)} servers answers; the last one: {self._problem}")
