"""Micro-batching without a timer: calls that come while a pass is at work wait, and the next pass answers them all.

One caller at a time makes a pass, of its own call and of those that wait; when it is done it hands over to the first of
the others. Nobody waits for company: a call that comes alone is a pass by itself. The more there are, the more go
through the model at once, which for eight takes little longer than for one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")

MOST = 16
"""Calls of one pass."""
ALONE = 2
"""After a pass that failed its calls are tried alone, until so many of them fail as well: it is then no single one that
the others are to be kept from."""


class _Call(Generic[A, R]):
    __slots__ = ("answer", "asked", "error", "woken")

    def __init__(self, asked: A) -> None:
        self.asked = asked
        self.answer: list[R] = []
        self.error: BaseException | None = None
        self.woken = Event()
        """It is answered, or its turn to make a pass has come."""

    @property
    def done(self) -> bool:
        return bool(self.answer) or self.error is not None


class Combining(Generic[A, R]):
    """`many`, which answers a list of calls in their order, as a function of one call for any number of threads."""

    def __init__(self, many: Callable[[Sequence[A]], Sequence[R]]) -> None:
        self._many = many
        self._waiting: deque[_Call[A, R]] = deque()
        self._working = False
        self._lock = Lock()  # of these two, held for a moment only

    def __call__(self, asked: A) -> R:
        """The answer to one call. Raises what `many` raises of it."""
        call: _Call[A, R] = _Call(asked)
        with self._lock:
            self._waiting.append(call)
            first = not self._working
            self._working = True
        if not first:
            call.woken.wait()
        if not call.done:
            self._pass()
        if call.error is not None:
            raise call.error
        return call.answer[0]

    def _pass(self) -> None:
        """Answer the calls that wait, the caller's first, and hand over."""
        with self._lock:
            calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
        try:
            self._answer(calls)
        finally:
            with self._lock:
                self._working = bool(self._waiting)
                follower = self._waiting[0] if self._waiting else None
            for call in (*calls, *([] if follower is None else [follower])):
                call.woken.set()

    def _answer(self, calls: Sequence[_Call[A, R]]) -> None:
        failed = self._try(calls)
        if failed is None:
            return
        alone = 0
        for call in calls:
            call.error = failed if len(calls) == 1 or alone >= ALONE else self._try([call])
            alone += call.error is not None

    def _try(self, calls: Sequence[_Call[A, R]]) -> BaseException | None:
        """What one pass of these calls failed with."""
        try:
            answers = self._many([call.asked for call in calls])
            for call, answer in zip(calls, answers, strict=True):
                call.answer.append(answer)
        except BaseException as error:  # a panic of a tokenizer is no Exception, and its callers wait as well
            for call in calls:
                call.answer.clear()
            return error
        return None
