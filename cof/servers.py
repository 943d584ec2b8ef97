"""Several servers of one model: which of them is asked, and which are left alone for a while."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cof.errors import CofError, ServerError

Reply = TypeVar("Reply")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class Away(ServerError):
    """A server cannot be reached, or takes no more requests at the moment."""


@dataclass(eq=False)
class _Server:
    """One of them.

    Attributes:
        url: without a slash at the end.
        under_way: requests that it is answering.
        is_away: whether the last request to end brought no reply.
        away_until: when it is tried again, by one request.
        pause: how long it was left alone the last time, seconds.
    """

    url: str
    under_way: int = 0
    is_away: bool = False
    away_until: float = 0.0
    pause: float = 0.0

    def is_ready(self, now: float) -> bool:
        """Whether it may be asked; after being away it gets one request, to see if it is back."""
        return not self.is_away or (self.away_until <= now and not self.under_way)


class Servers:
    """Servers that give the same answers.

    Each request goes to the one with the fewest under way. A server that is away is left alone,
    each time for longer, while the others are asked; what it had begun is sent to another one.
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
        self._servers = [_Server(url) for url in self.urls]
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._problem: Away | None = None

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
            server = self._take(ends)
            sent, problem = time.monotonic(), None
            try:
                return send(server.url)
            except Away as error:
                problem = error
                now = time.monotonic()
                if is_first:  # what it took until then was no waiting
                    ends, is_first = now + self._retry_s, False
                elif now > ends:
                    raise self._give_up(problem) from None
            finally:
                self._give_back(server, sent, problem)

    def _take(self, ends: float) -> _Server:
        """The server to ask, once one is ready.

        Raises:
            Away: none will be until then.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                ready = [server for server in self._servers if server.is_ready(now)]
                if ready:
                    server = min(ready, key=lambda server: server.under_way)
                    server.under_way += 1
                    return server
                pauses = [s.away_until - now for s in self._servers if s.away_until > now]
                wait = min(pauses, default=None)
                tried = len(pauses) < len(self._servers)  # one has a request that may bring it back
                if wait is not None and not tried and now + wait > ends:
                    assert self._problem is not None
                    raise self._give_up(self._problem)
                self._changed.wait(wait)

    def _give_up(self, last: Away) -> Away:
        if len(self._servers) == 1:
            return last
        return Away(f"None of {len(self._servers)} servers answers; the last one: {last}")

    def _give_back(self, server: _Server, sent: float, problem: Away | None) -> None:
        """The request that was sent to a server then has ended, well or with a problem."""
        with self._changed:
            server.under_way -= 1
            now = time.monotonic()
            if problem is None:
                server.is_away, server.away_until, server.pause = False, 0.0, 0.0
            else:
                self._problem = problem
                server.is_away = True
                if sent >= server.away_until:  # all that it had begun fails at once, and is one try
                    server.pause = min(max(2 * server.pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                    # not all that ask a server come back to it at once
                    server.away_until = now + server.pause * random.uniform(0.5, 1)
            self._changed.notify_all()
