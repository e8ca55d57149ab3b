"""Calls of many threads answered together: those that come while one is at work wait, and the next does all of theirs.

Nobody waits for company. With one caller at a time each call is by itself; the more there are, the more are answered by
one pass through the model, which for eight takes little longer than for one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")

MOST = 16
"""Calls that are answered at once."""


class _Call(Generic[A, R]):
    __slots__ = ("answer", "asked", "error")

    def __init__(self, asked: A) -> None:
        self.asked = asked
        self.answer: list[R] = []
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return bool(self.answer) or self.error is not None

    def result(self) -> R:
        if self.error is not None:
            raise self.error
        return self.answer[0]


class Combining(Generic[A, R]):
    """`many`, which answers a list of calls in their order, as a function of one call for any number of threads."""

    def __init__(self, many: Callable[[Sequence[A]], Sequence[R]]) -> None:
        self._many = many
        self._waiting: deque[_Call[A, R]] = deque()
        self._working = Lock()

    def __call__(self, asked: A) -> R:
        """The answer to one call. Raises what `many` raises of this call alone: others do not fail with it."""
        call: _Call[A, R] = _Call(asked)
        self._waiting.append(call)
        with self._working:  # whoever gets in answers those before it; most find their answer made
            while not call.done:
                self._answer([self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))])
        return call.result()

    def _answer(self, calls: Sequence[_Call[A, R]]) -> None:
        try:
            for call, answer in zip(calls, self._many([call.asked for call in calls]), strict=True):
                call.answer.append(answer)
        except Exception as error:
            if len(calls) == 1:
                calls[0].error = error
                return
            for call in calls:
                self._answer([call])
