"""Which server is asked: by a clock of its own, that runs only while all wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cof import servers
from cof.errors import CofError
from cof.servers import Away, Servers


class Clock:
    """Stands still but while it is waited for."""

    now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(servers.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(servers.time, "sleep", clock.sleep)
    return clock


def away_but(there: str, asked: list[str]) -> Callable[[str], str]:
    def send(url: str) -> str:
        asked.append(url)
        if url != there:
            raise Away(f"{url} cannot be reached.")
        return url

    return send


def test_urls() -> None:
    assert Servers(" http://a/, http://b,http://a", 1).urls == ("http://a", "http://b")
    assert Servers(["http://a", "http://a/v1", "http://b/v1/"], 1).urls == ("http://a", "http://b")
    with pytest.raises(CofError, match="There is no server to ask"):
        Servers(" ,", 1)


def test_the_one_with_the_fewest_under_way_is_asked() -> None:
    pool, all_there, asked = Servers("a,b,c", 1), threading.Barrier(6), []

    def send(url: str) -> None:
        asked.append(url)
        all_there.wait(10)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: pool.ask(send), range(6)))
    assert sorted(asked) == ["a", "a", "b", "b", "c", "c"]


def test_one_that_is_away_is_left_alone_while_the_others_are_asked(clock: Clock) -> None:
    pool, asked = Servers("a,b", 0), []
    for _ in range(50):
        assert pool.ask(away_but("b", asked)) == "b"
    assert asked.count("a") == 1  # no time has passed
    clock.now += 1

    def send(url: str) -> str:
        if url == "a":  # while this one sees whether it is back the others go elsewhere
            assert [pool.ask(away_but("b", asked)) for _ in range(3)] == ["b"] * 3
        return url

    assert pool.ask(send) == "a"
    assert asked.count("a") == 1
    assert [pool.ask(lambda url: url) for _ in range(3)] == ["a"] * 3


@pytest.mark.parametrize("urls", ["a", "a,b"])
def test_none_for_long_enough_is_an_error(clock: Clock, urls: str) -> None:
    pool, asked = Servers(urls, 60), []
    sentence = "^a cannot" if urls == "a" else "None of 2 servers answers; the last one: . cannot"
    for _ in range(2):  # the second one has its time too
        began = clock.now
        with pytest.raises(Away, match=sentence):
            pool.ask(away_but("", asked))
        assert 59 < clock.now - began <= 62
    clock.now += 1
    assert pool.ask(away_but("a", asked)) == "a"


def test_a_long_request_does_not_use_up_the_time(clock: Clock) -> None:
    pool, times = Servers("a", 60), iter([Away("It died."), Away("Not yet."), None])

    def send(url: str) -> str:
        problem = next(times)
        if problem is not None:
            clock.now += 300 if "died" in str(problem) else 0
            raise problem
        return url

    assert pool.ask(send) == "a"


def test_a_request_that_alone_finds_no_answer_ends_too(clock: Clock) -> None:
    """Such as one for which every server is out of memory."""
    pool, began = Servers("a,b", 60), clock.now

    def send(url: str) -> str:
        pool.ask(lambda url: url)  # others have their replies
        clock.now += 1
        raise Away(f"{url} is out of memory.")

    with pytest.raises(Away, match="out of memory"):
        pool.ask(send)
    assert 60 < clock.now - began < 70


def test_other_errors_are_the_requests_own(clock: Clock) -> None:
    pool, asked = Servers("a", 60), []

    def send(url: str) -> str:
        asked.append(url)
        raise CofError("The question is empty.")

    for _ in range(2):
        with pytest.raises(CofError, match="The question is empty"):
            pool.ask(send)
    assert (asked, clock.now) == (["a", "a"], 1000)
