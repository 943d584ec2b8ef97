"""Several servers of one model: which of them is asked, and which are left alone for a while."""

from __future__ import annotations

import math
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


class Away(ServerError):
    """A server cannot be reached, or takes no more requests at the moment."""


class Servers:
    """Servers that give the same answers.

    Each request goes to the one with the fewest under way. One that is away is left alone for a
    second while the others are asked; what it had begun is sent to another one.
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
        own = (url.strip().rstrip("/").removesuffix("/v1") for url in given)  # as in base_url
        self.urls = tuple(dict.fromkeys(filter(None, own)))
        if not self.urls:
            raise CofError("There is no server to ask: give a URL such as http://127.0.0.1:8000.")
        self._retry_s = retry_s
        self._under_way: Counter[str] = Counter()  # requests, by URL
        self._away_until = dict.fromkeys(self.urls, 0.0)  # those that gave no reply at last
        self._lock = Lock()

    def ask(self, send: Callable[[str], Reply]) -> Reply:
        """What a request brings from one of the servers. `send` sends it to a URL, and raises
        `Away` where it has to be sent again.

        Raises:
            CofError: what `send` raises; `Away` only after `retry_s`.
        """
        ends, again = math.inf, False  # what it takes until one is away is no waiting
        while True:
            with self._lock:
                now = time.monotonic()
                away = {url: max(0.0, until - now) for url, until in self._away_until.items()}
                url = min(self.urls, key=lambda url: (away[url] > 0, self._under_way[url]))
                self._under_way[url] += 1
            try:
                time.sleep(away[url])
                reply = send(url)
            except Away as problem:
                now = time.monotonic()
                ends = min(ends, now + self._retry_s)
                # not all that ask a server come back to it at once
                self._away_until[url] = now + _PAUSE_S * random.uniform(0.5, 1)
                if now >= ends and (again or min(self._away_until.values()) > now):
                    several = f"None of {len(self.urls)} servers answers; the last one: {problem}"
                    raise (problem if len(self.urls) == 1 else Away(several)) from None
                again = True
            else:
                self._away_until[url] = 0.0
                return reply
            finally:
                with self._lock:
                    self._under_way[url] -= 1
