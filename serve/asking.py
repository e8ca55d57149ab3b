"""How the ingress asks its stages: across processes, or in its own.

What an answer takes is written once, as a coroutine that awaits `ask` for each stage and `blocking` for its own work
that waits. `Apart` hands stages to their deployments and the rest to threads. `Together` does everything where it is
asked, and the whole coroutine in one thread: nothing in it ever waits for the event loop.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from rec.recommend.walk import finish
from serve.degrade import Unavailable
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
        """What the method of a stage answers. Raises Unavailable when it fails, refuses or takes too long."""

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns, which waits for the database or takes long."""

    async def answer(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that awaits nothing but these."""


class Apart:
    """Stages behind deployment handles, by class."""

    def __init__(self, handles: Mapping[type, DeploymentHandle[Any]]) -> None:
        self._handles = handles

    async def ask(
        self, seconds: float, stage: type[S], method: Method[S, P, T], *given: P.args, **named: P.kwargs
    ) -> T:
        """Wait at most `seconds` for a replica's answer."""
        response = getattr(self._handles[stage], method.__name__).remote(*given, **named)
        try:
            answer: T = await asyncio.wait_for(response, seconds)
        except TimeoutError:
            raise Unavailable(f"{stage.__name__}: no answer within {seconds:g} s") from None
        except (RayError, RayServeException) as error:
            raise Unavailable(f"{stage.__name__}: {str(error).splitlines()[-1]}") from error
        return answer

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """In a thread."""
        return await asyncio.to_thread(work, *given, **named)

    async def answer(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """On the event loop."""
        return await coroutine


class Together:
    """Stages in this process, which are waited for: what bounds them is the database's own timeouts."""

    def __init__(self, store: str) -> None:
        self._stages: dict[type, Any] = {stage: stage(store) for stage in STAGES}

    async def ask(
        self, seconds: float, stage: type[S], method: Method[S, P, T], *given: P.args, **named: P.kwargs
    ) -> T:
        """Call it; `seconds` pass unnoticed, as nothing here could go on meanwhile."""
        try:
            return method(self._stages[stage], *given, **named)
        except Exception as error:  # whatever it is: behind a handle it would be Ray's
            raise Unavailable(f"{stage.__name__}: {error}") from error

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Here: the coroutine is in a thread."""
        return work(*given, **named)

    async def answer(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """In a thread from its first step to its last."""
        return await asyncio.to_thread(finish, coroutine)
