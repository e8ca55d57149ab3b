"""Calls that wait for each other are answered together, each with its own answer."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from serve import combining
from serve.combining import Combining


class Doubling:
    """Doubles numbers, refuses negative ones, notes what came together, and waits in its first call."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.began, self.go_on = Event(), Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.together.append(list(numbers))
        if len(self.together) == 1:
            self.began.set()
            assert self.go_on.wait(10)
        if min(numbers) < 0:
            raise ValueError(f"{min(numbers)} is negative")
        return [2 * number for number in numbers]


def waiting(numbers: Sequence[int]) -> tuple[Doubling, list[int | str]]:
    """What came together when `numbers` were asked while a first call (of 0) ran, and the answers."""
    doubling = Doubling()
    call = Combining(doubling)

    def ask(number: int) -> int | str:
        try:
            return call(number)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers) + 1) as threads:
        first = threads.submit(ask, 0)
        assert doubling.began.wait(10)
        others = [threads.submit(ask, number) for number in numbers]
        while len(call._waiting) < len(numbers):
            pass
        doubling.go_on.set()
        assert first.result(10) == 0
        return doubling, [other.result(10) for other in others]


def test_a_call_alone_is_answered_alone() -> None:
    doubling = Doubling()
    doubling.go_on.set()
    call = Combining(doubling)
    assert [call(3), call(4)] == [6, 8]
    assert doubling.together == [[3], [4]]


def test_calls_that_wait_are_answered_by_one_pass() -> None:
    doubling, answers = waiting(range(1, 6))
    assert answers == [2, 4, 6, 8, 10]
    assert [sorted(together) for together in doubling.together] == [[0], [1, 2, 3, 4, 5]]


def test_no_pass_has_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combining, "MOST", 4)
    doubling, answers = waiting(range(1, 11))
    assert answers == [2 * number for number in range(1, 11)]
    assert [len(together) for together in doubling.together] == [1, 4, 4, 2]


def test_one_that_fails_fails_alone() -> None:
    doubling, answers = waiting([1, -2, 3])
    assert answers == [2, "-2 is negative", 6]
    assert len(doubling.together) == 5, "one pass for all, then one for each"
