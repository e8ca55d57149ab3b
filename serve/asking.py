"""How the ingress asks its stages: across processes, or in its own.

What an answer takes is written once, as a coroutine that awaits `ask` for each stage, `look_up` for the database and
`blocking` for its own work that takes long. `Apart` hands stages to their deployments and the rest to threads.
`Together` does everything where it is asked, and the whole coroutine in one thread: nothing in it ever waits for the
event loop. Threads that may wait for a database are kept from each other: those of answers, those of other routes
(`timely`), and those of what an answer does without it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from rec.errors import DatabaseError
from rec.index.connections import within
from rec.recommend.walk import finish
from serve.degrade import Away, Unavailable
from serve.stages import STAGES

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

Method = Callable[Concatenate[S, P], T]


class Asking(Protocol):
    """Whom an answer asks."""

    async def ask(
        self, seconds: float, stage: type[S], method: Method[S, P, T], *given: P.args, **named: P.kwargs
    ) -> T:
        """What the method of a stage answers. Raises Unavailable when it fails, Away when it takes too long."""

    async def look_up(self, seconds: float, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns, which asks the database. Raises DatabaseError when that fails or takes too long."""

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns, which takes long and asks nobody."""

    async def answer(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that awaits nothing but these."""


async def timely(
    executor: Executor | None, seconds: float, work: Callable[P, T], *given: P.args, **named: P.kwargs
) -> T:
    """What `work` returns, in a thread of `executor` (None: the loop's). Raises DatabaseError after `seconds`.

    It is left to itself then, and ends soon: what it asks of Connections is bounded by the same time.
    """
    with within(seconds):
        called = partial(copy_context().run, work, *given, **named)
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(executor, called), seconds)
    except TimeoutError:
        raise DatabaseError(f"the database did not answer within {seconds:.2g} s") from None


class Apart:
    """Stages behind deployment handles, by class."""

    def __init__(self, handles: Mapping[type, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._looking_up = ThreadPoolExecutor(thread_name_prefix="look-up")
        self._working = ThreadPoolExecutor(thread_name_prefix="work")

    async def ask(
        self, seconds: float, stage: type[S], method: Method[S, P, T], *given: P.args, **named: P.kwargs
    ) -> T:
        """Wait at most `seconds` for a replica's answer."""
        response = getattr(self._handles[stage], method.__name__).remote(*given, **named)
        try:
            answer: T = await asyncio.wait_for(response, seconds)
        except TimeoutError:
            raise Away(f"{stage.__name__}: no answer within {seconds:g} s", "late") from None
        except (RayError, RayServeException) as error:
            said = f"{stage.__name__}: {str(error).splitlines()[-1]}"
            if isinstance(error, BackPressureError):
                raise Away(said, "full") from error
            if not isinstance(error, RayTaskError):
                raise Away(said, "down") from error
            if isinstance(error.cause, DatabaseError):
                raise Away(said, "database") from error
            raise Unavailable(said) from error
        return answer

    async def look_up(self, seconds: float, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """In a thread for that."""
        return await timely(self._looking_up, seconds, work, *given, **named)

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """In a thread of others, which never wait for the database."""
        called = partial(copy_context().run, work, *given, **named)
        return await asyncio.get_running_loop().run_in_executor(self._working, called)

    async def answer(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """On the event loop."""
        return await coroutine


class Together:
    """Stages in this process. What waits in them waits for the database, and that is bounded."""

    def __init__(self, store: str) -> None:
        self._stages: dict[type, Any] = {stage: stage(store) for stage in STAGES}
        self._answering = ThreadPoolExecutor(thread_name_prefix="answer")

    async def ask(
        self, seconds: float, stage: type[S], method: Method[S, P, T], *given: P.args, **named: P.kwargs
    ) -> T:
        """Call it; `seconds` are for what it asks the database."""
        try:
            with within(seconds):
                return method(self._stages[stage], *given, **named)
        except DatabaseError as error:
            raise Away(f"{stage.__name__}: {error}", "database") from error
        except Exception as error:  # whatever it is: behind a handle it would be Ray's
            raise Unavailable(f"{stage.__name__}: {error}") from error

    async def look_up(self, seconds: float, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Here: the coroutine is in a thread."""
        with within(seconds):
            return work(*given, **named)

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Here."""
        return work(*given, **named)

    async def answer(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """In a thread from its first step to its last."""
        answer = self._answering.submit(copy_context().run, finish, coroutine)
        try:
            return await asyncio.wrap_future(answer)
        finally:
            if answer.cancelled():  # who asked has left before a thread began it
                coroutine.close()
