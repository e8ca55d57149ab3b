"""Calls that wait for each other are answered together, each with its own answer."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from serve import combining
from serve.combining import Combining


class Panic(BaseException):
    """What a library in another language raises."""


class Doubling:
    """Doubles numbers, refuses negative ones, panics at 13, notes what came together, and waits in its first call."""

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
        if 13 in numbers:
            raise Panic("thirteen")
        return [2 * number for number in numbers]


def waiting(numbers: Sequence[int]) -> tuple[Doubling, list[int | str]]:
    """What came together when `numbers` were asked while a first call (of 0) ran, and the answers."""
    doubling = Doubling()
    call = Combining(doubling)

    def ask(number: int) -> int | str:
        try:
            return call(number)
        except (ValueError, Panic) as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers) + 1) as threads:
        first = threads.submit(ask, 0)
        assert doubling.began.wait(10)
        others = [threads.submit(ask, number) for number in numbers]
        until = time.monotonic() + 10
        while len(call._waiting) < len(numbers):
            assert time.monotonic() < until
            time.sleep(0.001)
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


@pytest.mark.parametrize(("bad", "said"), [(-2, "-2 is negative"), (13, "thirteen")])
def test_one_that_fails_fails_alone(bad: int, said: str) -> None:
    doubling, answers = waiting([1, bad, 3])
    assert answers == [2, said, 6]
    assert len(doubling.together) == 5, "one pass for all, then one for each"


def test_where_all_fail_not_each_is_tried() -> None:
    doubling, answers = waiting([-1, -2, -3, -4, -5])
    assert all("is negative" in str(answer) for answer in answers)
    assert [len(together) for together in doubling.together] == [1, 5, 1, 1]


def test_after_a_failure_others_are_answered() -> None:
    doubling = Doubling()
    doubling.go_on.set()
    call = Combining(doubling)
    for bad in (-1, 13):
        with pytest.raises((ValueError, Panic)):
            call(bad)
    assert call(2) == 4


def test_everybody_under_load_gets_their_own_answer_soon() -> None:
    """No caller whose answer is there waits for the passes of others."""
    passes: list[int] = []

    def slow(numbers: Sequence[int]) -> list[int]:
        passes.append(len(numbers))
        time.sleep(0.004)
        return [2 * number for number in numbers]

    call = Combining(slow)

    def ask(caller: int) -> list[int]:
        waited = []
        for number in range(60):
            before = len(passes)
            assert call(1_000 * caller + number) == 2 * (1_000 * caller + number)
            waited.append(len(passes) - before)
        return waited

    with ThreadPoolExecutor(8) as threads:
        waits = np.concatenate(list(threads.map(ask, range(8))))
    assert sum(passes) == 480
    assert np.mean(passes) > 3, "passes are shared"
    assert np.percentile(waits, 90) <= 4, "the one at work, one's own, and those of the way back"
